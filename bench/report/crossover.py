"""Dispatch's table of where a GPU backend is ahead, from files of the suites gpu, gpu-layers and gpu-steps:

    python -m bench crossover FILE ... [--backend cuda] [--write]

prints `rnnfast/crossovers.py`, or writes that file. A row covers steps or sequences, forward or
training, one dtype, one measured hidden size and those under it down to the next, batches up to the largest
one at and under which every measured cell was won or lost by less than 3%, and as many steps as the cells
had, or more. Where shorter sequences were won, too, longer ones of larger batches may have a row of their
own. float32 counts where it was measured and won with TF32 and without. Of several files a cell counts as won
if it was lost in none. Nothing is claimed beyond what was measured, not for larger batches or layers, nor for
fewer steps; but more steps than were measured of a batch are taken to be no worse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench import command
from bench.report.store import read_cells
from bench.report.table import TORCH

TOLERATED = 1.03
ROOT = Path(__file__).parents[2]
TABLE = ROOT / "rnnfast" / "crossovers.py"


def rows(measured: Iterable[dict], backend: str) -> list[tuple]:
    """(kind, training, dtype, least and largest hidden size, largest batch, fewest steps) of each region."""
    ahead: dict[tuple, dict[int, bool]] = defaultdict(dict)  # by all of a row but for its batch
    precisions = defaultdict(set)
    for entry in measured:
        case, results = entry["case"], entry["results"]
        ours = results.get(f"rnnfast-{backend}", {}).get("median")
        theirs = results.get(TORCH, {}).get("median")
        won = bool(ours and theirs) and ours <= TOLERATED * theirs
        key = (case["kind"], case["training"], case["dtype"], case["hidden_size"], case["steps"])
        precisions[key].add(case["tf32"])
        # dispatch does not tell TF32 from exact float32.
        ahead[key][case["batch"]] = won and ahead[key].get(case["batch"], True)
    ahead = {key: won for key, won in ahead.items() if key[2] != "float32" or len(precisions[key]) == 2}
    found = []
    covered: dict[tuple, int] = defaultdict(int)  # the largest batch of shorter sequences
    for key, batches in sorted(ahead.items()):
        *layer, hidden, steps = key
        longer = [won for other, won in ahead.items() if other[:4] == key[:4] and other[4] > steps]
        most = 0
        for batch, won in sorted(batches.items()):
            if not (won and all(other.get(batch, True) for other in longer)):
                break
            most = batch
        if most > covered[key[:4]]:
            covered[key[:4]] = most
            below = max(
                (other[3] for other in ahead if other[:3] == key[:3] and other[3] < hidden), default=0
            )
            found.append((*layer, below + 1, hidden, most, steps))
    return found


def cells(run: dict) -> Iterator[dict]:
    """What a file has of plain layers and steps."""
    for cell in run["cells"].values():
        case = cell["case"]
        plain = case["layout"] == "dense" and case["nonlinearity"] == "tanh"
        if plain and case["input_size"] == case["hidden_size"]:
            yield cell


def source(path: Path, run: dict) -> str:
    """How the table names a file: by its path in the repository, if it is there."""
    name = path.resolve()
    name = name.relative_to(ROOT) if name.is_relative_to(ROOT) else Path(path.name)
    here = run["environment"]
    return f"{name.as_posix()}: {here['gpu']}, commit {here['commit']}"


def main(arguments: list[str]) -> int:
    parser = command.parser("crossover", __doc__)
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--write", action="store_true", help="write rnnfast/crossovers.py")
    options = parser.parse_args(arguments)
    try:
        runs = [read_cells(path) for path in options.json]
    except ValueError as error:
        parser.error(str(error))
    sources = [source(path, run) for path, run in zip(options.json, runs, strict=True)]
    lines = [
        f'"""Where the {options.backend} backend was measured to be ahead of cuDNN:',
        "",
        *(f"- {name}" for name in sources),
        "",
        "Written by `python -m bench crossover`, whose --help says what a row is.",
        '"""',
        "",
        "# kind, training, dtype, least and largest hidden size, largest batch, fewest steps",
        f"{options.backend.upper()} = (",
        *(f"    {row}," for row in rows([c for run in runs for c in cells(run)], options.backend)),
        ")",
    ]
    text = "\n".join(lines).replace("'", '"') + "\n"
    if options.write:
        TABLE.write_text(text)
    else:
        print(text, end="")
    return 0
