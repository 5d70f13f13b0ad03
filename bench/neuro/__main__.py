"""`python -m bench.neuro` is `python -m bench neuro`."""

import sys

from bench.neuro.neuro import main

if __name__ == "__main__":
    sys.exit(main())
