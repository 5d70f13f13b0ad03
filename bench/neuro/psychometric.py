"""The psychometric function: how much is right as a function of the level, and the level of a threshold.

    P(c) = 1/2 + (1/2 - lapse) (1 - exp(-(c / scale)^slope))

Weibull's function, which Britten et al. (1992) fitted, with lapses: errors that no level prevents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

THRESHOLD = 0.8  # the part correct at which levels are compared


@dataclass(frozen=True)
class Psychometric:
    """A fitted function; scale is in the unit of the levels."""

    scale: float
    slope: float
    lapse: float

    def __call__(self, level: float) -> float:
        return 0.5 + (0.5 - self.lapse) * -math.expm1(-((level / self.scale) ** self.slope))

    def threshold(self, part: float = THRESHOLD) -> float:
        """The level at which `part` is right; infinite if that is never reached."""
        missing = 1.0 - (part - 0.5) / (0.5 - self.lapse)
        return self.scale * (-math.log(missing)) ** (1.0 / self.slope) if missing > 0 else math.inf


def fit(correct: Mapping[float, float], count: int, most_lapses: float = 0.1) -> Psychometric:
    """The likeliest function for `count` trials at each level, with lapses up to `most_lapses`.

    correct: by level the part that is right.
    """
    levels = torch.tensor([level for level in correct if level > 0], dtype=torch.float64)
    right = torch.tensor([part for level, part in correct.items() if level > 0], dtype=torch.float64) * count
    best, best_loss = None, math.inf
    for (
        start
    ) in levels.tolist():  # the likelihood has more than one maximum where lapses can stand for a slope
        raw = torch.tensor([math.log(start), 0.0, -3.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")

        def loss(raw: torch.Tensor = raw) -> torch.Tensor:
            scale, slope = raw[0].exp(), raw[1].exp().clamp(max=20.0)
            lapse = most_lapses * torch.sigmoid(raw[2])
            part = 0.5 - (0.5 - lapse) * torch.expm1(-((levels / scale) ** slope))
            part = part.clamp(1e-9, 1.0 - 1e-9)
            return -(right * part.log() + (count - right) * (-part).log1p()).mean()

        def closure(optimizer: torch.optim.LBFGS = optimizer, loss=loss) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        value = loss().item()
        if value < best_loss:
            scale, slope, lapse = raw[0].exp(), raw[1].exp().clamp(max=20.0), torch.sigmoid(raw[2])
            best_loss = value
            best = Psychometric(scale.item(), slope.item(), most_lapses * lapse.item())
    if best is None:
        raise ValueError("no level above zero, or a likelihood that is not finite")
    return best


def threshold_of(function, low: float, high: float, part: float = THRESHOLD) -> float:
    """The level between low and high at which an increasing function is `part`, by bisection."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if function(middle) < part else (low, middle)
    return high
