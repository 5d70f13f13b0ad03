"""Whether a network computes what it should: its states, and its free run. Who fails gets no time."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.reservoir.esn import EchoStateNetwork, Readout, Weights
from bench.reservoir.peer import ReservoirpyNetwork
from rnnfast import reference
from rnnfast.testing import check, tolerance

Network = EchoStateNetwork | ReservoirpyNetwork

# Of a free run only the first steps are compared: chaos and the readout, whose weights are large and of both
# signs, amplify rounding in each.
FED_BACK = 10


def true_states(weights: Weights, inputs: Tensor) -> Tensor:
    """The states over inputs [T, I], [T, H], by the package's reference in float64."""
    states, _ = reference.rnn_sequence(
        inputs.unsqueeze(1), inputs.new_zeros(1, len(weights.bias)), weights.w_in, weights.w, weights.bias,
        cell="leaky", alpha=weights.alpha,
    )  # fmt: skip
    return states.squeeze(1)


def fed_back(weights: Weights, readout: Readout, states: Tensor, steps: int) -> Tensor:
    """The free run from states [B, H] as it is defined, a step at a time: [steps, B, D], in float64."""
    outputs = [readout(states)]
    while len(outputs) < steps:
        outputs.append(readout(states := _step(weights, outputs[-1], states)))
    return torch.stack(outputs)


def _step(weights: Weights, inputs: Tensor, states: Tensor) -> Tensor:
    pre = inputs @ weights.w_in.T + states @ weights.w.T + weights.bias
    return (1.0 - weights.alpha) * states + weights.alpha * torch.tanh(pre)


def check_states(name: str, states: Tensor, truth: Tensor, dtype: torch.dtype, features: int) -> None:
    """Raises AssertionError where rounding to `dtype` doesn't explain the difference."""
    check(f"{name}: states", states.double(), truth, tolerance(dtype, truth.shape[-1] + features + 1))


def check_free_run(
    name: str, network: Network, weights: Weights, readout: Readout, states: Tensor, dtype: torch.dtype
) -> None:
    """As `check_states`, of `FED_BACK` steps of the free run from states [B, H].

    The rounding of a state comes to the output with the readout's absolute weights, and from there back into
    the state. One such factor is allowed, and one rounding a step.
    """
    truth = fed_back(weights, readout, states.to(dtype).double(), FED_BACK)
    found = network.free_run(states, FED_BACK)
    gain = readout.w_out.abs().sum(1).max().item()
    allowed = tolerance(dtype, states.shape[-1] + 1) * max(gain, 1.0) * FED_BACK
    check(f"{name}: free run", found, truth, allowed)
