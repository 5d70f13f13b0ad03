"""The chaotic series on which echo state networks are measured, by the Runge-Kutta method of fourth order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[float, ...]


@dataclass(frozen=True)
class Series:
    """A system, how it is sampled, and the figure by which its forecasts are known.

    Attributes:
        interval: the time between two samples.
        horizon: steps of a free-running forecast.
        lyapunov: the largest Lyapunov exponent per unit of time, or None if the figure is not in its inverse.
    """

    name: str
    make: Callable[[int], Tensor]
    interval: float
    horizon: int
    lyapunov: float | None


def mackey_glass(
    count: int, tau: float = 17.0, substeps: int = 10, transient: int = 1000, start: float = 1.2
) -> Tensor:
    """dx/dt = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x (Mackey and Glass 1977), a sample a unit of time.

    Steps of 1 / `substeps`; in the middle of a step the delayed value is the mean of its neighbours'. Before
    the beginning x is `start`.

    Returns:
        ``[count, 1]``, float64, after `transient` samples.
    """
    h = 1.0 / substeps
    delay = round(tau * substeps)
    values = [start] * (delay + 1)
    gains = [0.2 * start / (1.0 + start**10)] * (delay + 1)  # of x(t - tau), each computed once
    for _ in range((transient + count - 1) * substeps):
        x, first, last = values[-1], gains[-delay - 1], gains[-delay]
        old = 0.5 * (values[-delay - 1] + values[-delay])
        middle = 0.2 * old / (1.0 + old**10)
        k1 = first - 0.1 * x
        k2 = middle - 0.1 * (x + 0.5 * h * k1)
        k3 = middle - 0.1 * (x + 0.5 * h * k2)
        k4 = last - 0.1 * (x + h * k3)
        x += h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        values.append(x)
        gains.append(0.2 * x / (1.0 + x**10))
    samples = values[delay::substeps][transient:]
    return torch.tensor(samples, dtype=torch.float64).unsqueeze(1)


def lorenz(
    count: int,
    interval: float = 0.02,
    substeps: int = 4,
    transient: int = 1000,
    start: State = (1.0, 1.0, 1.0),
) -> Tensor:
    """dx/dt = 10 (y - x), dy/dt = x (28 - z) - y, dz/dt = x y - 8/3 z (Lorenz 1963).

    Returns:
        ``[count, 3]``, float64, after `transient` samples.
    """
    h = interval / substeps
    state, samples = start, []
    for step in range((transient + count - 1) * substeps + 1):
        if step % substeps == 0:
            samples.append(state)
        k1 = _slope(state)
        k2 = _slope(_moved(state, k1, 0.5 * h))
        k3 = _slope(_moved(state, k2, 0.5 * h))
        k4 = _slope(_moved(state, k3, h))
        mean = tuple((a + 2.0 * b + 2.0 * c + d) / 6.0 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
        state = _moved(state, mean, h)
    return torch.tensor(samples[transient:], dtype=torch.float64)


def _slope(state: State) -> State:
    x, y, z = state
    return 10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z


def _moved(state: State, slope: Sequence[float], by: float) -> State:
    return tuple(s + by * k for s, k in zip(state, slope, strict=True))


SERIES = {
    series.name: series
    for series in (
        Series("mackey-glass", mackey_glass, interval=1.0, horizon=300, lyapunov=None),
        # The exponent is that of Viswanath, Lyapunov exponents from random Fibonacci sequences to the Lorenz
        # equations, 1998.
        Series("lorenz", lorenz, interval=0.02, horizon=900, lyapunov=0.9056),
    )
}
