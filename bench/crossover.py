"""Dispatch's table of where a GPU backend is ahead, from what `bench.gpu` measured:

    python -m bench.crossover DIR/gpu.json [--backend cuda]

prints the entry of `rnnfast.dispatch.FASTER` for the backend. A region covers one dtype, forward or
training, one measured hidden size and those under it down to the next, batches up to the largest one at and
under which every measured cell was won or lost by less than 3%, and as many steps as the cells had, or more.
Where shorter sequences were won, too, longer ones of larger batches may have a region of their own. Nothing
is claimed beyond what was measured: not for larger batches or layers, nor for fewer steps.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from bench.store import read

TOLERATED = 1.03
THEIRS = "torch-rnn"


def regions(cells: dict[str, dict], backend: str) -> list[str]:
    """The source of each region."""
    ahead: dict[tuple[str, bool, int, int], dict[int, bool]] = defaultdict(dict)
    for entry in cells.values():
        case, results = entry["case"], entry["results"]
        ours = results.get(f"rnnfast-{backend}", {}).get("median")
        theirs = results.get(THEIRS, {}).get("median")
        won = bool(ours and theirs) and ours <= TOLERATED * theirs
        group = ahead[case["dtype"], case["training"], case["hidden_size"], case["steps"]]
        # float32 is measured with TF32 and without; dispatch does not tell them apart.
        group[case["batch"]] = won and group.get(case["batch"], True)
    sizes = sorted({hidden for _, _, hidden, _ in ahead})
    found = []
    covered: dict[tuple[str, bool, int], int] = defaultdict(int)  # the largest batch of shorter sequences
    for (dtype, training, hidden, steps), batches in sorted(ahead.items()):
        longer = [
            won for key, won in ahead.items() if key[:3] == (dtype, training, hidden) and key[3] > steps
        ]
        most = 0
        for batch, won in sorted(batches.items()):
            if not (won and all(other.get(batch, False) for other in longer)):
                break
            most = batch
        if most > covered[dtype, training, hidden]:
            covered[dtype, training, hidden] = most
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
