"""The oracle: the recurrence written down as it is defined, in torch alone, short enough to trust at sight.

h_t = act([x_t, h_{t-1}] . [W_ih, W_hh]^T + b_ih + b_hh)
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor


def rnn_sequence(
    input: Tensor,  # [T, B, I]
    h0: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    bias_ih: Optional[Tensor] = None,  # [H]
    bias_hh: Optional[Tensor] = None,  # [H]
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:  # output [T, B, H], h_n [B, H]
    activation = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    weight = torch.cat([weight_ih, weight_hh], dim=1)
    h, output = h0, {}
    for t in reversed(range(len(input))) if reverse else range(len(input)):
        pre = torch.cat([input[t], h], dim=1) @ weight.T
        for bias in (bias_ih, bias_hh):
            pre = pre if bias is None else pre + bias
        h = output[t] = activation(pre)
    return torch.stack([output[t] for t in range(len(input))]), h
