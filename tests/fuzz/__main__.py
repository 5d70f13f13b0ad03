"""`python -m tests.fuzz --seconds N --seed S`: see README.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the cores may be shared

import torch  # noqa: F401  here, so that children need not

from . import child
from .problem import draw
from .session import Session
from .shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--problems", type=int, help="how many, instead of how long")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the run; problem i has the seed S * 10**9 + i"
    )
    parser.add_argument("--first", type=int, default=0, help="the first i")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--watchdog", type=float, default=child.WATCHDOG, help="seconds for one problem")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="one problem, its smallest form and its trace"
    )
    parser.add_argument("--no-shrink", action="store_true", help="report problems as they were drawn")
    parser.add_argument(
        "--extension", type=Path, help="a build of rnnfast._cpu to use instead of the installed one"
    )
    options = parser.parse_args()
    if options.extension is not None:
        os.environ[child.EXTENSION] = str(options.extension)
    if options.replay is not None:
        return replay(options.replay, options.watchdog, not options.no_shrink)
    session = Session(options.seed, options.processes, options.watchdog, shrinking=not options.no_shrink)
    session.run(options.first, options.problems, options.seconds)
    print(session.summary())
    return 1 if session.found else 0


def replay(seed: int, watchdog: float, shrinking: bool) -> int:
    problem = draw(seed)
    print(problem.text())
    report = child.alone(problem, watchdog)
    if not report.kind:
        print("nothing found")
        return 0
    print(f"{report.kind}: {report.text}\n{report.trace}")
    if shrinking:
        problem, report = shrink(problem, report, lambda p: child.alone(p, watchdog), seconds=120.0)
        print(f"smallest form: {problem.text()}\n{report.kind}: {report.text}\n{report.trace}")
    return 1


if __name__ == "__main__":
    begun = time.monotonic()
    status = main()
    print(f"{time.monotonic() - begun:.0f} s")
    sys.exit(status)
