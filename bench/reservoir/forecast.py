"""The forecasts of one series: what is forecast from where, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reservoir import scores
from bench.reservoir.esn import EchoStateNetwork, Readout, Settings, Weights
from bench.reservoir.peer import ReservoirpyNetwork
from bench.reservoir.series import Series

MARK = 84  # the step at which forecasts of Mackey-Glass series are compared since Jaeger and Haas 2004

# Chosen by hand on seed 0. Units, and how many samples train and test, are the command's.
SETTINGS: dict[str, dict[str, float]] = {
    "mackey-glass": {
        "alpha": 0.5, "radius": 0.9, "input_scaling": 0.5, "bias_scaling": 0.2, "penalty": 1e-8,
    },
    "lorenz": {"alpha": 0.6, "radius": 0.9, "input_scaling": 0.3, "bias_scaling": 0.5, "penalty": 1e-8},
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A series of zero mean and unit variance (in training), and where it is cut.

    Attributes:
        samples: ``[T, D]``, float64. The network reads all but the last, and is to say what comes next.
        washout: the first states that the readout is not fitted to.
        training: the samples of the training part.
        starts: after which samples free runs begin, ``[B]``.
    """

    series: Series
    settings: Settings
    samples: Tensor
    washout: int
    training: int
    starts: Tensor

    @property
    def inputs(self) -> Tensor:
        return self.samples[:-1]

    @property
    def truths(self) -> Tensor:
        """What free runs are to say, [horizon, B, D]."""
        after = torch.arange(1, self.series.horizon + 1).unsqueeze(1)
        return self.samples[self.starts + after]

    def fit(self, network: EchoStateNetwork | ReservoirpyNetwork, states: Tensor) -> Readout:
        """states: [T - 1, H], after each input."""
        fitted = slice(self.washout, self.training - 1)
        targets = self.samples[self.washout + 1 : self.training]
        return network.fit(states[fitted], targets, self.settings.penalty)


def problem(
    series: Series, units: int, training: int, testing: int, starts: int, washout: int = 200
) -> Problem:
    samples = series.make(training + testing)
    samples = (samples - samples[:training].mean(0)) / samples[:training].std(0, unbiased=False)
    last = training + testing - series.horizon - 1
    return Problem(
        series, Settings(units=units, **SETTINGS[series.name]), samples, washout, training,
        torch.linspace(training, last, starts).long(),
    )  # fmt: skip


@dataclass(frozen=True)
class Forecast:
    """What a network forecast.

    Attributes:
        one_step: the NRMSE of one step over the test samples.
        at_mark: the NRMSE of free runs at step `MARK`.
        valid_time: the time until the error exceeds 0.4, in Lyapunov times, the median over the starts; None
            for a series without a Lyapunov exponent.
        curve: the NRMSE of free runs at each step, over all starts.
        first: the free run from the first start, [horizon, D].
    """

    one_step: float
    at_mark: float
    valid_time: float | None
    curve: list[float]
    first: list[list[float]]


def forecast(problem: Problem, network: EchoStateNetwork | ReservoirpyNetwork, states: Tensor) -> Forecast:
    """states: [T - 1, H], after each input; the network has been fitted."""
    series, variance = problem.series, problem.samples.var(0, unbiased=False)
    predictions = network.predict(states[problem.training :])
    free = network.free_run(states[problem.starts], series.horizon)
    curve = scores.error_curve(free, problem.truths, variance)
    steps = scores.valid_steps(free, problem.truths, variance).double().median().item()
    return Forecast(
        one_step=scores.nrmse(predictions, problem.samples[problem.training + 1 :]),
        at_mark=curve[MARK - 1].item(),
        valid_time=None if series.lyapunov is None else steps * series.interval * series.lyapunov,
        curve=curve.tolist(),
        first=free[:, 0].tolist(),
    )


def contenders(weights: Weights, with_peer: bool) -> dict[str, EchoStateNetwork | ReservoirpyNetwork]:
    """Networks of the same weights. reservoirpy's is of float64 alone."""
    found: dict[str, EchoStateNetwork | ReservoirpyNetwork] = {
        "rnnfast float64": EchoStateNetwork(weights, torch.float64),
        "rnnfast float32": EchoStateNetwork(weights, torch.float32),
    }
    return found | ({"reservoirpy": ReservoirpyNetwork(weights)} if with_peer else {})


def dtype_of(network: EchoStateNetwork | ReservoirpyNetwork) -> torch.dtype:
    return network.dtype if isinstance(network, EchoStateNetwork) else torch.float64
