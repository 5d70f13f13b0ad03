"""torch's own kernels (ATen on the CPU, cuDNN on CUDA), called as torch.nn's modules call them.

torch's backward needs tensors that torch's forward saved, which the contract does not pass on. The backward
here is therefore that of eager. Wherever torch can differentiate its own call, which is everywhere but in
captured graphs, `rnnfast.functional` calls `torch_step` and `torch_sequence` instead.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ..context import tracing
from .base import Problem
from .eager import EagerBackend


def torch_step(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
) -> Tensor:
    """One step in torch's own operator, differentiable by torch."""
    cell = torch.rnn_tanh_cell if nonlinearity == "tanh" else torch.rnn_relu_cell
    return cell(x, h, weight_ih, weight_hh, bias_ih, bias_hh)


def torch_sequence(
    x: Tensor,  # [T, B, I], or [R, I] with batch_sizes
    h0: Tensor,  # [B, H] or, as torch has it, [1, B, H]
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
    batch_sizes: Optional[Tensor],
    reverse: bool,
) -> tuple[Tensor, Tensor]:  # out, h_n like h0
    """One layer in torch's own operator, differentiable by torch.

    torch offers the reverse direction only as half of a bidirectional layer, so the rows of each sequence are
    reversed before the call and after it.
    """
    if isinstance(h0, Tensor) and h0.dim() < 3:
        walk = (nonlinearity, batch_sizes, reverse)
        out, h_n = torch_sequence(x, torch.unsqueeze(h0, 0), weight_ih, weight_hh, bias_ih, bias_hh, *walk)
        return out, h_n.squeeze(0)
    layer = torch.rnn_tanh if nonlinearity == "tanh" else torch.rnn_relu
    weights = [weight_ih, weight_hh]
    has_biases = bias_ih is not None or bias_hh is not None
    if bias_ih is not None and bias_hh is not None:
        weights += [bias_ih, bias_hh]
    elif has_biases:
        zeros = weight_hh.new_zeros(weight_hh.shape[0])
        weights += [zeros if bias is None else bias for bias in (bias_ih, bias_hh)]
    # cuDNN differentiates only what was computed in training mode; without dropout that changes nothing else.
    training = torch.is_grad_enabled() or tracing()  # a trace may later be differentiated
    rest = (h0, weights, has_biases, 1, 0.0, training, False)
    if batch_sizes is None:
        out, h_n = layer(torch.flip(x, (0,)) if reverse else x, *rest, False)
        return (out.flip(0) if reverse else out), h_n
    if not reverse:
        return layer(x, batch_sizes, *rest)
    turn = _reversed_rows(batch_sizes, h0.shape[1]).to(x.device)
    out, h_n = layer(x.index_select(0, turn), batch_sizes, *rest)
    return out.index_select(0, turn), h_n


def _reversed_rows(batch_sizes: Tensor, batch: int) -> Tensor:
    """For each packed row the row that takes its place when every sequence is reversed.

    In operators and shapes alone, so that `torch.jit.trace` records it for any batch.
    """
    sequences = torch.arange(batch, device=batch_sizes.device)
    present = sequences < batch_sizes.unsqueeze(1)  # [T, B]
    lengths = present.sum(0)
    starts = batch_sizes.cumsum(0) - batch_sizes
    steps = (lengths - 1 - torch.arange(batch_sizes.shape[0], device=batch_sizes.device).unsqueeze(1))[
        present
    ]
    return starts[steps] + sequences.expand_as(present)[present]


class AtenBackend(EagerBackend):
    name = "aten"

    def refuses(self, problem: Problem) -> Optional[str]:
        return None

    def step_forward(
        self,
        x: Tensor,
        h: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Optional[Tensor],
        bias_hh: Optional[Tensor],
        nonlinearity: str,
    ) -> Tensor:
        return torch_step(x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity)

    def sequence_forward(
        self,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Optional[Tensor],
        bias_hh: Optional[Tensor],
        nonlinearity: str,
        batch_sizes: Optional[Tensor],
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        batch = h0.shape[0]
        steps = x.shape[0] // batch if batch else 1
        rows = x if batch_sizes is not None else x.view(steps, batch, x.shape[1])
        out, h_n = torch_sequence(
            rows, h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, batch_sizes, reverse
        )
        return out.reshape(x.shape[0], out.shape[-1]), h_n
