"""Derivatives of the recurrence, in one place: a `torch.autograd.Function` around the fused operators.

It saves nothing but inputs and the output, and of these what the gradients asked for read (`_Saved`). Where
that can't serve (a second derivative, `torch.func` transforms, forward-mode AD) the same formulas run in
differentiable torch operators: the eager backend's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, are_deterministic_algorithms_enabled, get_num_threads, is_grad_enabled

from . import ops, plain
from .arguments import check_packed, fits_sequence
from .backends.base import Backend, Grads, Needs
from .backends.eager import EagerBackend
from .context import needs_composite, needs_grad, undisturbed, watched

_EAGER = EagerBackend()

# A private name of torch, looked up with a default so that another version can at worst lose the feature.
_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def _higher_order(*grads: Optional[Tensor]) -> bool:
    """Whether a backward is itself to be differentiated or transformed."""
    if torch.is_grad_enabled() or needs_composite():
        return True
    return not torch.compiler.is_compiling() and _batched(*grads)


def _batched(*grads: Optional[Tensor]) -> bool:
    """Whether `torch.autograd.grad(is_grads_batched=True)` sends these: it shows on nothing else."""
    return any(grad is not None and _is_legacy_batched(grad) for grad in grads)


def _plain_backward(shapes: Any, *arguments: Any) -> Any:
    """What a backward pass returns if its call is plain, or the backend that computes it; else None.

    What is `_higher_order` gets neither, but for gradients that are `_batched`: they have no memory of their
    own, and for them the answer may be a backend.
    """
    if not plain.ready or is_grad_enabled() or not undisturbed():
        return None
    return plain.backward(*arguments, are_deterministic_algorithms_enabled(), get_num_threads(), shapes)


composite_step = _EAGER.step_forward


class _Saved(NamedTuple):
    """Inputs as a backward pass reads them, None for those that it doesn't; so what is None may be changed.

    The output is always read. dx reads W_ih, dW_ih x, dW_hh h0, and dh0 W_hh, as does every sequence of more
    than one step. What torch's operators save differs in nothing but the output.
    """

    x: Optional[Tensor]
    h0: Optional[Tensor]
    weight_ih: Optional[Tensor]
    weight_hh: Optional[Tensor]


def _save(
    ctx: Any, x: Tensor, h0: Tensor, weight_ih: Tensor, weight_hh: Tensor, recurrent: bool, *rest: Any
) -> None:
    """Saves what will be read, and of the others the shapes; `recurrent`: the walk has more than one step."""
    _, dx, dh0, dweight_ih, dweight_hh, *_ = ctx.needs_input_grad
    saved = _Saved(
        x if dweight_ih else None,
        h0 if dweight_hh else None,
        weight_ih if dx else None,
        weight_hh if dh0 or recurrent else None,
    )
    ctx.save_for_backward(*saved, *rest)
    ctx.shapes = (
        None if dweight_ih else x.shape,
        None if dweight_hh else h0.shape,
        None if dx else weight_ih.shape,
        None if dh0 or recurrent else weight_hh.shape,
    )


def _completed(saved: _Saved, shapes: Any, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With something of the right shape, but without memory, in place of what is not read."""
    x, h0, weight_ih, weight_hh = (
        out.new_empty(()).expand(shape) if tensor is None else tensor
        for tensor, shape in zip(saved, shapes, strict=True)
    )
    return x, h0, weight_ih, weight_hh


class Step(torch.autograd.Function):
    """Its first argument is what to call: the registered operator, or, unless `watched`, the function.

    Or what `plain` has found: the result in a tuple (autograd would take a bare one for an argument), or the
    backend that computes it.
    """

    @staticmethod
    def forward(ctx: Any, step, x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, backend):
        if type(step) is tuple:
            (out,) = step
        elif isinstance(step, Backend):
            out = step.step_forward(x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity)
        else:
            out = step(x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, True, backend)
        _save(ctx, x, h, weight_ih, weight_hh, False, out)
        ctx.rest = nonlinearity, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad):
        *saved, out = ctx.saved_tensors
        flags, (nonlinearity, backend) = ctx.needs_input_grad, ctx.rest
        found = _plain_backward(ctx.shapes, grad, None, *saved, out, nonlinearity, False, backend, flags)
        if type(found) is tuple:
            return found
        inputs = (grad, *_completed(saved, ctx.shapes, out), out)
        needs = _needs(flags)
        if _higher_order(grad):
            grads = _EAGER.step_backward(*inputs, nonlinearity, needs)
        elif found is not None:
            grads = ops.run_step_backward(found, *inputs, nonlinearity, needs)
        elif watched(*inputs):
            listed = torch.ops.rnnfast.rnn_step_backward(*inputs, nonlinearity, list(needs), backend)
            grads = ops.unlisted(listed, needs)
        else:
            grads = ops.rnn_step_backward(*inputs, nonlinearity, needs, backend)
        return None, *_of_tensors(grads, flags), None, None


