"""A pytest plugin: the tests run with the extension that $RNNFAST_FUZZ_EXTENSION names."""

import os

from tests import sanitize

sanitize.use(os.environ["RNNFAST_FUZZ_EXTENSION"])
