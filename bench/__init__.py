"""Benchmarks of rnnfast: `python -m bench.run`, `python -m bench.report`, `python -m bench.compare`."""
