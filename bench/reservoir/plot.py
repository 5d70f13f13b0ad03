"""The picture: a free-running forecast of each series above its normalised error, and the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.reservoir.forecast import Forecast, Problem
from bench.reservoir.scores import VALID
from bench.reservoir.speed import Speed


def plot(
    path: Path,
    problems: Sequence[Problem],
    found: Mapping[str, Mapping[str, Forecast]],
    speeds: Sequence[Speed],
) -> None:
    """Raises ImportError where matplotlib is not installed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * (len(problems) + 1), 6.5), layout="constrained")
    grid = figure.subplots(2, len(problems) + 1, squeeze=False)
    for column, problem in enumerate(problems):
        series, forecasts = problem.series, found[problem.series.name]
        unit = series.interval * (series.lyapunov or 1.0)
        time = [unit * (step + 1) for step in range(series.horizon)]
        top, bottom = grid[0, column], grid[1, column]
        top.plot(time, problem.truths[:, 0, 0], color="black", linewidth=2, alpha=0.5, label="series")
        for name, forecast in forecasts.items():
            top.plot(time, [row[0] for row in forecast.first], linewidth=0.9, label=name)
            bottom.plot(time, forecast.curve, linewidth=0.9, label=name)
        top.set_title(f"{series.name}: one free-running forecast")
        bottom.axhline(VALID, color="gray", linestyle=":", linewidth=0.8)
        label = "time, Lyapunov times" if series.lyapunov else "time"
        bottom.set(yscale="log", xlabel=label, ylabel=f"NRMSE of {len(problem.starts)} forecasts")
        top.legend(fontsize="small")
    _speeds(grid[0, -1], speeds)
    grid[1, -1].axis("off")
    figure.savefig(path, dpi=120)


def _speeds(axes, speeds: Sequence[Speed]) -> None:
    labels, times = [], []
    for speed in speeds:
        for name, measured in speed.seconds.items():
            labels.append(f"{name}, {speed.units}")
            times.append(measured.median / speed.steps * 1e6)
    axes.barh(range(len(labels)), times, color=["C0" if "rnnfast" in label else "C1" for label in labels])
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="microseconds a step", title="States of one series, by units")
