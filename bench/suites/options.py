"""The command line that `bench run` and its workers share."""

from __future__ import annotations

import argparse
from typing import Optional

from bench import command
from bench.cases.case import Case
from bench.cases.suites import SUITES, select
from bench.peers import PEERS


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that a command line asks for."""
    return select(options.suite, options.threads, options.filter, options.seed, options.count)


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
    add("--seed", type=int, default=1, metavar="N", help="of the suite random (default: 1)")
    add("--count", type=int, default=200, metavar="K", help="cases of the suite random (default: 200)")
    add("--filter", default="", metavar="WORDS",
        help='only cases whose name has all of these words, e.g. "B32 H256 forward"')  # fmt: skip
    add("--json", metavar="FILE",
        help="where results go, and are taken up from (default: out/bench-SUITE.json or, for random,"
        " out/bench-random-SEED.json)")  # fmt: skip
    add("--seconds", type=float, help="measuring time per contender and cell, instead of the suite's")
    add("--no-memory", action="store_true", help="leave out the peak-memory processes")
    return p
