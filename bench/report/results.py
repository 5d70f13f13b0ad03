"""bench/results/README.md: every machine, its headline figures, the full tables, the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Optional

from bench.cases.case import Case
from bench.cases.suites import select
from bench.report import markdown, table, targets
from bench.report.store import read

SHOWN_CPU, SHOWN_GPU = "zen4", "h200"  # whose full tables are in the document
CONTENDERS = ("rnnfast", "rnnfast-cuda", "rnnfast-triton")  # of whom headlines speak
MOST_LOSSES = 8  # listed of one suite
Runs = dict[str, dict[str, dict]]  # by machine and name of the file

HEAD = """# Results

Written by `python -m bench report --all` from the files beside it, and compared by a test. How a cell is
measured and checked, what was tried, how to add a machine: [bench/README.md](../README.md). Older results are
in git's history. CPU results are of two cores of a virtual machine.
"""


def load(folder: Path) -> Runs:
    """The result files below `folder`: one folder a machine, one file a suite or tool."""
    return {
        machine.name: {path.stem: read(path) for path in sorted(machine.glob("*.json"))}
        for machine in sorted(folder.iterdir())
        if machine.is_dir()
    }


def document(folder: Path) -> str:
    runs = load(folder)
    core, layers = runs[SHOWN_CPU]["core"], runs[SHOWN_GPU]["gpu-layers"]
    pictures = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))
    parts = [
        HEAD.strip(),
        "## Machines",
        "\n".join(
            markdown.lines(
                ["machine", "processor", "file", "measured", "commit", "cells"], _files(runs), left=5
            )
        ),
        *_notes(runs),
        "## Headline figures",
        "A contender is first in a cell where no other library is faster. The last columns are geometric"
        " means of the others' time over ours, forward / training.",
        "\n".join(
            markdown.lines(
                ["machine", "suite", "contender", "first in", "over torch.nn.RNN", "over the best peer"],
                _headlines(runs),
                left=3,
            )
        ),
        "## Where a peer is ahead",
        "\n".join(_losses(runs)),
        "## Targets missed",
        "The targets are those of `bench/report/targets.py`, for the suite `core`.",
        "\n".join(_missed(runs)),
        f"## The suite core on {SHOWN_CPU}",
        markdown.all_cells(markdown.core_cells(core)),
        f"{markdown.origin(core)} 2 threads, float32, medians of alternating runs. {markdown.LOSS}",
        f"## Layers on {SHOWN_GPU}",
        'How many times as fast as `torch.nn.RNN`, which is cuDNN, `rnnfast.RNN(backend="cuda")` is, Python'
        " included: T = 512, forward / training.",
        markdown.layers_over_cudnn(layers, 512, (1, 16, 64, 256), "rnnfast-cuda"),
        f"{markdown.origin(layers)} Medians. {markdown.LOSS}",
        "## What a call costs",
        "Microseconds of a call with little to compute: T = B = 1, I = H = 64 (`python -m bench calls`).",
        _tool(runs, "calls", lambda data: {k: f"{m['median'] * 1e6:.1f}" for k, m in data["calls"].items()}),
        "## How near to the FMA peak",
        "Fractions of the peak measured beside them (`python -m bench ceiling`). torch's products are MKL's.",
        _tool(runs, "ceiling", _ceilings),
        "## Pictures",
        *(f"![{path}]({path})" for path in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _files(runs: Runs) -> Iterator[list[str]]:
    for machine, files in runs.items():
        for name, run in files.items():
            here = run["environment"]
            what = (here["gpu"] if "gpu" in name or name == "device" else here["cpu"]) or here["cpu"]
            link = f"[{name}]({machine}/{name}.json)"
            count = f"{len(run['cells'])} of {len(select(name))}" if "cells" in run else ""
            yield [machine, what, link, here["date"][:10], markdown.commits(run), count]


def _notes(runs: Runs) -> Iterator[str]:
    """What files say of themselves, the same sentence once."""
    said: dict[str, list[str]] = {}
    for machine, files in runs.items():
        for name, run in files.items():
            for note in run.get("notes", []):
                said.setdefault(note, []).append(f"{machine}/{name}")
    for note, names in said.items():
        yield f"{', '.join(names)}: {note}"


def _suites(runs: Runs) -> Iterator[tuple[str, str, list[dict]]]:
    """Machine, suite and cells; layers of different lengths apart."""
    for machine, files in runs.items():
        for name, run in files.items():
            cells = list(run.get("cells", {}).values())
            if name == "gpu-layers":
                for steps in sorted({cell["case"]["steps"] for cell in cells}, reverse=True):
                    yield machine, f"{name}, T = {steps}", [c for c in cells if c["case"]["steps"] == steps]
            elif cells:
                yield machine, name, cells


def _over(cells: Iterable[dict], name: str, peer: Callable[[dict], Optional[str]]) -> list[float]:
    found = (table.ratio(cell, peer(cell), name) for cell in cells)
    return [value for value in found if value is not None]


def _headlines(runs: Runs) -> Iterator[list[str]]:
    for machine, suite, cells in _suites(runs):
        for name in CONTENDERS:
            ratios = _over(cells, name, table.best_peer)
            if not ratios:
                continue
            first = sum(value >= 1 for value in ratios)
            means = []
            for peer in (lambda cell: table.TORCH, table.best_peer):
                both = [
                    _over((c for c in cells if c["case"]["training"] is training), name, peer)
                    for training in (False, True)
                ]
                means.append(" / ".join(table.number(geometric_mean(some)) if some else "-" for some in both))
            yield [machine, suite, name, f"{first} of {len(ratios)}", *means]


def _losses(runs: Runs) -> Iterator[str]:
    for machine, suite, cells in _suites(runs):
        for name in CONTENDERS[:2]:  # Triton's kernels are behind cuDNN in most cells
            lost = []
            for cell in cells:
                peer = table.best_peer(cell)
                value = table.ratio(cell, peer, name)
                if value is not None and value < 1:
                    key = Case(**cell["case"]).key.replace(" 2thr", "").replace(" cuda", "")
                    lost.append((value, f"{key}: {markdown.ratio(value)} of {peer}"))
            if lost:
                lost.sort()
                shown = "; ".join(text for _, text in lost[:MOST_LOSSES])
                more = f"; and {len(lost) - MOST_LOSSES} more" if len(lost) > MOST_LOSSES else ""
                yield f"- {machine}, {suite}, {name}: {shown}{more}."


def _missed(runs: Runs) -> Iterator[str]:
    for machine, files in runs.items():
        if "core" not in files:
            continue
        rows = targets.check(files["core"])
        missed = [
            f"{what}: {measured} of {wanted}" for what, wanted, measured, how in rows if how == "MISSED"
        ]
        met = sum(row[-1] == "met" for row in rows)
        yield f"- {machine} meets {met} of {len(rows)}" + "".join(f"\n  - {text}" for text in missed)


def _ceilings(data: dict) -> dict[str, str]:
    shown = ("torch product", "recurrence", "backward recurrence", "gradients")
    return {
        f"{layer}, {what}": f"{figures[what]:.0%}"
        for layer, figures in data["fractions"].items()
        for what in shown
        if what in figures
    }


def _tool(runs: Runs, name: str, figures: Callable[[dict], dict[str, str]]) -> str:
    """A column for each machine that has the file, a row for each figure."""
    columns = {machine: figures(files[name]) for machine, files in runs.items() if name in files}
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    table_rows = ([row, *(column.get(row, "-") for column in columns.values())] for row in rows)
    return "\n".join(markdown.lines([name, *columns], table_rows))
