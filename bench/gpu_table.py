"""The table that `bench.gpu` prints: us per step of every contender, and ours over cuDNN."""

from __future__ import annotations

THEIRS = "torch-rnn"


def table(cells: dict[str, dict]) -> str:
    """Markdown, a row for each cell that was timed."""
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell["results"]))
    ours = [name for name in names if name != THEIRS]
    lines = [
        "| " + " | ".join(["us per step", *names, "best of ours, times as fast as nn.RNN"]) + " |",
        "|---|" + "---:|" * (len(names) + 1),
    ]
    for key, cell in cells.items():
        seconds = {name: result.get("median") for name, result in cell["results"].items()}
        steps = cell["case"]["steps"]
        figures = [
            f"{seconds[name] / steps * 1e6:.3g}"
            if seconds.get(name)
            else cell["results"].get(name, {}).get("status", "-")
            for name in names
        ]
        best = min((seconds[name] for name in ours if seconds.get(name)), default=None)
        ratio = f"{seconds[THEIRS] / best:.2f}" if best and seconds.get(THEIRS) else "-"
        lines.append("| " + " | ".join([key, *figures, ratio]) + " |")
    return "\n".join(lines)
