"""The fused operators and their backwards, as Python functions and as torch.ops.rnnfast.*.

Here, and only here, backends are called, with contiguous tensors. The backend is chosen when an operator
runs, not when a graph is captured, so that a graph with backend="auto" takes the best backend for every
batch size and length without being captured anew.

Operators check all of their arguments: a graph may be called with tensors of other shapes, dtypes or
devices than it was captured with. `rnn_*` check their arguments, when a graph is captured as when it runs;
`run_*` are for callers that have done so.

The derivatives belong to `rnnfast.functional`, which also hands them to the operators, so that a captured
graph can be trained. It calls the registered operator if the call is `context.watched`, and else the Python
function, which is the same thing without torch's dispatcher: a fifth of the time of a small step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Optional, TypeVar

import torch
from torch import Tensor

from .arguments import (
    Arguments,
    check_backward,
    check_fake_batch_sizes,
    check_names,
    check_needs,
    check_packed,
    dense,
    dense_gradient,
    fits_sequence,
    fits_step,
    left_to_torch,
)
from .backends.aten import torch_sequence, torch_step
from .backends.base import Backend, Grads, Needs
from .dispatch import find

_lib = torch.library.Library("rnnfast", "DEF")
_schemas: dict[str, str] = {}  # by the operators' names
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
_TAGS = (torch.Tag.pt2_compliant_tag,)
# Function modes see a call, not what it consists of, as with torch's own operators; so none can change what a
# kernel gets or where it writes.
_unseen = torch._C.DisableTorchFunction


def _operator(schema: str, fake: Callable[..., Any]) -> Callable[[_Kernel], _Kernel]:
    """Registers the decorated function as the kernel, for every device, of the operator `schema`."""

    def define(kernel: _Kernel) -> _Kernel:
        name = schema.split("(")[0]
        _schemas[name] = schema
        _lib.define(schema, tags=_TAGS)
        _lib.impl(name, _given_tensors(schema, kernel), "CompositeExplicitAutograd")
        torch.library.register_fake(f"rnnfast::{name}", _given_tensors(schema, fake), lib=_lib)
        return kernel

    return define


def _given_tensors(schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with TypeError for None in place of a tensor, which the dispatcher lets pass."""
    parameters = schema.split("(")[1].split(")")[0].split(", ")
    required = [(i, p.split()[1]) for i, p in enumerate(parameters) if p.startswith("Tensor ")]

    @functools.wraps(function)
    def checked(*args: Any) -> Any:
        for i, name in required:
            if args[i] is None:
                raise TypeError(f"argument '{name}' (position {i + 1}) must be Tensor, not NoneType")
        return function(*args)

    return checked


def set_derivative(name: str, function: Callable[..., Any]) -> None:
    """Makes `function` what runs when the operator `name` is called where autograd may record it."""
    _lib.impl(name, _given_tensors(_schemas[name], function), "Autograd")


def _listed(grads: Grads) -> list[Tensor]:
    """As operators return them: schemas know no tuple of optional tensors. `unlisted` is the inverse."""
    return [_detached(grad) for grad in grads if grad is not None]


def unlisted(grads: list[Tensor], needs: Needs) -> Grads:
    following = iter(grads)
    return Grads(*[next(following) if needed else None for needed in needs])


def _detached(tensor: Tensor) -> Tensor:
    """Drops the derivative that torch's operators inside of a backend may have recorded."""
    return tensor.detach() if tensor.requires_grad else tensor


