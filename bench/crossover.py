"""Dispatch's table of where a GPU backend is ahead, from what `bench.gpu` measured:

    python -m bench.crossover DIR/gpu.json [--backend cuda]

prints the entry of `rnnfast.dispatch.FASTER` for the backend. A region covers one dtype, forward or
training, one measured hidden size and those under it down to the next, and batches up to the largest one at
and under which every measured cell was won or lost by less than 3%. Nothing is claimed beyond what was
measured: not for larger batches or layers, nor for fewer steps.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from bench.store import read

TOLERATED = 1.03
OTHERS = ("rnnfast-aten", "torch-rnn")


def regions(cells: dict[str, dict], backend: str) -> list[str]:
    """The source of each region."""
    ahead: dict[tuple[str, bool, int], dict[int, bool]] = defaultdict(dict)
    for entry in cells.values():
        case, results = entry["case"], entry["results"]
        ours = results.get(f"rnnfast-{backend}", {}).get("median")
        theirs = [results[name]["median"] for name in OTHERS if results.get(name, {}).get("median")]
        won = ours is not None and bool(theirs) and ours <= TOLERATED * min(theirs)
        group = ahead[case["dtype"], case["training"], case["hidden_size"]]
        # float32 is measured with TF32 and without; dispatch does not tell them apart.
        group[case["batch"]] = won and group.get(case["batch"], True)
    steps = min(entry["case"]["steps"] for entry in cells.values())
    sizes = sorted({hidden for _, _, hidden in ahead})
    found = []
    for (dtype, training, hidden), batches in sorted(ahead.items()):
        most = 0
        for batch, won in sorted(batches.items()):
            if not won:
                break
            most = batch
        if most:
            below = max((size for size in sizes if size < hidden), default=0)
            sizes_held = f"hidden_size=({below + 1}, {hidden + 1}), batch=(0, {most + 1})"
            dtypes = f'frozenset({{"{dtype}"}})'
            found.append(
                f'Region("sequence", {training}, {dtypes}, {sizes_held}, steps=({steps}, UNBOUNDED)),'
            )
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.crossover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--backend", default="cuda")
    options = parser.parse_args(arguments)
    data = read(options.json)
    print(f"# {data['environment']['gpu']}, commit {data['environment']['commit']}")
    print("\n".join(regions(data["timing"], options.backend)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
