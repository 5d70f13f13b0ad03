"""`python -m bench.study` is `python -m bench study`."""

import sys

from bench.study.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
