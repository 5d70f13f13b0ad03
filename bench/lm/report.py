"""What a run found, as a table for people and as JSON for later comparison."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

from bench.lm.agreement import Agreement


@dataclass(frozen=True)
class Row:
    """One model of the table; None where a figure means nothing for it."""

    model: str
    parameters: int
    training_perplexity: float | None
    held_out_perplexity: float
    tokens_per_second: float
    ratio_to_torch: float | None

    def cells(self) -> list[str]:
        return [
            self.model,
            f"{self.parameters:,}",
            _figure(self.training_perplexity, ".3f"),
            _figure(self.held_out_perplexity, ".3f"),
            f"{self.tokens_per_second:,.0f}",
            _figure(self.ratio_to_torch, ".2f"),
        ]


HEADER = ["model", "parameters", "training perplexity", "held-out perplexity", "tokens/s", "ratio to torch"]


def table(rows: list[Row]) -> str:
    """The rows in columns, names to the left and figures to the right."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    template = "  ".join(["{:<%d}", *["{:>%d}"] * (len(HEADER) - 1)]) % tuple(widths)
    return "\n".join(template.format(*line) for line in lines)


def describe(agreement: Agreement, fast: Row, reference: Row) -> str:
    """Agreement of the loss curves in words."""
    verdict = "within" if agreement.agrees else "BEYOND"
    return (
        f"Losses of {fast.model} and {reference.model}, same weights and minibatches, relative difference:\n"
        f"  first {agreement.early_steps} steps: at most {agreement.early_difference:.1e}, {verdict} what "
        f"rounding explains (n sqrt(K) eps: {agreement.tolerance:.1e} at the last)\n"
        f"  all {agreement.steps} steps: at most {agreement.difference:.1e}; held-out perplexity "
        f"{fast.held_out_perplexity:.4f} and {reference.held_out_perplexity:.4f}"
    )


def environment() -> dict[str, Any]:
    """What the figures depend on besides the settings."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
