"""Derivatives of the recurrence, in one place: a `torch.autograd.Function` around the fused operators.

It saves nothing but the inputs and the output. Where that can't serve (a second derivative, `torch.func`
transforms, forward-mode AD) the same formulas run in differentiable torch operators: the eager backend's.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import ops
from .backends.base import Grads, Needs
from .backends.eager import EagerBackend

_EAGER = EagerBackend()

# Private names of torch, looked up with a default so that another version can at worst lose the feature.
_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def needs_grad(*tensors: Optional[Tensor]) -> bool:
    """Whether autograd will record a call with these arguments."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def needs_composite() -> bool:
    """Whether a transform is active that has to see differentiable operators all the way down."""
    return _functorch_active() or getattr(forward_ad, "_current_level", -1) >= 0


def _higher_order(*grads: Optional[Tensor]) -> bool:
    """Whether a backward is itself to be differentiated or transformed.

    `torch.autograd.grad(is_grads_batched=True)` shows only on the gradients that it sends.
    """
    if torch.is_grad_enabled() or needs_composite():
        return True
    if torch.compiler.is_compiling():
        return False
    return any(grad is not None and _is_legacy_batched(grad) for grad in grads)


composite_step = _EAGER.step_forward


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, backend):
        inputs = (x, h, weight_ih, weight_hh, bias_ih, bias_hh)
        operator = torch.ops.rnnfast.rnn_step if ops.watched(*inputs) else ops.rnn_step
        out = operator(*inputs, nonlinearity, True, backend)
        ctx.save_for_backward(x, h, weight_ih, weight_hh, out)
        ctx.nonlinearity = nonlinearity
        ctx.backend = backend
        return out

    @staticmethod
    def backward(ctx: Any, grad):
        x, h, weight_ih, weight_hh, out = ctx.saved_tensors
        inputs = (grad, x, h, weight_ih, weight_hh, out)
        needs = _needs(ctx.needs_input_grad)
        if _higher_order(grad):
            grads = _fields(_EAGER.step_backward(*inputs, ctx.nonlinearity, Needs(*needs)))
        else:
            operator = torch.ops.rnnfast.rnn_step_backward if ops.watched(*inputs) else ops.rnn_step_backward
            grads = _spread(operator(*inputs, ctx.nonlinearity, needs, ctx.backend), needs)
        return *_both_biases(grads, ctx.needs_input_grad), None, None


class Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x, h0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, nonlinearity, reverse, backend
    ):
        inputs = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
        operator = torch.ops.rnnfast.rnn_sequence if ops.watched(*inputs) else ops.rnn_sequence
        out, h_n = operator(*inputs, batch_sizes, nonlinearity, reverse, True, backend)
        ctx.save_for_backward(x, h0, weight_ih, weight_hh, out, batch_sizes)
        ctx.set_materialize_grads(False)  # most callers use one of the outputs; the other's is None
        ctx.nonlinearity = nonlinearity
        ctx.reverse = reverse
        ctx.backend = backend
        return out, h_n

    @staticmethod
    def backward(ctx: Any, grad_out, grad_hn):
        x, h0, weight_ih, weight_hh, out, batch_sizes = ctx.saved_tensors
        inputs = (grad_out, grad_hn, x, h0, weight_ih, weight_hh, out)
        needs = _needs(ctx.needs_input_grad)
        if _higher_order(grad_out, grad_hn):
            grads = _composite_sequence_backward(
                *inputs, ctx.nonlinearity, batch_sizes, ctx.reverse, Needs(*needs)
            )
        else:
            watched = ops.watched(*inputs)
            operator = torch.ops.rnnfast.rnn_sequence_backward if watched else ops.rnn_sequence_backward
            found = operator(*inputs, batch_sizes, ctx.nonlinearity, ctx.reverse, needs, ctx.backend)
            grads = _spread(found, needs)
        return *_both_biases(grads, ctx.needs_input_grad), None, None, None, None


# Function.apply first looks for what a finished transform may have left in its arguments, for 2 us. Calls
# that nobody watches go past it.
apply_step = super(torch.autograd.Function, Step).apply
apply_sequence = super(torch.autograd.Function, Sequence).apply

# What the operators do where autograd may record them. A caller need not say whether a backward pass will
# follow: that is known here, when the operator runs, and not when a graph is captured.


def _differentiable_step(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
    grad: bool,
    backend: str,
) -> Tensor:
    tensors = (x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    if needs_grad(*tensors):
        return Step.apply(*tensors, nonlinearity, backend)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.rnnfast.rnn_step(*tensors, nonlinearity, grad, backend)


def _differentiable_sequence(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    batch_sizes: Optional[Tensor],
    nonlinearity: str,
    reverse: bool,
    grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    tensors = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
    if needs_grad(*tensors):
        return Sequence.apply(*tensors, batch_sizes, nonlinearity, reverse, backend)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.rnnfast.rnn_sequence(*tensors, batch_sizes, nonlinearity, reverse, grad, backend)


ops.set_derivative("rnn_step", _differentiable_step)
ops.set_derivative("rnn_sequence", _differentiable_sequence)


def _needs(needs_input_grad: tuple[bool, ...]) -> list[bool]:
    """The fields of `Needs`, from a Function's flags."""
    x, h0, weight_ih, weight_hh, bias_ih, bias_hh = needs_input_grad[:6]
    return [x, h0, weight_ih, weight_hh, bias_ih or bias_hh]


def _fields(grads: Grads) -> list[Optional[Tensor]]:
    return [grads.x, grads.h0, grads.weight_ih, grads.weight_hh, grads.bias]


def _spread(grads: list[Tensor], needs: list[bool]) -> list[Optional[Tensor]]:
    """The operators return only what was asked for; puts None in the other places."""
    following = iter(grads)
    return [next(following) if needed else None for needed in needs]


def _both_biases(
    grads: list[Optional[Tensor]], needs_input_grad: tuple[bool, ...]
) -> tuple[Optional[Tensor], ...]:
    """The biases' gradients are equal, but must not share memory: a caller may write to one of them."""
    x, h0, weight_ih, weight_hh, bias = grads
    bias_ih, bias_hh = needs_input_grad[4:6]
    if bias is None or not bias_hh:
        return x, h0, weight_ih, weight_hh, bias, None
    return x, h0, weight_ih, weight_hh, bias.clone() if bias_ih else None, bias


def composite_sequence(
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
    rest = (h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, batch_sizes, reverse)
    out, h_n = _EAGER.sequence_forward(x.reshape(-1, x.shape[-1]), *rest)
    return out.reshape(*x.shape[:-1], out.shape[-1]), h_n


def _composite_sequence_backward(
    grad_out: Optional[Tensor],
    grad_hn: Optional[Tensor],
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    out: Tensor,
    nonlinearity: str,
    batch_sizes: Optional[Tensor],
    reverse: bool,
    needs: Needs,
) -> list[Optional[Tensor]]:
    rows = (-1, h0.shape[1])
    gx, *others = _fields(
        _EAGER.sequence_backward(
            None if grad_out is None else grad_out.reshape(rows),
            grad_hn,
            x.reshape(-1, x.shape[-1]),
            h0,
            weight_ih,
            weight_hh,
            out.reshape(rows),
            nonlinearity,
            batch_sizes,
            reverse,
            needs,
        )
    )
    return [None if gx is None else gx.reshape(x.shape), *others]
