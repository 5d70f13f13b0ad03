"""The oracle: the recurrences written down as they are defined, short enough to trust at sight.

a_t = [x_t, c] . [W_ih, W_hh]^T + b_ih + b_hh, c being what is carried to step t, and

- elman: h_t = act(a_t + n_t), c = h_{t-1}
- leaky: h_t = (1 - alpha) h_{t-1} + alpha act(a_t + n_t), c = h_{t-1}
- ctrnn: v_t = (1 - alpha) v_{t-1} + alpha a_t + n_t, c = act(v_{t-1}); its output is act(v_t)
"""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "identity": lambda pre: pre,
}


def rnn_sequence(
    input: Tensor,  # [T, B, I]
    h0: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    bias_ih: Optional[Tensor] = None,  # [H]
    bias_hh: Optional[Tensor] = None,  # [H]
    nonlinearity: str = "tanh",
    reverse: bool = False,
    cell: str = "elman",
    alpha: Union[float, Tensor] = 1.0,  # or [H]
    noise: Union[float, Tensor] = 0.0,  # or [T, B, H]
    resets: Optional[Tensor] = None,  # [T, B], bool: the step starts from a state of zeros
) -> tuple[Tensor, Tensor]:  # output [T, B, H], h_n [B, H]; of a ctrnn h0 and h_n are v
    states, h_n = all_states(
        input, h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, reverse, cell, alpha, noise, resets
    )
    return (ACTIVATIONS[nonlinearity](states) if cell == "ctrnn" else states), h_n


def all_states(
    input: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
    reverse: bool,
    cell: str,
    alpha: Union[float, Tensor],
    noise: Union[float, Tensor],
    resets: Optional[Tensor],
) -> tuple[Tensor, Tensor]:  # h, of a ctrnn v, of all steps [T, B, H] and of the last one [B, H]
    act, weight = ACTIVATIONS[nonlinearity], torch.cat([weight_ih, weight_hh], dim=1)
    state, states = h0, {}
    for t in reversed(range(len(input))) if reverse else range(len(input)):
        state = state if resets is None else state * ~resets[t, :, None]
        a = torch.cat([input[t], act(state) if cell == "ctrnn" else state], dim=1) @ weight.T
        for bias in (bias_ih, bias_hh):
            a = a if bias is None else a + bias
        n = noise[t] if isinstance(noise, Tensor) else noise
        if cell == "elman":
            state = act(a + n)
        elif cell == "leaky":
            state = (1 - alpha) * state + alpha * act(a + n)
        else:
            state = (1 - alpha) * state + alpha * a + n
        states[t] = state
    return torch.stack([states[t] for t in range(len(input))]), state
