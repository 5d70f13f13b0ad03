"""`python -m bench.reservoir` is `python -m bench reservoir`."""

import sys

from bench.reservoir.reservoir import main

if __name__ == "__main__":
    sys.exit(main())
