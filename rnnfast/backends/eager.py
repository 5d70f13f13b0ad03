"""Pure PyTorch: an explicit loop forward and the explicit formulas of backpropagation through time.

Both directions are built from differentiable operators and neither writes in place, so the same code
also serves as the composite that higher derivatives, `torch.func` transforms and forward-mode AD go
through (see `rnnfast.derivative`).

The loop keeps a state of all B sequences. A step with n rows replaces the first n states and no others.
Sequences that have ended keep their last state, and those that have not begun (reverse direction) keep
h0. A dense batch is the case n = B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..layer import Grads, Layer, Needs
from ..native import DTYPES
from .base import Backend, Problem

NAMES = frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES)


class EagerBackend(Backend):
    name = "eager"

    def unavailable(self) -> Optional[str]:
        return None

    def refuses(self, problem: Problem) -> Optional[str]:
        if problem.dtype not in NAMES:
            return f"dtype {problem.dtype} is not one of {', '.join(sorted(NAMES))}"
        return None

    def step_forward(self, layer: Layer) -> Tensor:
        x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, *_ = layer
        return _activate(linear(x, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh), nonlinearity)

    def step_backward(self, layer: Layer, out: Tensor, grad: Optional[Tensor], needs: Needs) -> Grads:
        grad = torch.zeros_like(out) if grad is None else grad
        dpre = _activation_backward(grad, out, layer.nonlinearity)
        dh = dpre @ layer.weight_hh if needs.h0 else None
        return _collect(dpre, layer, layer.h0, dh, needs)

    def layer_forward(self, layer: Layer) -> tuple[Tensor, Tensor]:
        x, h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, batch_sizes, reverse = layer
        sizes = _row_counts(x, h0, batch_sizes)
        pre = linear(x, weight_ih, bias_ih).split(sizes)
        out: list[Tensor] = [h0] * len(sizes)
        state = h0
        for t in _walk(len(sizes), reverse):
            out[t] = _activate(pre[t] + linear(state[: sizes[t]], weight_hh, bias_hh), nonlinearity)
            state = _replace(state, out[t])
        return torch.cat(out), state

    def layer_backward(
        self,
        layer: Layer,
        out: Tensor,
        grad_out: Optional[Tensor],
        grad_hn: Optional[Tensor],
        needs: Needs,
    ) -> Grads:
        h0 = layer.h0
        sizes = _row_counts(layer.x, h0, layer.batch_sizes)
        outs = out.split(sizes)
        grads = grad_out.split(sizes) if grad_out is not None else None
        order = _walk(len(sizes), layer.reverse)

        # dpre_t = (dout_t + dpre_{t+1} W_hh) * act'(h_t), walking back; `carry` is the state's gradient.
        carry = grad_hn if grad_hn is not None else torch.zeros_like(h0)
        dpres: list[Tensor] = [h0] * len(sizes)
        for t in reversed(order):
            dh = carry[: sizes[t]] if grads is None else grads[t] + carry[: sizes[t]]
            dpres[t] = _activation_backward(dh, outs[t], layer.nonlinearity)
            carry = _replace(carry, dpres[t] @ layer.weight_hh)
        dpre = torch.cat(dpres)

        before: list[Tensor] = [h0] * len(sizes)  # the state that each step started from
        if needs.weight_hh:
            state = h0
            for t in order:
                before[t] = state[: sizes[t]]
                state = _replace(state, outs[t])
        return _collect(dpre, layer, torch.cat(before) if needs.weight_hh else h0, carry, needs)


def _collect(dpre: Tensor, layer: Layer, h_prev: Tensor, dh0: Optional[Tensor], needs: Needs) -> Grads:
    """The gradients that are not recurrent, from the gradient of the pre-activations [R, H]."""
    return Grads(
        x=dpre @ layer.weight_ih if needs.x else None,
        h0=dh0 if needs.h0 else None,
        weight_ih=dpre.t() @ layer.x if needs.weight_ih else None,
        weight_hh=dpre.t() @ h_prev if needs.weight_hh else None,
        bias=dpre.sum(0) if needs.bias else None,
    )


def _activate(pre: Tensor, nonlinearity: str) -> Tensor:
    return torch.tanh(pre) if nonlinearity == "tanh" else torch.relu(pre)


def _activation_backward(grad: Tensor, out: Tensor, nonlinearity: str) -> Tensor:
    if nonlinearity == "tanh":
        return grad * (1 - out * out)
    return grad.masked_fill(out <= 0, 0)


def _row_counts(x: Tensor, h0: Tensor, batch_sizes: Optional[Tensor]) -> list[int]:
    """Rows of every time step."""
    if batch_sizes is not None:
        return batch_sizes.tolist()
    batch = h0.shape[0]
    return [batch] * (x.shape[0] // batch) if batch else [0]


def _walk(steps: int, reverse: bool) -> Sequence[int]:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _replace(state: Tensor, rows: Tensor) -> Tensor:
    """`state` with its first rows replaced."""
    n = rows.shape[0]
    return rows if n == state.shape[0] else torch.cat([rows, state[n:]])
