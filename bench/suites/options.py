"""The command line that `bench run` and its workers share."""

from __future__ import annotations

import argparse
from typing import Optional

from bench import command
from bench.cases.suites import SUITES
from bench.peers import PEERS


def parser(description: Optional[str] = None) -> argparse.ArgumentParser:
    p = command.parser("run", description)
    add = p.add_argument
    add("--suite", choices=SUITES, default="core", help="which cases (default: core)")
    add("--quick", dest="suite", action="store_const", const="quick", help="short for --suite quick")
    names = ", ".join(PEERS)
    usual = "the suite's, or all that are installed and run on its device, but rnnfast-eager"
    add("--peers", nargs="+", choices=PEERS, default=[], metavar="NAME",
        help=f"contenders, of {names} (default: {usual})")  # fmt: skip
    add("--threads", nargs="+", type=int, default=[], metavar="N",
        help="run every case with these thread counts instead of its own")  # fmt: skip
    add("--filter", default="", metavar="WORDS",
        help='only cases whose name has all of these words, e.g. "B32 H256 forward"')  # fmt: skip
    add("--json", metavar="FILE",
        help="where results go, and are taken up from (default: out/bench-SUITE.json)")  # fmt: skip
    add("--seconds", type=float, help="measuring time per contender and cell, instead of the suite's")
    add("--no-memory", action="store_true", help="leave out the peak-memory processes")
    return p
