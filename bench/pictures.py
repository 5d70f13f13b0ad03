"""The report's pictures. Each function draws one from cells and says nothing where there is nothing to
draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Optional

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

from bench import roofline, table
from bench.shapes import Case

Cells = dict[str, dict]
COLOURS = {
    "rnnfast": "black",
    "torch-rnn": "C0",
    "onnxruntime": "C1",
    "openvino": "C2",
    "jax-scan": "C3",
    "torch-cell-loop": "C4",
}
MODES = ("forward", "training")


def draw_all(cells: Cells, memory: dict, run: dict, folder: Path) -> Iterable[Path]:
    """Draws into `folder`; yields the paths."""
    drawings: dict[str, Callable[[], Any]] = {
        "ratio.png": lambda: ratio_map(cells),
        "hidden.png": lambda: against_hidden(cells, run["roofline"]),
        "scaling.png": lambda: scaling(cells),
        "memory.png": lambda: memory_bars(memory),
    }
    for name, draw in drawings.items():
        figure = draw()
        if figure is not None:
            figure.suptitle(
                f"{run['environment']['cpu']}, commit {run['environment']['commit']}", fontsize=7, y=0.995
            )
            figure.tight_layout()
            figure.savefig(folder / name, dpi=120)
            plt.close(figure)
            yield folder / name


def ratio_map(cells: Cells) -> Any:
    """Heat map over B x H: the best peer's time over ours. Blue: we are faster; red: we lose."""
    plane = [(Case(**c["case"]), c) for c in cells.values()]
    plane = [(case, c) for case, c in plane if _plain(case) and case.threads == 2 and case.steps in (35, 100)]
    batches = sorted({case.batch for case, _ in plane})
    hidden = sorted({case.hidden_size for case, _ in plane})
    if not plane:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), squeeze=False)
    for axis, mode in zip(axes[0], MODES, strict=True):
        grid = [[float("nan")] * len(hidden) for _ in batches]
        for case, cell in plane:
            value = table.ratio(cell, table.best_peer(cell))
            if case.mode == mode and value is not None:
                i, j = batches.index(case.batch), hidden.index(case.hidden_size)
                grid[i][j] = value
                axis.text(j, i, table.number(value, 2), ha="center", va="center", fontsize=8)
        image = axis.imshow(grid, norm=LogNorm(1 / 4, 4), cmap="RdBu", aspect="auto")
        axis.set(title=f"{mode}: best peer's time over ours", xlabel="H (= I)", ylabel="B")
        axis.set_xticks(range(len(hidden)), hidden)
        axis.set_yticks(range(len(batches)), batches)
        figure.colorbar(image, ax=axis)
    return figure


def against_hidden(cells: Cells, machines: dict) -> Any:
    """Microseconds per step against H at B = 1 and 32, with the roofline's floor."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 4))
    drawn = False
    for axis, (batch, mode) in zip(axes, [(b, m) for m in MODES for b in (1, 32)], strict=True):
        chosen = [
            (case, cell)
            for case, cell in ((Case(**c["case"]), c) for c in cells.values())
            if _plain(case)
            and (case.batch, case.mode, case.threads) == (batch, mode, 2)
            and case.steps in (35, 100)
        ]
        drawn |= _lines(axis, chosen, lambda case: case.hidden_size)
        machine = machines.get("2")
        if machine and chosen:
            peaks = roofline.Machine(**machine)
            floor = sorted(
                (c.hidden_size, roofline.bound(c, peaks).seconds / c.steps * 1e6) for c, _ in chosen
            )
            axis.plot(*zip(*floor, strict=True), "k:", label="floor")
        axis.set(
            title=f"B = {batch}, {mode}", xlabel="H (= I)", ylabel="us per step", xscale="log", yscale="log"
        )
        axis.legend(fontsize=7)
    return figure if drawn else None


def scaling(cells: Cells) -> Any:
    """Microseconds per step against T, and the gain of two threads over one against H."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    pairs = [(Case(**c["case"]), c) for c in cells.values()]
    by_steps = [
        (case, c) for case, c in pairs if _plain(case) and not case.training and case.threads == 2
        and (case.batch, case.hidden_size) == (32, 256)
    ]  # fmt: skip
    drawn = _lines(axes[0], by_steps, lambda case: case.steps)
    axes[0].set(
        title="B = 32, H = 256, forward", xlabel="T", ylabel="us per step", xscale="log", yscale="log"
    )
    axes[0].legend(fontsize=7)
    for batch in (1, 32):
        for name, style in ((table.OURS, "-"), (table.TORCH, "--")):
            gains = sorted(_thread_gains(pairs, batch, name))
            if gains:
                drawn = True
                axes[1].plot(*zip(*gains, strict=True), style, marker="o", ms=3, label=f"{name}, B = {batch}")
    axes[1].set(
        title="two threads over one, forward, T = 100", xlabel="H (= I)", ylabel="times as fast", xscale="log"
    )
    axes[1].axhline(1, color="grey", lw=0.5)
    axes[1].legend(fontsize=7)
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
    axis.legend(fontsize=7)
    return figure


def _plain(case: Case) -> bool:
    kinds = (case.kind, case.layout, case.dtype, case.nonlinearity, case.device)
    return kinds == ("sequence", "dense", "float32", "tanh", "cpu") and case.input_size == case.hidden_size


def _lines(axis: Any, chosen: list[tuple[Case, dict]], x: Callable[[Case], int]) -> bool:
    """One line per contender; whether there was any."""
    names = [name for name in COLOURS if any(table.timed(cell, name) for _, cell in chosen)]
    for name in names:
        points = sorted(
            (x(case), table.per_step(cell, name)) for case, cell in chosen if table.timed(cell, name)
        )
        axis.plot(*zip(*points, strict=True), color=COLOURS[name], marker="o", ms=3, label=name)
    return bool(names)


def _thread_gains(pairs: list[tuple[Case, dict]], batch: int, name: str) -> Iterable[tuple[int, float]]:
    times: dict[tuple[int, int], Optional[float]] = {}
    for case, cell in pairs:
        if _plain(case) and case.batch == batch and case.steps == 100 and not case.training:
            times[case.hidden_size, case.threads] = table.per_step(cell, name)
    for (hidden, threads), one in times.items():
        two = times.get((hidden, 2))
        if threads == 1 and one and two:
            yield hidden, one / two
