"""The same network on reservoirpy, with the same weights: numpy in float64, a Python loop over the steps.

Its `dtype` is left at float64, as its state is float64 whatever that says. W is dense, or sparse in the
format that reservoirpy draws its own in.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from bench.reservoir.esn import Readout, Weights


class Unavailable(Exception):
    """reservoirpy is not installed."""


def library() -> Any:
    """Raises Unavailable, saying how to get it."""
    try:
        import reservoirpy
        from reservoirpy import nodes
    except ImportError as error:
        raise Unavailable(f"reservoirpy takes no part ({error}); pip install reservoirpy") from None
    del reservoirpy
    return nodes


def library_version() -> str:
    return version("reservoirpy")


class ReservoirpyNetwork:
    """As EchoStateNetwork; one series at a time, one step at a time."""

    def __init__(self, weights: Weights, sparse: bool = False) -> None:
        self.nodes = library()
        w: Any = weights.w.numpy()
        if sparse:
            from scipy.sparse import csr_matrix  # a dependency of reservoirpy

            w = csr_matrix(w)
        self.reservoir = self.nodes.Reservoir(
            lr=weights.alpha, W=w, Win=weights.w_in.numpy(), bias=weights.bias.numpy()
        )
        self.units = len(weights.bias)

    def states(self, inputs: Tensor) -> Tensor:
        if self.reservoir.initialized:
            self.reservoir.reset()
        return torch.from_numpy(self.reservoir.run(inputs.numpy()))

    def fit(self, states: Tensor, targets: Tensor, penalty: float) -> Readout:
        self.ridge = self.nodes.Ridge(ridge=penalty)
        self.ridge.fit(states.numpy(), targets.numpy())
        w_out, b_out = torch.from_numpy(self.ridge.Wout).T, torch.from_numpy(self.ridge.bias)
        return Readout(w_out, b_out)

    def predict(self, states: Tensor) -> Tensor:
        return torch.from_numpy(self.ridge.run(states.numpy()))

    def free_run(self, states: Tensor, steps: int) -> Tensor:
        forecasts = torch.empty(steps, len(states), self.ridge.output_dim, dtype=torch.float64)
        for i, state in enumerate(states.numpy()):
            self.reservoir.state = {"out": state}
            forecast = self.ridge.step(state)
            for step in range(steps):
                forecasts[step, i] = torch.from_numpy(forecast)
                forecast = self.ridge.step(self.reservoir.step(forecast))
        return forecasts
