"""For pytest, whichever tests it runs: the tiers of the suite."""

pytest_plugins = ["tests.tiers"]
