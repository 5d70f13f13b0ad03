"""From JSON files to the README and to pictures: `python -m bench.report FILE [FILE ...]`.

Writes the table of the first file's cells between the markers of the README, and nothing else in it, and
pictures. The table has every dense float32 cell of the core shapes, those we lose included, and is left as it
is where the file has none of them (one of a GPU, say); pictures take all files' cells.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import store, table
from bench.shapes import core

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
ROOT = Path(__file__).parent.parent


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.report", description="README table and pictures.")
    p.add_argument("files", nargs="+", type=Path, help="JSON files of bench.run")
    p.add_argument("--readme", type=Path, default=ROOT / "README.md")
    p.add_argument(
        "--pictures", type=Path, default=ROOT / "bench" / "results", help="folder for the pictures"
    )
    options = p.parse_args(arguments)
    runs = [store.read(path) for path in options.files]
    for path, run in zip(options.files, runs, strict=True):
        if run["environment"]["cpu"] != runs[0]["environment"]["cpu"]:
            p.error(
                f"{path} was measured on another machine than {options.files[0]}: pictures can't show both"
            )

    if any(case.key in runs[0]["cells"] for case in core()):
        text = options.readme.read_text()
        options.readme.write_text(between_markers(text, markdown(runs[0])))
        print(options.readme)

    from bench import pictures  # matplotlib is an optional extra

    cells = {key: cell for run in runs for key, cell in run["cells"].items()}
    memory = {name: found for run in runs for name, found in run["memory"].items()}
    options.pictures.mkdir(parents=True, exist_ok=True)
    for path in pictures.draw_all(cells, memory, runs[0], options.pictures):
        print(path)
    return 0


def between_markers(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced.

    Raises ValueError unless each marker is there once, and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README needs one {BEGIN} and after it one {END}")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def markdown(run: dict) -> str:
    """The core shapes: microseconds per step and how many times as long torch and the best peer take."""
    head = "| shape | mode | rnnfast, us/step | torch.nn.RNN | ratio | best other | ratio | of the bound |"
    lines = [head, "|---|---|---:|---:|---:|---|---:|---:|"]
    for case in core():
        cell = run["cells"].get(case.key)
        if cell is not None:
            lines.append(_line(case.shape.removesuffix(f" {case.threads}thr"), cell))
    here = run["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    note = (
        f"{here['cpu']}, 2 threads, float32, medians of alternating runs; commit {here['commit']}, "
        f"{here['date'][:10]}; {versions}. A ratio under 1 (bold) is a loss."
    )
    return "\n".join([*lines, "", note])


def _line(shape: str, cell: dict) -> str:
    others = {**cell, "results": {n: r for n, r in cell["results"].items() if n != table.TORCH}}
    rival = table.best_peer(others)
    time = f"{table.number(table.per_step(cell, rival))} ({rival})" if rival else "-"
    ours = table.timed(cell, table.OURS)
    fields = [
        shape,
        table.mode(cell),
        table.number(table.per_step(cell, table.OURS)) if ours else cell["results"][table.OURS]["status"],
        table.number(table.per_step(cell, table.TORCH)),
        _ratio(table.ratio(cell, table.TORCH)),
        time,
        _ratio(table.ratio(cell, rival)),
        table.percent(ours.get("fraction") if ours else None),
    ]
    return f"| {' | '.join(fields)} |"


def _ratio(value: float | None) -> str:
    text = table.number(value)
    return f"**{text}**" if value is not None and value < 1 else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
