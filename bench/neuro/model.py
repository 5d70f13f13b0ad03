"""A rate network of excitatory and inhibitory units, on rnnfast and as a Python loop.

    v_t = (1 - alpha) v_{t-1} + alpha (W_in x_t + W r_{t-1} + b) + n_t,   r_t = relu(v_t),   alpha = dt / tau

Dale's law: all that a unit sends out has one sign. So each column of W has a sign, its unit being excitatory
or inhibitory (Song, Yang and Wang 2016); W is a parametrization of weight_hh, computed once a call. As in
nn-brain's EI_RNN there are no self-connections, the output is read from excitatory units, and excitatory
weights are smaller at first by as much as their units are more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import rnnfast


class DalesLaw(nn.Module):
    """Free weights [H, H] -> weights, the first `excitatory` columns not negative, others not positive."""

    signs: Tensor

    def __init__(self, units: int, excitatory: int) -> None:
        super().__init__()
        signs = torch.ones(units, units)
        signs[:, excitatory:] = -1.0
        self.register_buffer("signs", signs.fill_diagonal_(0.0))

    def forward(self, free: Tensor) -> Tensor:
        return free.abs() * self.signs


class RateNetwork(nn.Module):
    """inputs [T, B, I] -> logits [T, B, outputs]; the recurrence is one call of rnnfast.CTRNN.

    Args:
        alpha: the step of the simulation over the units' time constant.
        noise_std: of the units' noise, also in evaluation: it is part of the model.
    """

    def __init__(
        self, features: int, units: int, outputs: int, alpha: float, noise_std: float, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.excitatory = round(0.8 * units)
        self.rnn = rnnfast.CTRNN(
            features, units, nonlinearity="relu", alpha=alpha, noise_std=noise_std, noise_in_eval=True,
            backend=backend,
        )  # fmt: skip
        with torch.no_grad():
            self.rnn.weight_hh_l0[:, : self.excitatory] *= (units - self.excitatory) / self.excitatory
        parametrize.register_parametrization(self.rnn, "weight_hh_l0", DalesLaw(units, self.excitatory))
        self.readout = nn.Linear(self.excitatory, outputs)

    def rates(self, inputs: Tensor) -> Tensor:
        """inputs [T, B, I] -> r [T, B, H]"""
        return self.rnn(inputs)[0]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.readout(self.rates(inputs)[..., : self.excitatory])


class LoopNetwork(RateNetwork):
    """The same network, parameters and noise, by torch's operators in a Python loop.

    The product with the inputs, the noise and Dale's law are computed before the loop, for all steps at once.
    Loops of the field, nn-brain's among them, do so in every step.
    """

    def rates(self, inputs: Tensor) -> Tensor:
        rnn, (steps, batch, _) = self.rnn, inputs.shape
        alpha, scale = rnn.alpha, math.sqrt(2.0 * rnn.alpha) * rnn.noise_std
        weight = rnn.weight_hh_l0.T
        driven = F.linear(inputs, rnn.weight_ih_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0)
        # In the order in which CTRNN draws it: a seed gives both the same noise.
        noise = scale * torch.randn(steps * batch, rnn.hidden_size).view(steps, batch, -1)
        v = inputs.new_zeros(batch, rnn.hidden_size)
        r, rates = F.relu(v), []
        for t in range(steps):
            v = (1.0 - alpha) * v + alpha * (driven[t] + r @ weight) + noise[t]
            r = F.relu(v)
            rates.append(r)
        return torch.stack(rates)