def _fake_grads(
    x: Tensor, h0: Tensor, weight_ih: Tensor, weight_hh: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    shapes = (x.shape, h0.shape, weight_ih.shape, weight_hh.shape, weight_hh.shape[:1])
    return [x.new_empty(shape) for shape, needed in zip(shapes, needs, strict=True) if needed]


def step_of_torch(tensors: Arguments, nonlinearity: str, backend: str) -> Optional[Tensor]:
    """What torch's operator makes of arguments of `rnn_step` that no kernel may be given; None for others.

    Raises:
        ValueError: unknown nonlinearity.
        RuntimeError: torch's operator doesn't take them either, or another backend was asked for.
    """
    check_names(nonlinearity, backend)
    if fits_step(*tensors):
        return None
    return left_to_torch(torch_step(*tensors, nonlinearity), backend, tensors)


def _fake_step(*arguments: Any) -> Tensor:
    *tensors, nonlinearity, _, backend = arguments
    found = step_of_torch(tuple(tensors), nonlinearity, backend)  # type: ignore[arg-type]
    x, h = tensors[:2]
    return x.new_empty(h.shape) if found is None else found


@_operator(
    "rnn_step(Tensor x, Tensor h, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh,"
    " str nonlinearity, bool grad, str backend) -> Tensor",
    _fake_step,
)
def rnn_step(
    x: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    bias_ih: Optional[Tensor],  # [H]
    bias_hh: Optional[Tensor],  # [H]
    nonlinearity: str,
    grad: bool,  # whether a backward pass will follow
    backend: str,
) -> Tensor:  # [B, H]
    found = step_of_torch((x, h, weight_ih, weight_hh, bias_ih, bias_hh), nonlinearity, backend)
    if found is not None:
        return _detached(found)
    batch, input_size = x.shape
    deterministic = torch.are_deterministic_algorithms_enabled()
    solver = find(
        backend, "step", x.device, x.dtype, input_size, h.shape[1], batch, 1, False, grad, deterministic
    )
    return run_step(solver, x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity)


def run_step(
    solver: Backend,
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
) -> Tensor:
    """`rnn_step` for a caller that has checked the arguments and found the backend."""
    with _unseen():
        out = solver.step_forward(
            dense(x),
            dense(h),
            dense(weight_ih),
            dense(weight_hh),
            dense(bias_ih),
            dense(bias_hh),
            nonlinearity,
        )
        return _detached(out)


def _fake_step_backward(grad: Tensor, *args: Any) -> list[Tensor]:
    x, h, weight_ih, weight_hh, out, nonlinearity, needs, backend = args
    check_names(nonlinearity, backend)
    check_backward(x, h, weight_ih, weight_hh, out, grad, None, 2, False)
    return _fake_grads(x, h, weight_ih, weight_hh, check_needs(needs))


def rnn_step_backward(
    grad: Tensor,  # [B, H]
    x: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    out: Tensor,  # [B, H]
    nonlinearity: str,
    needs: Needs,
    backend: str,
) -> Grads:
    check_names(nonlinearity, backend)
    check_backward(x, h, weight_ih, weight_hh, out, grad, None, 2, False)
    batch, input_size = x.shape
    deterministic = torch.are_deterministic_algorithms_enabled()
    solver = find(
        backend, "step", x.device, x.dtype, input_size, h.shape[1], batch, 1, False, True, deterministic
    )
    return run_step_backward(solver, grad, x, h, weight_ih, weight_hh, out, nonlinearity, needs)


def run_step_backward(
    solver: Backend,
    grad: Tensor,
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    out: Tensor,
    nonlinearity: str,
    needs: Needs,
) -> Grads:
    """`rnn_step_backward` for a caller that has checked the arguments and found the backend."""
    with _unseen():
        return solver.step_backward(
            dense_gradient(grad),
            dense(x) if needs.weight_ih else x,
            dense(h) if needs.weight_hh else h,
            dense(weight_ih) if needs.x else weight_ih,
            dense(weight_hh) if needs.h0 else weight_hh,
            dense(out),
            nonlinearity,
            needs,
        )


@_operator(
    "rnn_step_backward(Tensor grad, Tensor x, Tensor h, Tensor weight_ih, Tensor weight_hh, Tensor out,"
    " str nonlinearity, bool[] needs, str backend) -> Tensor[]",
    _fake_step_backward,
)
def _(*args: Any) -> list[Tensor]:
    *inputs, needs, backend = args
    return _listed(rnn_step_backward(*inputs, check_needs(needs), backend))  # type: ignore[call-arg]


def sequence_of_torch(
    tensors: Arguments, batch_sizes: Optional[Tensor], nonlinearity: str, reverse: bool, backend: str
) -> Optional[tuple[Tensor, Tensor]]:
    """As `step_of_torch`, for `rnn_sequence`; `check_packed` has let pass batch_sizes, if there are some."""
    check_names(nonlinearity, backend)
    if fits_sequence(*tensors, batch_sizes is not None):
        return None
    result = torch_sequence(*tensors, nonlinearity, batch_sizes, reverse)
    return left_to_torch(result, backend, tensors)


def _fake_sequence(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, batch_sizes, nonlinearity, reverse, _, backend = arguments
    check_fake_batch_sizes(batch_sizes, tensors[0])
    rest = (batch_sizes, nonlinearity, reverse, backend)
    found = sequence_of_torch(tuple(tensors), *rest)  # type: ignore[arg-type]
    if found is not None:
        return found
    x, h0 = tensors[:2]
    return x.new_empty((*x.shape[:-1], h0.shape[1])), x.new_empty(h0.shape)


@_operator(
    "rnn_sequence(Tensor x, Tensor h0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh,"
    " Tensor? batch_sizes, str nonlinearity, bool reverse, bool grad, str backend) -> (Tensor, Tensor)",
    _fake_sequence,
)
def rnn_sequence(
    x: Tensor,  # [T, B, I], or [R, I] with batch_sizes
    h0: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    bias_ih: Optional[Tensor],  # [H]
    bias_hh: Optional[Tensor],  # [H]
    batch_sizes: Optional[Tensor],  # [T] int64 on the CPU
    nonlinearity: str,
    reverse: bool,
    grad: bool,  # whether a backward pass will follow
    backend: str,
) -> tuple[Tensor, Tensor]:  # out like x but for its last dimension, h_n [B, H]
    if batch_sizes is not None:
        check_packed(batch_sizes, x, h0)
    tensors = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
    found = sequence_of_torch(tensors, batch_sizes, nonlinearity, reverse, backend)
    if found is not None:
        return _detached(found[0]), _detached(found[1])
    solver = _find_for_sequence(x, h0, batch_sizes, grad, backend)
    return run_sequence(
        solver, x, h0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, nonlinearity, reverse
    )


def run_sequence(
    solver: Backend,
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    batch_sizes: Optional[Tensor],
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """`rnn_sequence` for a caller that has checked the arguments and found the backend."""
    with _unseen():
        out, h_n = solver.sequence_forward(
            _rows(dense(x)),
            dense(h0),
            dense(weight_ih),
            dense(weight_hh),
            dense(bias_ih),
            dense(bias_hh),
            nonlinearity,
            batch_sizes,
            reverse,
        )
        if batch_sizes is None:
            # .data, because autograd lets nobody modify a view that comes out of a Function.
            out = out.view(*x.shape[:-1], h0.shape[1]).data
        return _detached(out), _detached(h_n)


def run_plain_sequence(
    solver: Backend,
    x: Tensor,  # [T, B, I]
    h0: Tensor,  # [B, H] or, as a module has it, [1, B, H]
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:  # out [T, B, H], h_n like h0
    """`run_sequence` for tensors that `plain` has found to be dense; autograd must not be recording."""
    steps, batch, input_size = x.shape
    rows = x.view(steps * batch, input_size)
    out, h_n = solver.sequence_forward(
        rows, h0.view(batch, -1), weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, None, reverse
    )
    return out.view(steps, batch, -1).data, h_n.view(h0.shape).data


def _fake_sequence_backward(grad_out: Any, grad_hn: Any, *args: Any) -> list[Tensor]:
    x, h0, weight_ih, weight_hh, out, batch_sizes, nonlinearity, _, needs, backend = args
    check_names(nonlinearity, backend)
    check_fake_batch_sizes(batch_sizes, x)
    packed = batch_sizes is not None
    check_backward(x, h0, weight_ih, weight_hh, out, grad_out, grad_hn, 2 if packed else 3, packed)
    return _fake_grads(x, h0, weight_ih, weight_hh, check_needs(needs))


def rnn_sequence_backward(
    grad_out: Optional[Tensor],  # like out; None stands for zeros
    grad_hn: Optional[Tensor],  # [B, H]; None stands for zeros
    x: Tensor,  # [T, B, I], or [R, I] with batch_sizes
    h0: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    out: Tensor,  # [T, B, H], or [R, H] with batch_sizes
    batch_sizes: Optional[Tensor],  # [T] int64 on the CPU
    nonlinearity: str,
    reverse: bool,
    needs: Needs,
    backend: str,
) -> Grads:
    check_names(nonlinearity, backend)
    packed = batch_sizes is not None
    check_backward(x, h0, weight_ih, weight_hh, out, grad_out, grad_hn, 2 if packed else 3, packed)
    if batch_sizes is not None:
        check_packed(batch_sizes, x, h0)
    solver = _find_for_sequence(x, h0, batch_sizes, True, backend)
    walk = (batch_sizes, nonlinearity, reverse)
    return run_sequence_backward(solver, grad_out, grad_hn, x, h0, weight_ih, weight_hh, out, *walk, needs)


def run_sequence_backward(
    solver: Backend,
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
    """`rnn_sequence_backward` for a caller that has checked the arguments and found the backend."""
    with _unseen():
        grads = solver.sequence_backward(
            None if grad_out is None else _rows(dense_gradient(grad_out)),
            dense_gradient(grad_hn),
            _rows(dense(x) if needs.weight_ih else x),
            dense(h0) if needs.weight_hh else h0,
            dense(weight_ih) if needs.x else weight_ih,
            dense(weight_hh),
            _rows(dense(out)),
            nonlinearity,
            batch_sizes,
            reverse,
            needs,
        )
        return grads if grads.x is None else grads._replace(x=grads.x.view(x.shape))


def _rows(tensor: Tensor) -> Tensor:
    """[T, B, N] as [T * B, N]."""
    if tensor.dim() == 2:
        return tensor
    steps, batch, width = tensor.shape
    return tensor.reshape(steps * batch, width)  # what no gradient reads need not be dense


def run_plain_sequence_backward(
    solver: Backend,
    grad_out: Optional[Tensor],  # like out; None stands for zeros
    grad_hn: Optional[Tensor],  # like h0; None stands for zeros
    x: Tensor,  # [T, B, I]
    h0: Tensor,  # [B, H] or, as a module has it, [1, B, H]
    weight_ih: Tensor,
    weight_hh: Tensor,
    out: Tensor,  # [T, B, H]
    nonlinearity: str,
    reverse: bool,
    needs: Needs,
) -> Grads:  # h0 like h0
    """`run_sequence_backward` for tensors that `plain` has found to be dense, but for what autograd sends."""
    steps, batch, input_size = x.shape
    grads = solver.sequence_backward(
        None if grad_out is None else dense_gradient(grad_out).view(steps * batch, -1),
        None if grad_hn is None else dense_gradient(grad_hn).view(batch, -1),
        x.view(steps * batch, input_size),
        h0.view(batch, -1),
        weight_ih,
        weight_hh if steps > 1 else dense(weight_hh),
        out.view(steps * batch, -1),
        nonlinearity,
        None,
        reverse,
        needs,
    )
    dx, dh0 = grads[:2]
    if dx is None and dh0 is None:
        return grads
    return grads._replace(
        x=None if dx is None else dx.view(x.shape), h0=None if dh0 is None else dh0.view(h0.shape)
    )


@_operator(
    "rnn_sequence_backward(Tensor? grad_out, Tensor? grad_hn, Tensor x, Tensor h0, Tensor weight_ih,"
    " Tensor weight_hh, Tensor out, Tensor? batch_sizes, str nonlinearity, bool reverse, bool[] needs,"
    " str backend) -> Tensor[]",
    _fake_sequence_backward,
)
def _(*args: Any) -> list[Tensor]:
    *inputs, needs, backend = args
    return _listed(rnn_sequence_backward(*inputs, check_needs(needs), backend))  # type: ignore[call-arg]


def _find_for_sequence(
    x: Tensor, h0: Tensor, batch_sizes: Optional[Tensor], grad: bool, backend: str
) -> Backend:
    batch, hidden_size = h0.shape
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    return find(
        backend,
        "sequence",
        x.device,
        x.dtype,
        x.shape[-1],
        hidden_size,
        batch,
        steps,
        batch_sizes is not None,
        grad,
        torch.are_deterministic_algorithms_enabled(),
    )
