"""Pure PyTorch: an explicit loop forward and the explicit formulas of backpropagation through time.

Both directions are built from differentiable operators and neither writes in place, so the same code
also serves as the composite that higher derivatives, `torch.func` transforms and forward-mode AD go
through (see `rnnfast.derivative`).

The loop keeps a state of all B sequences. A step with n rows replaces the first n states and no others.
Sequences that have ended keep their last state, and those that have not begun (reverse direction) keep
h0. A dense batch is the case n = B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from ..layer import Grads, Layer, Needs
from ..native import DTYPES
from .base import Backend, Problem

NAMES = frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES)
AT_ZERO = {"tanh": 0.0, "relu": 0.0, "sigmoid": 0.5, "softplus": math.log(2), "identity": 0.0}


class EagerBackend(Backend):
    name = "eager"

    def unavailable(self) -> Optional[str]:
        return None

    def refuses(self, problem: Problem) -> Optional[str]:
        if problem.dtype not in NAMES:
            return f"dtype {problem.dtype} is not one of {', '.join(sorted(NAMES))}"
        return None

    def step_forward(self, layer: Layer) -> Tensor:
        pre = linear(layer.x, layer.weight_ih, layer.bias_ih)
        return activate(pre + linear(layer.h0, layer.weight_hh, layer.bias_hh), layer.nonlinearity)

    def step_backward(self, layer: Layer, out: Tensor, grad: Optional[Tensor], needs: Needs) -> Grads:
        grad = torch.zeros_like(out) if grad is None else grad
        dpre = activation_backward(grad, out, layer.nonlinearity)
        dh = dpre @ layer.weight_hh if needs.h0 else None
        return _collect(dpre, layer, layer.h0, dh, needs)

    def layer_forward(self, layer: Layer) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        h0, cell, f = layer.h0, layer.cell, layer.nonlinearity
        sizes = _row_counts(layer)
        pre = linear(layer.x, layer.weight_ih, layer.bias_ih).split(sizes)
        noise, resets = _split(layer.noise, sizes), _split(layer.resets, sizes)
        out: list[Tensor] = [h0] * len(sizes)
        inner: list[Tensor] = [h0] * len(sizes)
        alpha, keep = _leak(layer)
        start = _started(layer)
        for t in _walk(layer, sizes):
            state, carried = start.at(t, sizes[t], resets)
            a = pre[t] + linear(carried, layer.weight_hh, layer.bias_hh)
            if cell == "ctrnn":
                inner[t] = keep * state + alpha * a
                inner[t] = inner[t] if noise is None else inner[t] + noise[t]
                out[t] = activate(inner[t], f)
                start = start.replaced(inner[t], out[t])
                continue
            out[t] = activate(a if noise is None else a + noise[t], f)
            if cell == "leaky":
                inner[t] = out[t]
                out[t] = keep * state + alpha * inner[t]
            start = start.replaced(out[t], out[t])
        return torch.cat(out), start.state, None if cell == "elman" else torch.cat(inner)

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
        h0, cell, f = layer.h0, layer.cell, layer.nonlinearity
        alpha, keep = _leak(layer)
        sizes = _row_counts(layer)
        order = _walk(layer, sizes)
        outs, resets = out.split(sizes), _split(layer.resets, sizes)
        inners, grads, to_inner = _split(inner, sizes), _split(grad_out, sizes), _split(grad_inner, sizes)

        # What each step started from. A continuous-time cell's carry reads it, too.
        befores: list[tuple[Tensor, Tensor]] = [(h0, h0)] * len(sizes)
        if needs.weight_hh or needs.alpha or cell == "ctrnn":
            start = _started(layer)
            for t in order:
                befores[t] = start.at(t, sizes[t], resets)
                start = start.replaced(outs[t] if inners is None or cell == "leaky" else inners[t], outs[t])

        # dpre_t is the gradient of a_t + n_t (ctrnn: a_t), `dstates` that of the new state in full, and
        # `carry` that of the state that a step started from.
        carry = grad_hn if grad_hn is not None else torch.zeros_like(h0)
        dpres: list[Tensor] = [h0] * len(sizes)
        dstates: list[Tensor] = [h0] * len(sizes)
        for t in reversed(order):
            dstate = carry[: sizes[t]]
            if grads is not None:
                dout = grads[t] if cell != "ctrnn" else activation_backward(grads[t], outs[t], f)
                dstate = dout + dstate
            if cell == "ctrnn":
                dstate = dstate if to_inner is None else dstate + to_inner[t]
                dpres[t] = alpha * dstate
                back = activation_backward(dpres[t] @ layer.weight_hh, befores[t][1], f) + keep * dstate
            elif cell == "leaky":
                assert inners is not None
                df = alpha * dstate if to_inner is None else alpha * dstate + to_inner[t]
                dpres[t] = activation_backward(df, inners[t], f)
                back = dpres[t] @ layer.weight_hh + keep * dstate
            else:
                dpres[t] = activation_backward(dstate, outs[t], f)
                back = dpres[t] @ layer.weight_hh
            dstates[t] = dstate
            carry = _replace(carry, _cut(back, t, resets))
        dpre = torch.cat(dpres)
        h_prev = torch.cat([carried for _, carried in befores]) if needs.weight_hh else h0
        found = _collect(dpre, layer, h_prev, carry, needs)
        if needs.noise:
            found = found._replace(noise=torch.cat(dstates) if cell == "ctrnn" else dpre)
        if needs.alpha:
            value: Any = inner
            if cell == "ctrnn":  # a_t anew: to divide by alpha would lose a factor of 1 / alpha in precision
                carried = torch.cat([carried for _, carried in befores])
                value = linear(layer.x, layer.weight_ih, layer.bias_ih)
                value = value + linear(carried, layer.weight_hh, layer.bias_hh)
            state = torch.cat([state for state, _ in befores])
            found = found._replace(alpha=(torch.cat(dstates) * (value - state)).sum(0))
        return found


def _leak(layer: Layer) -> tuple[Any, Any]:
    """alpha and 1 - alpha, [H] each; None of an elman cell."""
    return layer.alpha, None if layer.alpha is None else 1 - layer.alpha


class _Start(NamedTuple):
    """What the next step starts from."""

    state: Tensor  # [B, H]: h, or v of a continuous-time cell
    carried: Tensor  # [B, H]: what is multiplied by W_hh: h, or f(v)
    zero: float  # what is carried of a state of zeros

    def at(self, t: int, rows: int, resets: Optional[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """State and what is carried of the rows of step t, [n, H] each."""
        state, carried = self.state[:rows], self.carried[:rows]
        return _cut(state, t, resets), _cut(carried, t, resets, self.zero)

    def replaced(self, state: Tensor, carried: Tensor) -> _Start:
        """After a step."""
        new = _replace(self.state, state)
        return _Start(new, new if carried is state else _replace(self.carried, carried), self.zero)


def _started(layer: Layer) -> _Start:
    if layer.cell != "ctrnn":
        return _Start(layer.h0, layer.h0, 0.0)
    return _Start(layer.h0, activate(layer.h0, layer.nonlinearity), AT_ZERO[layer.nonlinearity])


def _cut(rows: Tensor, t: int, resets: Optional[Sequence[Tensor]], value: float = 0.0) -> Tensor:
    """`rows` [B, H], with this value where step t starts from zero."""
    return rows if resets is None else rows.masked_fill(resets[t].unsqueeze(1), value)


def _collect(dpre: Tensor, layer: Layer, h_prev: Tensor, dh0: Optional[Tensor], needs: Needs) -> Grads:
    """The gradients that are not recurrent, from the gradient of the pre-activations [R, H]."""
    return Grads(
        x=dpre @ layer.weight_ih if needs.x else None,
        h0=dh0 if needs.h0 else None,
        weight_ih=dpre.t() @ layer.x if needs.weight_ih else None,
        weight_hh=dpre.t() @ h_prev if needs.weight_hh else None,
        bias=dpre.sum(0) if needs.bias else None,
    )


def activate(pre: Tensor, nonlinearity: str) -> Tensor:
    if nonlinearity == "tanh":
        return torch.tanh(pre)
    if nonlinearity == "relu":
        return torch.relu(pre)
    if nonlinearity == "sigmoid":
        return torch.sigmoid(pre)
    return softplus(pre) if nonlinearity == "softplus" else pre


def activation_backward(grad: Tensor, out: Tensor, nonlinearity: str) -> Tensor:
    """The gradient of the pre-activation, `out` being the activation's value."""
    if nonlinearity == "tanh":
        return grad * (1 - out * out)
    if nonlinearity == "relu":
        return grad.masked_fill(out <= 0, 0)
    if nonlinearity == "sigmoid":
        return grad * (out * (1 - out))
    return grad * -torch.expm1(-out) if nonlinearity == "softplus" else grad


def _row_counts(layer: Layer) -> list[int]:
    """Rows of every time step."""
    if layer.batch_sizes is not None:
        return layer.batch_sizes.tolist()
    batch = layer.h0.shape[0]
    return [batch] * (layer.x.shape[0] // batch) if batch else [0]


def _split(rows: Optional[Tensor], sizes: list[int]) -> Optional[Sequence[Tensor]]:
    return None if rows is None else rows.split(sizes)


def _walk(layer: Layer, sizes: list[int]) -> Sequence[int]:
    steps = len(sizes)
    return range(steps - 1, -1, -1) if layer.reverse else range(steps)


def _replace(state: Tensor, rows: Tensor) -> Tensor:
    """`state` with its first rows replaced."""
    n = rows.shape[0]
    return rows if n == state.shape[0] else torch.cat([rows, state[n:]])
