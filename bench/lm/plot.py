"""The picture: perplexity against the training time of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.lm.report import Row
from bench.lm.train import Mark


def plot(path: Path, curves: Mapping[str, Sequence[Mark]], baseline: Row) -> None:
    """Draw training perplexity as lines, held-out perplexity as dots, a baseline's as a level, into `path`.

    Raises ImportError where matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, marks in curves.items():
        trained = [(mark.seconds, mark.training_perplexity) for mark in marks]
        (line,) = axes.plot(*zip(*trained, strict=True), linewidth=0.8, alpha=0.6, label=f"{name}, training")
        held_out = [
            (mark.seconds, mark.held_out_perplexity) for mark in marks if mark.held_out_perplexity is not None
        ]
        axes.plot(*zip(*held_out, strict=True), "o--", color=line.get_color(), label=f"{name}, held out")
    level = baseline.held_out_perplexity
    axes.axhline(level, color="gray", linestyle=":", label=f"{baseline.model}, held out")
    axes.set(xscale="log", yscale="log", xlabel="training time, seconds", ylabel="perplexity")
    axes.set_title("Same weights, same minibatches: perplexity against wall time")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
