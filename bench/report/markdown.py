"""Tables of cells in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional

from bench.cases.case import Case
from bench.cases.precision import KINDS
from bench.cases.suites import CORE, core
from bench.report import table

LOSS = "A ratio under 1 (bold) is a loss."
KIND_NAMES = {kind: "float32, TF32 allowed" if kind == "tf32" else kind for kind in KINDS}


def lines(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """The first `left` columns are flush left, the others right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return ["| " + " | ".join(row) + " |" for row in [list(header), rule, *map(list, rows)]]


def ratio(value: Optional[float]) -> str:
    """Two or three digits; bold under 1, with as many as show that it is."""
    if value is None:
        return "-"
    text = table.number(value)
    if value >= 1:
        return text
    return f"**{value:.4f}**" if text == "1.00" else f"**{text}**"


def others(cell: dict) -> dict:
    """The cell without torch.nn.RNN."""
    return {**cell, "results": {name: r for name, r in cell["results"].items() if name != table.TORCH}}


def all_cells(cells: dict[str, dict]) -> str:
    """A row for each cell: microseconds per step, how many times as long torch and the best other take."""
    header = [
        "shape",
        "mode",
        "rnnfast, us/step",
        "torch.nn.RNN",
        "ratio",
        "best other",
        "ratio",
        "of the bound",
    ]
    return "\n".join(lines(header, map(_row, cells.values()), left=2))


def _row(cell: dict) -> list[str]:
    name, case = table.ours(cell), Case(**cell["case"])
    result, rival = table.timed(cell, name), table.best_peer(others(cell))
    missing = cell["results"].get(name, {"status": "not run"})["status"]
    return [
        case.shape.removesuffix(f" {case.threads}thr"),
        case.mode,
        table.number(table.per_step(cell, name)) if result else missing,
        table.number(table.per_step(cell, table.TORCH)),
        ratio(table.ratio(cell, table.TORCH)),
        f"{table.number(table.per_step(cell, rival))} ({rival})" if rival else "-",
        ratio(table.ratio(cell, rival)),
        table.percent(result.get("fraction") if result else None),
    ]


def core_cells(run: dict) -> dict[str, dict]:
    return {case.key: run["cells"][case.key] for case in core() if case.key in run["cells"]}


def ten_rows(run: dict) -> str:
    """The sequences of `core`, forward and training side by side: the README's table."""
    header = ["T, B, I, H", "forward, us/step", "over torch", "over the best other"]
    header += ["training, us/step", "over torch", "over the best other"]
    rows = []
    for shape in CORE:
        row = [f"{shape.steps}, {shape.batch}, {shape.input_size}, {shape.hidden_size}"]
        for training in (False, True):
            cell = run["cells"].get(Case(**{**shape.to_dict(), "training": training}).key, {"results": {}})
            rival = table.best_peer(others(cell))
            time = table.number(table.per_step(cell, table.ours(cell)))
            row += [time, ratio(table.ratio(cell, table.TORCH)), ratio(table.ratio(cell, rival))]
        rows.append(row)
    return "\n".join(lines(header, rows))


def layers_over_cudnn(run: dict, steps: int, batches: Sequence[int], backend: str) -> str:
    """How many times as fast as nn.RNN a backend is, forward / training, by kind: of `gpu-layers`."""
    found: dict[tuple[int, int], dict[tuple[str, bool], str]] = {}
    for cell in run["cells"].values():
        case = Case(**cell["case"])
        if case.steps == steps and case.batch in batches:
            value = table.ratio(cell, table.TORCH, backend)
            short = "-" if value is None else f"{value:.2g}" if value >= 1 else f"**{value:.2f}**"
            kind = "tf32" if case.tf32 else case.dtype
            found.setdefault((case.hidden_size, case.batch), {})[kind, case.training] = short
    rows = [
        [str(hidden), str(batch), *(f"{row.get((k, False), '-')} / {row.get((k, True), '-')}" for k in KINDS)]
        for (hidden, batch), row in sorted(found.items())
    ]
    return "\n".join(lines(["I = H", "B", *KIND_NAMES.values()], rows, left=0))


def origin(run: dict) -> str:
    """Where and with what a file was measured."""
    here = run["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    machine = here["gpu"] or here["cpu"]
    if here["gpu"] and "driver" in here:
        machine += f", driver {here['driver']}, cuDNN {here['cudnn']}"
    return f"{machine}; commit {commits(run)}, {here['date'][:10]}; {versions}."


def commits(run: dict) -> str:
    """The commit of a file, and those of cells that were measured again."""
    again = [cell["commit"] for cell in run.get("cells", {}).values() if "commit" in cell]
    parts = [f"{again.count(commit)} cells {commit}" for commit in dict.fromkeys(again)]
    return run["environment"]["commit"] + (f" ({', '.join(parts)})" if parts else "")
