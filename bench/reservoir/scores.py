"""How good a forecast is, in the figures of the field."""

from __future__ import annotations

import torch
from torch import Tensor

# A forecast is valid until its normalised error exceeds this (Pathak, Hunt, Girvan, Lu and Ott 2018).
VALID = 0.4


def nrmse(forecast: Tensor, truth: Tensor) -> float:
    """The root mean squared error over steps and features, each relative to its standard deviation.

    forecast, truth: ``[T, D]``.
    """
    variance = truth.var(0, unbiased=False)
    return ((forecast - truth).square().mean(0) / variance).mean().sqrt().item()


def error_curve(forecasts: Tensor, truths: Tensor, variance: Tensor) -> Tensor:
    """The normalised error of every step over all starts, [steps].

    forecasts, truths: ``[steps, B, D]``; variance: ``[D]``, of the whole series.
    """
    return ((forecasts - truths).square() / variance).mean((1, 2)).sqrt()


def valid_steps(forecasts: Tensor, truths: Tensor, variance: Tensor) -> Tensor:
    """For every start the steps before its normalised error exceeds `VALID` for the first time, int64 [B]."""
    errors = ((forecasts - truths).square() / variance).mean(2).sqrt()
    wrong = ~(errors <= VALID)  # a NaN is wrong, too
    never = torch.full((1, errors.shape[1]), True)
    return torch.cat([wrong, never]).int().argmax(0)
