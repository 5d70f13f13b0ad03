"""Which cells moved: `python -m bench compare BEFORE AFTER`.

Both are files of `python -m bench run`, or `REVISION:PATH` for a file as it is in git. Only cells that both
have are compared, contender by contender (ours, unless --all). A cell has moved when its median changed by
more than `--least` (default 3%) and the two interquartile ranges do not overlap: a change within the spread
is no change. The machine itself may have been slower in one of two runs, so torch.nn.RNN's own change over
all cells is printed beside them. Exit status: 1 when a cell became slower, 0 otherwise.
"""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path
from typing import Optional

from bench import command
from bench.machine import environment
from bench.report.store import read_cells, with_cells
from bench.report.table import TORCH, is_peer, number, render, timed


def main(arguments: list[str]) -> int:
    p = command.parser("compare", __doc__)
    p.add_argument("before", help="JSON file, or REVISION:PATH")
    p.add_argument("after", help="JSON file, or REVISION:PATH")
    p.add_argument("--least", type=float, default=0.03, help="smallest change that counts (default: 0.03)")
    p.add_argument("--all", action="store_true", help="peers too, not only rnnfast")
    options = p.parse_args(arguments)
    try:
        before, after = load(options.before), load(options.after)
    except ValueError as error:
        p.error(str(error))
    for line in differences(before["environment"], after["environment"]):
        print(line)

    rows = moved(before["cells"], after["cells"], options.least, options.all)
    if rows:
        print(render(("cell", "contender", "before us", "after us", "time ratio", ""), rows))
    compared = len(before["cells"].keys() & after["cells"].keys())
    slower = sum(row[-1] == "SLOWER" for row in rows)
    faster = len(rows) - slower
    print(f"{compared} cells compared: {slower} slower, {faster} faster, the rest within their spread")
    yardstick = drift(before["cells"], after["cells"])
    if yardstick is not None:
        print(f"{TORCH} itself took {yardstick:.3f} times as long (median over the cells)")
    return int(slower > 0)


def load(source: str) -> dict:
    """A file of `python -m bench run`, from the disk or from git. Raises ValueError where it is none."""
    if Path(source).exists() or ":" not in source:
        return read_cells(Path(source))
    try:
        shown = subprocess.run(["git", "show", source], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"cannot run git: {error.strerror}") from None
    if shown.returncode != 0:
        raise ValueError(shown.stderr.strip())
    return with_cells(shown.stdout, source)


def differences(before: dict, after: dict) -> list[str]:
    if environment.same(before, after):
        return []
    keys = [key for key in after if key != "date" and before.get(key) != after[key]]
    return [f"{key}: {before.get(key)} -> {after[key]}" for key in keys]


def moved(before: dict, after: dict, least: float, everybody: bool = False) -> list[list[str]]:
    """A row for each contender of a cell that changed beyond `least` and its spread; worst first."""
    found = []
    for key in before.keys() & after.keys():
        for name in before[key]["results"]:
            a, b = timed(before[key], name), timed(after[key], name)
            if not (a and b) or (is_peer(name) and not everybody):
                continue
            change = b["median"] / a["median"]
            apart = a["q3"] < b["q1"] or b["q3"] < a["q1"]
            if apart and abs(change - 1) > least:
                found.append((change, key, name, a["median"], b["median"]))
    return [
        [key, name, number(a * 1e6), number(b * 1e6), f"{change:.3f}", "SLOWER" if change > 1 else "faster"]
        for change, key, name, a, b in sorted(found, reverse=True)
    ]


def drift(before: dict, after: dict) -> Optional[float]:
    pairs = [(timed(before[key], TORCH), timed(after[key], TORCH)) for key in before.keys() & after.keys()]
    changes = [b["median"] / a["median"] for a, b in pairs if a and b]
    return statistics.median(changes) if changes else None
