"""Two implementations trained from the same weights on the same minibatches: do they learn the same?

They round differently, and training feeds each step's rounding error into the next step's weights. As long
as these errors merely add up, the relative difference of the losses after n steps is at most

    n * sqrt(K) * eps

with K the length of the longest sum in a step, whose own rounding errors partly cancel. Later the dynamics
may amplify any difference exponentially, between two correct implementations too: with SGD at a large step,
float64 curves drift apart by 1e-8 within 200 steps. From there on only what was learnt can be compared, by
held-out perplexity. So the first steps are checked and the whole run is reported. A wrong gradient shows at
the second loss already, far outside the tolerance. (A learning rate so large that nothing is learnt amplifies
from the first step on, and fails the check too.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EARLY_STEPS = 20


@dataclass(frozen=True)
class Agreement:
    """The largest relative difference of two loss curves, early and over the whole run."""

    early_steps: int
    early_difference: float
    tolerance: float  # at the last early step
    steps: int
    difference: float
    agrees: bool


def compare(losses: Tensor, reference: Tensor, dtype: torch.dtype, longest_sum: int) -> Agreement:
    """Compare two loss curves [steps], computed in `dtype`; a loss that is NaN does not agree."""
    difference = (losses - reference).abs() / reference.abs()
    early = difference[:EARLY_STEPS]
    allowed = torch.arange(1, len(early) + 1) * math.sqrt(longest_sum) * torch.finfo(dtype).eps
    return Agreement(
        early_steps=len(early),
        early_difference=early.max().item(),
        tolerance=allowed[-1].item(),
        steps=len(difference),
        difference=difference.max().item(),
        agrees=bool((early <= allowed).all()),
    )
