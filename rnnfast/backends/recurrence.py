"""The base of the GPU backends: all of a layer that is not sequential.

The input product comes before the recurrence and the weight gradients after it, as a few large products in
torch. So do what a cell adds that is not sequential: noise beside the input, and the gradient of alpha. A
backend derived from this one supplies the recurrence itself and single steps.

A packed call copies the offsets of its steps from ordinary memory to the device, so it cannot be captured in
a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor, split_with_sizes
from torch.nn.functional import linear

from ..layer import Grads, Layer, Needs, Recurrence, Sequences
from .base import Backend
from .eager import AT_ZERO, activate
from .precision import products_as_cudnn, unrecorded


class RecurrenceBackend(Backend):
    def recurrence_forward(
        self,
        pre: Tensor,  # [R, H], the input product with both biases; may be overwritten
        h0: Tensor,  # [B, H]; of a ctrnn v
        weight_hh: Tensor,  # [H, H]
        recurrence: Recurrence,
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:  # out [R, H], h_n [B, H], inner [R, H]; see `Backend`
        """All steps of ``h_t = act(pre_t + h_{t-1} @ W_hh.T)``, or of another cell; see `reference`.

        The caller has seen to it if the first step starts from zero. What the others hand on to the step that
        is taken next becomes zero where `recurrence.cuts` says so.
        """
        raise NotImplementedError

    def recurrence_backward(
        self,
        grad_out: Optional[Tensor],  # [R, H]; None stands for zeros
        grad_hn: Optional[Tensor],  # [B, H]; None stands for zeros
        value: Tensor,  # [R, H], the activation's values: out, of a leaky cell inner
        weight_hh: Tensor,  # [H, H]
        recurrence: Recurrence,
        grad_inner: Optional[Tensor] = None,  # [R, H]; None stands for zeros
        states: bool = False,  # whether dstate is wanted
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:  # dpre [R, H], dh0 [B, H], dstate [R, H]
        """All steps of ``dpre_t = (grad_out_t + dpre_{t+1} @ W_hh) * act'(h_t)``, walking back.

        dstate is the gradient of the state h or v of a cell that leaks. What a step hands back becomes zero
        where `recurrence.cuts` says so, which are the steps that start from zero.
        """
        raise NotImplementedError

    def layer_forward(self, layer: Layer) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        with unrecorded(), products_as_cudnn(layer.x.dtype):
            pre = linear(layer.x, layer.weight_ih, _bias(layer))
        if pre.numel() == 0:
            return pre, layer.h0.clone(), None if layer.cell == "elman" else torch.empty_like(pre)
        with unrecorded():
            if layer.noise is not None and layer.cell != "ctrnn":
                pre += layer.noise
            sequences = _sequences(layer)
            h0, carried = _start(layer, sequences)
            recurrence = _recurrence(layer, sequences, carried)._replace(
                noise=layer.noise if layer.cell == "ctrnn" else None,
                cuts=None if layer.resets is None else _of_the_next(layer.resets, sequences),
            )
        return self.recurrence_forward(pre, h0, layer.weight_hh, recurrence)

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
        x, weight_hh, cell = layer.x, layer.weight_hh, layer.cell
        sequences = _sequences(layer)
        with unrecorded(), products_as_cudnn(x.dtype):
            h0, carried = _start(layer, sequences)
            dstate: Optional[Tensor] = None
            if out.numel() == 0:
                dpre, dh0 = torch.empty_like(out), torch.empty_like(h0)
                dstate = None if cell == "elman" else torch.empty_like(out)
            else:
                value = inner if cell == "leaky" and inner is not None else out
                recurrence = _recurrence(layer, sequences, carried)._replace(cuts=layer.resets)
                states = cell != "elman" and (needs.alpha or (cell == "ctrnn" and needs.noise))
                dpre, dh0, dstate = self.recurrence_backward(
                    grad_out, grad_hn, value, weight_hh.contiguous(), recurrence, grad_inner, states
                )
            columns = dpre.t()
            before = _Before(sequences, layer.resets)
            started = h0 if carried is None else carried
            zero = AT_ZERO[layer.nonlinearity] if cell == "ctrnn" else 0.0
            alpha: Optional[Tensor] = None
            if needs.alpha:
                assert inner is not None and dstate is not None
                if cell == "ctrnn":  # a_t anew: to divide by alpha would lose 1 / alpha in precision
                    a = linear(x, layer.weight_ih, _bias(layer))
                    a += linear(before.rows(started, out, zero), weight_hh)
                    alpha = (dstate * (a - before.rows(h0, inner, 0.0))).sum(0)
                else:
                    alpha = (dstate * (inner - before.rows(h0, out, 0.0))).sum(0)
            return Grads(
                x=dpre @ layer.weight_ih if needs.x else None,
                h0=dh0 if needs.h0 else None,
                weight_ih=columns @ x if needs.weight_ih else None,
                weight_hh=before.product(columns, started, out, zero) if needs.weight_hh else None,
                bias=dpre.sum(0) if needs.bias else None,
                alpha=alpha,
                noise=(dstate if cell == "ctrnn" else dpre) if needs.noise else None,
            )


def _bias(layer: Layer) -> Optional[Tensor]:
    bias_ih, bias_hh = layer.bias_ih, layer.bias_hh
    return bias_ih if bias_hh is None else bias_hh if bias_ih is None else bias_ih + bias_hh


def _recurrence(layer: Layer, sequences: Sequences, carried: Optional[Tensor]) -> Recurrence:
    return Recurrence(layer.nonlinearity, sequences, layer.cell, layer.alpha, carried=carried)


def _start(layer: Layer, sequences: Sequences) -> tuple[Tensor, Optional[Tensor]]:
    """The state that the first step starts from, [B, H], and of a ctrnn what is carried of it."""
    h0 = layer.h0
    if layer.resets is not None and layer.resets.numel():
        first = (sequences.steps - 1) * sequences.batch if sequences.reverse else 0
        h0 = h0.masked_fill(layer.resets.narrow(0, first, sequences.batch).unsqueeze(1), 0)
    return h0, activate(h0, layer.nonlinearity) if layer.cell == "ctrnn" else None


def _of_the_next(resets: Tensor, sequences: Sequences) -> Tensor:  # [R], of [R]
    """For each row of a dense batch whether the step that is taken after its own starts from zero."""
    rest, none = resets.numel() - sequences.batch, resets.new_zeros(sequences.batch)
    return torch.cat([none, resets[:rest]] if sequences.reverse else [resets[sequences.batch :], none])


def _sequences(layer: Layer) -> Sequences:
    batch, batch_sizes = layer.h0.shape[0], layer.batch_sizes
    if batch_sizes is None:
        return Sequences(layer.x.shape[0] // max(1, batch), batch, None, None, layer.reverse)
    offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0)).to(layer.x.device, non_blocking=True)
    return Sequences(len(batch_sizes), batch, offsets, batch_sizes, layer.reverse)


class _Before(NamedTuple):
    """What the steps started from."""

    sequences: Sequences
    resets: Optional[Tensor]  # [R] bool

    def rows(self, start: Tensor, after: Tensor, zero: float) -> Tensor:  # [R, H], of [B, H] and [R, H]
        """The state after the step taken before, at first `start`; `zero` where a step starts from zero."""
        sequences, batch = self.sequences, self.sequences.batch
        if sequences.sizes is not None:
            return torch.cat([start, after]).index_select(0, _previous_rows(sequences).to(after.device))
        rest = after.shape[0] - batch
        rows = torch.cat([after[batch:], start] if sequences.reverse else [start, after[:rest]])
        return rows if self.resets is None else rows.masked_fill_(self.resets.unsqueeze(1), zero)

    def product(
        self,
        dpre: Tensor,  # [H, R], a transposed matrix
        start: Tensor,  # [B, H]
        out: Tensor,  # [R, H]
        zero: float,
    ) -> Tensor:  # [H, H]
        """``dpre @ rows``. Densely these are `out` shifted by a step: two products and no copy."""
        if self.sequences.sizes is not None or self.resets is not None:
            return dpre @ self.rows(start, out, zero)
        first, rest = self.sequences.batch, out.shape[0] - self.sequences.batch
        if self.sequences.reverse:
            later, started = split_with_sizes(dpre, (rest, first), 1)
            earlier = out[first:]
        else:
            started, later = split_with_sizes(dpre, (first, rest), 1)
            earlier = out[:rest]
        return (later @ earlier).addmm_(started, start)


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
