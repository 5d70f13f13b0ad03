"""The base of the GPU backends: all of a layer that is not sequential.

The input product comes before the recurrence and the weight gradients after it, as a few large products in
torch. A backend derived from this one supplies the recurrence itself and single steps.

A packed call copies the offsets of its steps from ordinary memory to the device, so it cannot be captured in
a CUDA graph.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, split_with_sizes
from torch.nn.functional import linear

from ..layer import Grads, Layer, Needs, Sequences
from .base import Backend
from .precision import products_as_cudnn, unrecorded


class RecurrenceBackend(Backend):
    def recurrence_forward(
        self,
        pre: Tensor,  # [R, H], the input product with both biases; may be overwritten
        h0: Tensor,  # [B, H]
        weight_hh: Tensor,  # [H, H]
        nonlinearity: str,
        sequences: Sequences,
    ) -> tuple[Tensor, Tensor]:  # out [R, H], h_n [B, H]
        """``h_t = act(pre_t + h_{t-1} @ W_hh.T)`` for all steps."""
        raise NotImplementedError

    def recurrence_backward(
        self,
        grad_out: Optional[Tensor],  # [R, H]; None stands for zeros
        grad_hn: Optional[Tensor],  # [B, H]; None stands for zeros
        out: Tensor,  # [R, H]
        weight_hh: Tensor,  # [H, H]
        nonlinearity: str,
        sequences: Sequences,
    ) -> tuple[Tensor, Tensor]:  # dpre [R, H], dh0 [B, H]
        """``dpre_t = (grad_out_t + dpre_{t+1} @ W_hh) * act'(h_t)`` for all steps, walking back."""
        raise NotImplementedError

    def layer_forward(self, layer: Layer) -> tuple[Tensor, Tensor, None]:
        x, h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, *_ = layer
        bias = bias_ih if bias_hh is None else bias_hh if bias_ih is None else bias_ih + bias_hh
        with unrecorded(), products_as_cudnn(x.dtype):
            pre = linear(x, weight_ih, bias)
        if pre.numel() == 0:
            return pre, h0.clone(), None
        return *self.recurrence_forward(pre, h0, weight_hh, nonlinearity, _sequences(layer)), None

    def layer_backward(
        self,
        layer: Layer,
        out: Tensor,
        inner: Optional[Tensor],
        grad_out: Optional[Tensor],
        grad_hn: Optional[Tensor],
        grad_inner: Optional[Tensor],
        needs: Needs,
    ) -> Grads:
        x, h0, weight_ih, weight_hh, _, _, nonlinearity, *_ = layer
        sequences = _sequences(layer)
        if out.numel() == 0:
            dpre, dh0 = torch.empty_like(out), torch.empty_like(h0)
        else:
            dpre, dh0 = self.recurrence_backward(
                grad_out, grad_hn, out, weight_hh.contiguous(), nonlinearity, sequences
            )
        with unrecorded(), products_as_cudnn(x.dtype):
            columns = dpre.t()
            return Grads(
                x=dpre @ weight_ih if needs.x else None,
                h0=dh0 if needs.h0 else None,
                weight_ih=columns @ x if needs.weight_ih else None,
                weight_hh=_weight_hh_gradient(columns, h0, out, sequences) if needs.weight_hh else None,
                bias=dpre.sum(0) if needs.bias else None,
            )


def _sequences(layer: Layer) -> Sequences:
    batch, batch_sizes = layer.h0.shape[0], layer.batch_sizes
    if batch_sizes is None:
        return Sequences(layer.x.shape[0] // max(1, batch), batch, None, None, layer.reverse)
    offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0)).to(layer.x.device, non_blocking=True)
    return Sequences(len(batch_sizes), batch, offsets, batch_sizes, layer.reverse)


def _weight_hh_gradient(
    dpre: Tensor,  # [H, R], a transposed matrix
    h0: Tensor,  # [B, H]
    out: Tensor,  # [R, H]
    sequences: Sequences,
) -> Tensor:  # [H, H]
    """``dpre @ h_prev``. Densely h_prev is `out` shifted by a step: two products and no copy."""
    if sequences.sizes is not None:
        return dpre @ torch.cat([h0, out]).index_select(0, _previous_rows(sequences).to(out.device))
    first, rest = sequences.batch, out.shape[0] - sequences.batch
    if sequences.reverse:
        later, started = split_with_sizes(dpre, (rest, first), 1)
        earlier = out[first:]
    else:
        started, later = split_with_sizes(dpre, (first, rest), 1)
        earlier = out[:rest]
    return (later @ earlier).addmm_(started, h0)


def _previous_rows(sequences: Sequences) -> Tensor:  # [R]
    """For every packed row the row of ``cat([h0, out])`` that holds the state it started from."""
    sizes = sequences.sizes
    assert sizes is not None
    starts = sizes.cumsum(0) - sizes
    step = torch.arange(sequences.steps, device=sizes.device).repeat_interleave(sizes)
    sequence = torch.arange(len(step), device=sizes.device) - starts[step]
    before = step + 1 if sequences.reverse else step - 1
    started = torch.zeros_like(step, dtype=torch.bool)
    inside = (before >= 0) & (before < sequences.steps)
    started[inside] = sequence[inside] < sizes[before[inside]]
    return torch.where(
        started, sequences.batch + starts[before.clamp(0, sequences.steps - 1)] + sequence, sequence
    )
