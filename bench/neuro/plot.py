"""The picture: by task, the losses against each network's time, and the psychometric curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from bench.neuro.psychometric import THRESHOLD, Psychometric
from bench.neuro.tasks import Task
from bench.neuro.train import Trainer


def plot(
    path: Path, results: Sequence[tuple[Task, Sequence[Trainer], Mapping[float, float], Psychometric]]
) -> None:
    """Raises ImportError where matplotlib is not installed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), 2, squeeze=False)
    for (left, right), (task, trainers, correct, fitted) in zip(grid, results, strict=True):
        for trainer in trainers:
            left.plot(list(accumulate(trainer.seconds)), trainer.losses, linewidth=0.8, label=trainer.name)
        left.set(xlabel="seconds of its own training", ylabel="loss", yscale="log")
        left.set_title(f"{task.name}: same weights, trials and noise")
        left.legend()
        levels = [level for level in correct if level > 0]
        low, high = math.log(levels[0]), math.log(levels[-1])
        fine = [math.exp(low + (high - low) * i / 200) for i in range(201)]
        right.plot(fine, [task.ideal(level) for level in fine], ":", color="gray", label="ideal observer")
        right.plot(fine, [fitted(level) for level in fine], color="C0", label="fitted")
        right.plot(levels, [correct[level] for level in levels], "o", color="C0", label="network")
        right.axhline(THRESHOLD, color="gray", linewidth=0.5)
        threshold = fitted.threshold()
        if levels[0] < threshold < levels[-1]:
            right.axvline(threshold, color="gray", linewidth=0.5)
        right.set(xscale="log", xlabel=task.unit, ylabel="part correct", ylim=(0.45, 1.02))
        right.set_title(f"{THRESHOLD:.0%} correct at {threshold:.3g}")
        right.legend()
    figure.savefig(path, dpi=120)
