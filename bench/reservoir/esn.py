"""An echo state network: drawn weights, leaky states in one call, a ridge readout, and the closed loop.

    h_t = (1 - alpha) h_{t-1} + alpha tanh(W_in x_t + W h_{t-1} + b),   y_t = W_out h_t + b_out

In the closed loop the network reads its own forecast, x_{t+1} = y_t. Then

    W_in x_{t+1} + W h_t + b = (W + W_in W_out) h_t + (b + W_in b_out)

so a free-running forecast is a recurrence without input: one call with another W_hh and bias. That is exact
where the readout is linear (with a constant) in what W_hh multiplies, which is h in elman and leaky cells and
r = f(v) in continuous-time ones, and where the input is the output of the step before. Leak and nonlinearity
come after the sum and change nothing. A readout that also reads the input or powers of the state, or an
output that is processed before it is fed back, needs a step at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import rnnfast


@dataclass(frozen=True)
class Weights:
    """What an echo state network does not learn, in float64: w_in [H, I], w [H, H], bias [H]."""

    w_in: Tensor
    w: Tensor
    bias: Tensor
    alpha: float


@dataclass(frozen=True)
class Readout:
    """y = w_out h + b_out: w_out [D, H], b_out [D], in float64."""

    w_out: Tensor
    b_out: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """states [..., H] of any floating dtype -> [..., D], float64."""
        return states.double() @ self.w_out.T + self.b_out


@dataclass(frozen=True)
class Settings:
    """How weights are drawn, and the penalty of the ridge regression.

    Attributes:
        radius: the spectral radius of W.
        connectivity: the part of the elements of W that is not zero; of W_in, `input_connectivity`.
        input_scaling, bias_scaling: the absolute value of the elements of W_in and of the bias.
    """

    units: int
    alpha: float
    radius: float
    input_scaling: float
    bias_scaling: float
    penalty: float
    connectivity: float = 0.1
    input_connectivity: float = 0.2


def draw(settings: Settings, features: int, seed: int) -> Weights:
    """W sparse and normal, W_in sparse, W_in and bias of random signs, as reservoirpy's defaults have it."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def signs(*shape: int) -> Tensor:
        return 1.0 - 2.0 * (uniform(*shape) < 0.5).double()

    units = settings.units
    w = torch.randn(units, units, generator=generator, dtype=torch.float64)
    w *= uniform(units, units) < settings.connectivity
    w *= settings.radius / torch.linalg.eigvals(w).abs().max()
    w_in = signs(units, features) * settings.input_scaling
    w_in *= uniform(units, features) < settings.input_connectivity
    return Weights(w_in, w, signs(units) * settings.bias_scaling, settings.alpha)


def reservoir(weights: Weights, dtype: torch.dtype, backend: str = "auto") -> rnnfast.LeakyRNN:
    """The recurrence with these weights; nothing in it learns."""
    units, features = weights.w_in.shape
    rnn = rnnfast.LeakyRNN(features, units, dtype=dtype, alpha=weights.alpha, backend=backend)
    rnn.requires_grad_(False)
    rnn.weight_ih_l0.copy_(weights.w_in)
    rnn.weight_hh_l0.copy_(weights.w)
    rnn.bias_ih_l0.copy_(weights.bias)
    rnn.bias_hh_l0.zero_()
    return rnn


def ridge(states: Tensor, targets: Tensor, penalty: float) -> Readout:
    """The linear map of the least squared error plus `penalty` times the squared w_out, in closed form.

    Computed in float64: the penalties of the field lie far below the rounding of float32.

    Args:
        states: ``[T, H]``.
        targets: ``[T, D]``, float64.
    """
    states = states.double()
    mean, target_mean = states.mean(0), targets.mean(0)
    states, targets = states - mean, targets - target_mean
    gram = states.T @ states
    gram.diagonal().add_(penalty)
    w_out = torch.linalg.solve(gram, states.T @ targets).T
    return Readout(w_out, target_mean - w_out @ mean)


def closed(weights: Weights, readout: Readout) -> Weights:
    """The weights of the closed loop, which has no input; see the head of this file."""
    return replace(
        weights,
        w=weights.w + weights.w_in @ readout.w_out,
        bias=weights.bias + weights.w_in @ readout.b_out,
    )


class EchoStateNetwork:
    """The whole of it on rnnfast: states and forecasts are one call each, for any number of series."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self.weights, self.dtype = weights, dtype
        self.open_loop = reservoir(weights, dtype)

    def states(self, inputs: Tensor) -> Tensor:
        """inputs [T, I] -> [T, H], from a state of zeros."""
        states, _ = self.open_loop(inputs.to(self.dtype).unsqueeze(1))
        return states.squeeze(1)

    def fit(self, states: Tensor, targets: Tensor, penalty: float) -> Readout:
        self.readout = ridge(states, targets, penalty)
        self.closed_loop = reservoir(closed(self.weights, self.readout), self.dtype)
        return self.readout

    def predict(self, states: Tensor) -> Tensor:
        """states [..., H] -> [..., D]: what comes next."""
        return self.readout(states)

    def free_run(self, states: Tensor, steps: int) -> Tensor:
        """The forecast of `steps` steps from each of `states` [B, H]: [steps, B, D]."""
        start = states.to(self.dtype).unsqueeze(0).contiguous()
        nothing = start.new_zeros(steps, len(states), self.weights.w_in.shape[1])
        later, _ = self.closed_loop(nothing, start)
        return self.readout(torch.cat([start, later[:-1]]))
