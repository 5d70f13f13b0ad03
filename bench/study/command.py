"""Runs the study ladder: builds every rung that this machine can build, checks it against float64, times it.

    python -m bench.study                 all rungs: the table, and the picture in out/study.png
    python -m bench.study 5               rungs by number, 5 and 6, say
    python -m bench.study --explain 5     a rung's page: idea, prediction, outcome, exercise
    python -m bench.study --write         puts table and picture into bench/study/README.md

One thread, float32, but for the rungs about threads. Figures are us a step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench import command
from bench.study import report
from bench.study.ladder import LADDER
from bench.study.run import climb


def main(arguments: list[str]) -> int:
    parser = command.parser("study", __doc__)
    parser.add_argument("rungs", nargs="*", type=int, help="numbers; all without any")
    parser.add_argument("--explain", action="store_true", help="print the pages of the rungs, with figures")
    parser.add_argument("--check", action="store_true", help="build and check, time nothing")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures into a file")
    parser.add_argument("--seconds", type=float, default=0.4, help="a rung and shape (default 0.4)")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="default out/study.png, with all rungs")
    parser.add_argument("--write", action="store_true", help="renew the generated parts of the guide")
    options = parser.parse_args(arguments)
    rungs = LADDER
    unknown = set(options.rungs) - {rung.number for rung in rungs}
    if unknown:
        parser.error(f"there is no rung {min(unknown)}; there are 0 to {rungs[-1].number}")
    if options.write and (options.rungs or options.check):
        parser.error("--write takes all rungs, and their times")
    chosen = tuple(rung for rung in rungs if not options.rungs or rung.number in options.rungs)
    run = climb(chosen, options.seconds, timed=not options.check)
    print(report.text(run, chosen))
    if options.explain:
        for rung in chosen:
            print("\n" + report.page(rung, run["rungs"][rung.label]))
    if options.json is not None:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    picture = options.picture
    if picture is None and not options.rungs and not options.check:
        picture = Path("out/study.png")
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        report.draw(run, picture)
        print(f"wrote {picture}", file=sys.stderr)
    if options.write:
        report.write_guide(run, chosen)
    return 1 if any(entry["state"] == "wrong" for entry in run["rungs"].values()) else 0