class Sequence(torch.autograd.Function):
    """As Step. Computed by `plain`, h0 and h_n may be [1, B, H]."""

    @staticmethod
    def forward(
        ctx: Any,
        sequence,
        x,
        h0,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        batch_sizes,
        nonlinearity,
        reverse,
        backend,
    ):
        if type(sequence) is tuple:
            out, h_n = sequence
        elif isinstance(sequence, Backend):
            tensors = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
            out, h_n = ops.run_plain_sequence(sequence, *tensors, nonlinearity, reverse)
        else:
            tensors = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
            out, h_n = sequence(*tensors, batch_sizes, nonlinearity, reverse, True, backend)
        recurrent = (x if batch_sizes is None else batch_sizes).shape[0] > 1
        _save(ctx, x, h0, weight_ih, weight_hh, recurrent, out, batch_sizes)
        ctx.set_materialize_grads(False)  # most callers use one of the outputs; the other's is None
        ctx.rest = nonlinearity, reverse, backend
        return out, h_n

    @staticmethod
    def backward(ctx: Any, grad_out, grad_hn):
        *saved, out, batch_sizes = ctx.saved_tensors
        flags, (nonlinearity, reverse, backend) = ctx.needs_input_grad, ctx.rest
        found = None
        if batch_sizes is None:
            found = _plain_backward(
                ctx.shapes, grad_out, grad_hn, *saved, out, nonlinearity, reverse, backend, flags
            )
            if type(found) is tuple:
                return found
        x, h0, weight_ih, weight_hh = _completed(saved, ctx.shapes, out)
        if found is not None and not _batched(grad_out, grad_hn):
            inputs = (grad_out, grad_hn, x, h0, weight_ih, weight_hh, out)
            needs = _needs(flags)
            grads = ops.run_plain_sequence_backward(found, *inputs, nonlinearity, reverse, needs)
            return None, *_of_tensors(grads, flags), None, None, None, None
        stacked = h0.dim() == 3
        if stacked:
            h0, grad_hn = h0.squeeze(0), None if grad_hn is None else grad_hn.squeeze(0)
        inputs = (grad_out, grad_hn, x, h0, weight_ih, weight_hh, out)
        needs = _needs(flags)
        walk = (batch_sizes, nonlinearity, reverse)
        if _higher_order(grad_out, grad_hn):
            grads = _composite_sequence_backward(*inputs, *walk, needs)
        elif watched(*inputs):
            listed = torch.ops.rnnfast.rnn_sequence_backward(*inputs, *walk, list(needs), backend)
            grads = ops.unlisted(listed, needs)
        else:
            grads = ops.rnn_sequence_backward(*inputs, *walk, needs, backend)
        if stacked and grads.h0 is not None:
            grads = grads._replace(h0=grads.h0.unsqueeze(0))
        return None, *_of_tensors(grads, flags), None, None, None, None


# Function.apply first looks for what a finished transform may have left in its arguments, for 2 us. Calls
# outside of transforms skip it.
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
    found = ops.step_of_torch(tensors, nonlinearity, backend)
    if found is not None:
        return found  # torch's operator has its own derivative
    if needs_grad(*tensors):
        return Step.apply(torch.ops.rnnfast.rnn_step, *tensors, nonlinearity, backend)
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
    if batch_sizes is not None and not fits_sequence(*tensors, True):
        check_packed(batch_sizes, x, h0)  # torch's operator would not
    found = ops.sequence_of_torch(tensors, batch_sizes, nonlinearity, reverse, backend)
    if found is not None:
        return found
    if needs_grad(*tensors):
        operator = torch.ops.rnnfast.rnn_sequence
        return Sequence.apply(operator, *tensors, batch_sizes, nonlinearity, reverse, backend)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.rnnfast.rnn_sequence(*tensors, batch_sizes, nonlinearity, reverse, grad, backend)


ops.set_derivative("rnn_step", _differentiable_step)
ops.set_derivative("rnn_sequence", _differentiable_sequence)


def _needs(needs_input_grad: tuple[bool, ...]) -> Needs:
    """From a Function's flags."""
    x, h0, weight_ih, weight_hh, bias_ih, bias_hh = needs_input_grad[1:7]
    return Needs(x, h0, weight_ih, weight_hh, bias_ih or bias_hh)


def _of_tensors(grads: Grads, needs_input_grad: tuple[bool, ...]) -> tuple[Optional[Tensor], ...]:
    """One gradient for each of the six tensors.

    The biases' gradients are equal, but must not share memory: a caller may write to one of them.
    """
    x, h0, weight_ih, weight_hh, bias = grads
    bias_ih, bias_hh = needs_input_grad[5:7]
    if bias is None or not bias_hh:
        return x, h0, weight_ih, weight_hh, bias, None
    return x, h0, weight_ih, weight_hh, bias.clone() if bias_ih else None, bias


def _rows(tensor: Tensor) -> Tensor:
    """[T, B, N] as [T * B, N]; `flatten` has no rule for batched gradients, and -1 no meaning if N is 0."""
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


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
    out, h_n = _EAGER.sequence_forward(_rows(x), *rest)
    return out.reshape(*x.shape[:-1], out.shape[-1]), h_n


def _composite_sequence_backward(
    grad_out: Optional[Tensor],
    grad_hn: Optional[Tensor],
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    out: Tensor,
    batch_sizes: Optional[Tensor],
    nonlinearity: str,
    reverse: bool,
    needs: Needs,
) -> Grads:
    grads = _EAGER.sequence_backward(
        None if grad_out is None else _rows(grad_out),
        grad_hn,
        _rows(x),
        h0,
        weight_ih,
        weight_hh,
        _rows(out),
        nonlinearity,
        batch_sizes,
        reverse,
        needs,
    )
    return grads if grads.x is None else grads._replace(x=grads.x.reshape(x.shape))
