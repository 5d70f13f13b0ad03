"""The report's pictures. Each function draws one from cells and says nothing where there is nothing to
draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Optional

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

from bench.cases.case import Case
from bench.report import table

Cells = dict[str, dict]
Pairs = list[tuple[Case, dict]]  # a case and its cell
COLOURS = {
    "rnnfast": "black",
    "torch-rnn": "C0",
    "onnxruntime": "C1",
    "openvino": "C2",
    "jax-scan": "C3",
    "torch-cell-loop": "C4",
    "flaggems": "C5",
    "xma": "C6",
}
MODES = ("forward", "training")
# What is drawn: device, dtype, and how the names of the pictures begin.
KINDS = (
    ("cpu", "float32", ""),
    ("cuda", "float32", "gpu-float32-"),
    ("cuda", "bfloat16", "gpu-bfloat16-"),
)


def draw_all(cells: Cells, memory: dict, run: dict, folder: Path) -> Iterable[Path]:
    """Draws into `folder`; yields the paths."""
    drawings: dict[str, Callable[[], Any]] = {"memory.png": lambda: memory_bars(memory)}
    for device, dtype, start in KINDS:
        pairs = [(Case(**cell["case"]), cell) for cell in cells.values()]
        plain = [(case, cell) for case, cell in pairs if _plain(case, device, dtype)]
        for name, draw in (("ratio", ratio_map), ("hidden", against_hidden), ("scaling", scaling)):
            drawings[f"{start}{name}.png"] = partial(draw, plain)
    for name, draw in drawings.items():
        figure = draw()
        if figure is not None:
            here = run["environment"]
            where = here["gpu"] if name.startswith("gpu") else here["cpu"]
            figure.suptitle(f"{where}, commit {here['commit']}", fontsize=7, y=0.995)
            figure.tight_layout()
            figure.savefig(folder / name, dpi=120)
            plt.close(figure)
            yield folder / name


def ratio_map(plain: Pairs) -> Any:
    """Heat map over B x H: the best peer's time over ours. Blue: we are faster; red: we lose."""
    plane = _plane(plain)
    if not plane:
        return None
    batches = sorted({batch for _, batch, _ in plane})
    hidden = sorted({size for _, _, size in plane})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), squeeze=False)
    for axis, mode in zip(axes[0], MODES, strict=True):
        grid = [[float("nan")] * len(hidden) for _ in batches]
        for (cell_mode, batch, size), (_, cell) in plane.items():
            value = table.ratio(cell, table.best_peer(cell))
            if cell_mode == mode and value is not None:
                i, j = batches.index(batch), hidden.index(size)
                grid[i][j] = value
                colour = "black" if 0.4 < value < 2.5 else "white"
                axis.text(j, i, table.number(value, 2), ha="center", va="center", fontsize=8, color=colour)
        image = axis.imshow(grid, norm=LogNorm(1 / 4, 4), cmap="RdBu", aspect="auto")
        axis.set(title=f"{mode}: best peer's time over ours", xlabel="H (= I)", ylabel="B")
        axis.set_xticks(range(len(hidden)), hidden)
        axis.set_yticks(range(len(batches)), batches)
        bar = figure.colorbar(image, ax=axis)
        bar.set_ticks([1 / 4, 1 / 2, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
        bar.minorticks_off()
    return figure


def against_hidden(plain: Pairs) -> Any:
    """Microseconds per step against H at B = 1 and 32, with the roofline's floor."""
    plane = _plane(plain)
    if not plane:
        return None
    figure, axes = plt.subplots(1, 4, figsize=(15, 4))
    for axis, (mode, batch) in zip(axes, [(m, b) for m in MODES for b in (1, 32)], strict=True):
        chosen = [pair for key, pair in plane.items() if key[:2] == (mode, batch)]
        _lines(axis, chosen, lambda case: case.hidden_size)
        floor = sorted(
            (case.hidden_size, cell["bound_seconds"] / case.steps * 1e6)
            for case, cell in chosen
            if "bound_seconds" in cell
        )
        if floor:
            axis.plot(*zip(*floor, strict=True), "k:", label="floor")
        axis.set(title=f"B = {batch}, {mode}", xlabel="H (= I)", ylabel="us per step")
        _legend(axis)
    return figure


def scaling(plain: Pairs) -> Any:
    """Microseconds per step against T, and the gain of two threads over one against H."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    by_steps = [pair for pair in plain if _at(pair[0]) == (32, 256, 2, "forward")]
    drawn = _lines(axes[0], by_steps, lambda case: case.steps)
    axes[0].set(title="B = 32, H = 256, forward", xlabel="T", ylabel="us per step")
    _legend(axes[0])
    by_threads = False
    for batch in (1, 32):
        for name, style in ((table.OURS, "-"), (table.TORCH, "--")):
            gains = sorted(_thread_gains(plain, batch, name))
            if gains:
                drawn = by_threads = True
                axes[1].semilogx(
                    *zip(*gains, strict=True), style, marker="o", ms=3, label=f"{name}, B = {batch}"
                )
                _ticks(axes[1], {hidden for hidden, _ in gains})
    axes[1].set(title="two threads over one, forward, T = 100", xlabel="H (= I)", ylabel="times as fast")
    axes[1].axhline(1, color="grey", lw=0.5)
    axes[1].set_visible(by_threads)
    _legend(axes[1])
    return figure if drawn else None


def memory_bars(memory: dict) -> Any:
    found = [(name, m["live"], m["resident"]) for name, m in memory.items() if "live" in m]
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(7, 3))
    names, live, resident = zip(*found, strict=True)
    places = range(len(names))
    axis.barh([p + 0.2 for p in places], [b / 2**20 for b in live], 0.4, label="live")
    axis.barh([p - 0.2 for p in places], [b / 2**20 for b in resident], 0.4, label="resident")
    axis.set_yticks(places, names)
    axis.set(title="peak memory of a training step, T = 1000, B = 32, H = 256", xlabel="MiB")
    _legend(axis)
    return figure


def _plain(case: Case, device: str, dtype: str) -> bool:
    kinds = (case.kind, case.layout, case.nonlinearity, case.device, case.dtype)
    plain = kinds == ("sequence", "dense", "tanh", device, dtype) and not case.tf32
    return plain and case.input_size == case.hidden_size


def _at(case: Case) -> tuple[int, int, int, str]:
    return case.batch, case.hidden_size, case.threads, case.mode


def _plane(plain: Pairs) -> dict[tuple[str, int, int], tuple[Case, dict]]:
    """The B x H plane by (mode, B, H): T = 100, or 35 where that is all there is."""
    chosen = [(case, cell) for case, cell in plain if case.threads == 2 and case.steps in (35, 100)]
    chosen.sort(key=lambda pair: pair[0].steps)
    return {(case.mode, case.batch, case.hidden_size): (case, cell) for case, cell in chosen}


def _lines(axis: Any, chosen: Pairs, x: Callable[[Case], int]) -> bool:
    """One line per contender, both axes logarithmic; whether there was any."""
    names = [name for name in COLOURS if any(table.timed(cell, name) for _, cell in chosen)]
    for name in names:
        points = sorted(
            (x(case), table.per_step(cell, name)) for case, cell in chosen if table.timed(cell, name)
        )
        axis.loglog(*zip(*points, strict=True), color=COLOURS[name], marker="o", ms=3, label=name)
    _ticks(axis, {x(case) for case, _ in chosen})
    return bool(names)


def _ticks(axis: Any, values: set[int]) -> None:
    """The measured values and no others, on a logarithmic axis."""
    axis.set_xticks(sorted(values), [str(value) for value in sorted(values)], fontsize=7)
    axis.set_xticks([], minor=True)


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


def _thread_gains(plain: Pairs, batch: int, name: str) -> Iterable[tuple[int, float]]:
    times: dict[tuple[int, int], Optional[float]] = {}
    for case, cell in plain:
        if case.batch == batch and case.steps == 100 and not case.training:
            times[case.hidden_size, case.threads] = table.per_step(cell, name)
    for (hidden, threads), one in times.items():
        two = times.get((hidden, 2))
        if threads == 1 and one and two:
            yield hidden, one / two
