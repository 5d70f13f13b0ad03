"""The recurrence as functions: argument checks, autocast, and the way that a call takes.

The ways, in the order in which they are tried:

0. `plain`, one native call that checks and computes plain arguments in a fraction of the time of the others;
1. torch's own operator, for arguments that no kernel takes (it rejects most of them with its own errors) and
   where a `__torch_function__` is to see what torch's modules call;
2. the composite of differentiable torch operators, under `torch.func` transforms and forward-mode AD;
3. the registered operator, under torch.compile, export, a dispatch mode or the profiler;
4. torch's own operator, which torch differentiates, where `dispatch` says "aten";
5. the Function of `derivative` where a gradient is needed, else the kernel itself.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, are_deterministic_algorithms_enabled, get_num_threads, is_grad_enabled
from torch.overrides import handle_torch_function

from . import onnx, ops, plain
from .arguments import (
    Arguments,
    check_names,
    check_packed,
    fits_sequence,
    fits_step,
    left_to_torch,
)
from .backends import cpu
from .backends.aten import torch_sequence, torch_step
from .backends.base import Backend
from .context import (
    any_autocast,
    needs_composite,
    needs_grad,
    ordinary,
    overridden,
    recorded_as_torch_s,
    undisturbed,
    watched,
)
from .derivative import apply_sequence, apply_step, composite_sequence, composite_step
from .dispatch import check_name, find


def rnn_step(
    input: Tensor,
    hx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor] = None,
    bias_hh: Optional[Tensor] = None,
    nonlinearity: str = "tanh",
    *,
    backend: str = "auto",
) -> Tensor:
    r"""One step of the recurrence, fused: ``h' = act(input @ W_ih.T + b_ih + hx @ W_hh.T + b_hh)``.

    Equivalent to ``act(linear(input, weight_ih, bias_ih) + linear(hx, weight_hh, bias_hh))`` with
    `torch.nn.functional.linear` and `torch.tanh` or `torch.relu`, and to ``torch.rnn_tanh_cell(input, hx,
    weight_ih, weight_hh, bias_ih, bias_hh)`` (``torch.rnn_relu_cell``). Sums of 16-bit types are float32.

    Args:
        input: ``[B, I]``; float64, float32, bfloat16 or float16. All tensors have its dtype and device.
        hx: the state before the step, ``[B, H]``.
        weight_ih: ``[H, I]``.
        weight_hh: ``[H, H]``.
        bias_ih, bias_hh: ``[H]`` each, or None.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        backend: ``"auto"`` or the name of a backend, see `rnnfast.show_config`.

    Returns:
        The state after the step, ``[B, H]``; a new tensor, ``hx`` is left as it is.

    Raises:
        RuntimeError: shapes, dtypes or devices don't fit (torch's own error for the same arguments),
            or the backend is not available or refuses the problem.
        TypeError: an argument of another type (torch's own error where torch takes that argument).
        ValueError: unknown nonlinearity or backend.
    """
    if hx is not None:
        out = plain_step(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, backend)
        if out is not None:
            return out
    given: Arguments = (input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    check_names(nonlinearity, backend)
    if not _usual(*given):
        if not _are_tensors(*given) or shown_to_others(backend, *given):
            return torch_step(*given, nonlinearity)
        if overridden(*given):
            return handle_torch_function(rnn_step, given, *given, nonlinearity, backend=backend)
    tensors = _autocast(given) if autocast_on(input) else given
    input, hx = tensors[:2]
    if not fits_step(*tensors):
        return left_to_torch(torch_step(*given, nonlinearity), backend, given)

    if needs_composite():
        check_name(backend)
        return composite_step(*tensors, nonlinearity)
    if watched(*tensors):
        if recorded_as_torch_s(backend):
            return torch_step(*tensors, nonlinearity)
        if torch.onnx.is_in_onnx_export():
            return composite_step(*tensors, nonlinearity)
        return torch.ops.rnnfast.rnn_step(*tensors, nonlinearity, False, backend)
    grad = needs_grad(*tensors)
    batch, input_size = input.shape
    solver = solver_of("step", input, input_size, hx.shape[1], batch, 1, False, grad, backend)
    if solver.name == "aten":
        return torch_step(*tensors, nonlinearity)
    if grad:
        return apply_step(ops.rnn_step, *tensors, nonlinearity, backend)
    return ops.run_step(solver, *tensors, nonlinearity)


def rnn_sequence(
    input: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor] = None,
    bias_hh: Optional[Tensor] = None,
    nonlinearity: str = "tanh",
    *,
    reverse: bool = False,
    batch_sizes: Optional[Tensor] = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""One layer in one direction over a whole sequence, time-major.

    Computes ``h_t = act(x_t @ W_ih.T + b_ih + h_{t-1} @ W_hh.T + b_hh)`` for all t, which is
    ``for t in range(T): h = output[t] = rnn_step(input[t], h, ...)``, or with ``reverse`` the same
    for t from T - 1 down to 0. It is what `torch.nn.RNN` of one layer computes; ``reverse`` is the second
    direction of a bidirectional one.

    Args:
        input: ``[T, B, I]`` with T of at least 1; with ``batch_sizes`` the packed rows ``[R, I]``, R being
            their sum. float64, float32, bfloat16 or float16; all tensors have its dtype and device.
        h0: the state before the first step taken, ``[B, H]``.
        weight_ih: ``[H, I]``.
        weight_hh: ``[H, H]``.
        bias_ih, bias_hh: ``[H]`` each, or None.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        reverse: walk from the last step to the first; outputs stay in the order of the inputs.
        batch_sizes: ``[T]``, int64, on the CPU: as in a PackedSequence, the number of sequences that
            are at least t + 1 steps long, for every t. Positive and non-increasing.
        backend: ``"auto"`` or the name of a backend, see `rnnfast.show_config`.

    Returns:
        ``output``, the states of all steps, ``[T, B, H]`` (packed: ``[R, H]``), and ``h_n``, the state
        after each sequence's last step taken, ``[B, H]``. New tensors; ``h0`` is left as it is.

    Raises:
        RuntimeError: shapes, dtypes or devices don't fit (torch's own error for the same arguments),
            or the backend is not available or refuses the problem.
        TypeError: an argument of another type (torch's own error where torch takes that argument).
        ValueError: unknown nonlinearity or backend, or ``batch_sizes`` that don't fit the input.
    """
    if batch_sizes is None:
        found = plain_sequence(
            input, h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, reverse, None, backend
        )
        if found is not None:
            return found
    given: Arguments = (input, h0, weight_ih, weight_hh, bias_ih, bias_hh)
    check_names(nonlinearity, backend)
    if not isinstance(reverse, bool):
        raise TypeError(f"argument 'reverse' must be bool, not {type(reverse).__name__}")
    walk = (nonlinearity, batch_sizes, reverse)
    if not _usual(*given):
        if not _are_tensors(*given) or shown_to_others(backend, *given):
            return torch_sequence(*given, *walk)
        if overridden(*given):
            return handle_torch_function(
                rnn_sequence,
                given,
                *given,
                nonlinearity,
                reverse=reverse,
                batch_sizes=batch_sizes,
                backend=backend,
            )
    tensors = _autocast(given) if autocast_on(input) else given
    input, h0 = tensors[:2]
    packed = batch_sizes is not None
    seen = watched(*tensors)
    if batch_sizes is not None and not seen:  # else the operator does it, when it runs
        check_packed(batch_sizes, input, h0)
    if not fits_sequence(*tensors, packed) and not (packed and seen):
        return left_to_torch(torch_sequence(*given, *walk), backend, given)

    if needs_composite():
        check_name(backend)
        return composite_sequence(*tensors, nonlinearity, batch_sizes, reverse)
    # Copied once here, where autograd sees it, rather than in the operator and again in its backward.
    dense = input.contiguous()
    if dense is not input and not packed:
        found = plain_sequence(dense, *tensors[1:], nonlinearity, reverse, None, backend)
        if found is not None:
            return found
    arguments = (dense, *tensors[1:], batch_sizes, nonlinearity, reverse)
    if seen:
        if recorded_as_torch_s(backend):
            return torch_sequence(*tensors, nonlinearity, batch_sizes, reverse)
        if torch.onnx.is_in_onnx_export() and not packed:
            if input.dtype is not onnx.DTYPE:
                return torch_sequence(*tensors, nonlinearity, None, reverse)
            return onnx.rnn_sequence(*tensors, nonlinearity, reverse)
        return torch.ops.rnnfast.rnn_sequence(*arguments, False, backend)
    grad = needs_grad(*tensors)
    steps = input.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    batch, hidden_size = h0.shape
    solver = solver_of("sequence", input, input.shape[-1], hidden_size, batch, steps, packed, grad, backend)
    if solver.name == "aten":
        return torch_sequence(*tensors, nonlinearity, batch_sizes, reverse)
    if grad:
        return apply_sequence(ops.rnn_sequence, *arguments, backend)
    return ops.run_sequence(solver, *arguments)


def plain_step(
    input: Tensor,
    hx: Optional[Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
    backend: str,
) -> Optional[Tensor]:
    """`rnn_step` as a plain call (see `plain`), or None if it isn't one; without hx it starts from zeros."""
    if not plain.ready or not undisturbed():
        return None
    tensors = (weight_ih, weight_hh, bias_ih, bias_hh)
    grad, deterministic = is_grad_enabled(), are_deterministic_algorithms_enabled()
    found = plain.step(input, hx, *tensors, nonlinearity, backend, grad, deterministic, get_num_threads())
    if found is None:
        return None
    needed = grad and needs_grad(*tensors, input, hx)
    if isinstance(found, Backend):
        h = input.new_zeros(input.shape[0], weight_hh.shape[0]) if hx is None else hx
        if found.name == "aten":
            return torch_step(input, h, *tensors, nonlinearity)
        if not needed:
            return found.step_forward(input, h, *tensors, nonlinearity)
    elif not needed:
        return found
    else:
        h = torch.zeros_like(found) if hx is None else hx
        found = (found,)
    return apply_step(found, input, h, *tensors, nonlinearity, backend)


def plain_sequence(
    input: Tensor,
    h0: Optional[Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    nonlinearity: str,
    reverse: bool,
    sizes: Optional[tuple[int, int]],
    backend: str,
) -> Optional[tuple[Tensor, Tensor]]:
    """`rnn_sequence` as a plain call (see `plain`), or None if it isn't one.

    A module passes its `sizes`, (I, H), which have to be those of the weights. Then h0 and h_n are [1, B, H],
    as a module has them, and without h0 it starts from zeros.
    """
    if not plain.ready or not undisturbed():
        return None
    tensors = (weight_ih, weight_hh, bias_ih, bias_hh)
    grad, deterministic = is_grad_enabled(), are_deterministic_algorithms_enabled()
    found = plain.sequence(
        input,
        h0,
        *tensors,
        nonlinearity,
        reverse,
        sizes,
        backend,
        grad,
        deterministic,
        0 if deterministic else cpu.STEPWISE,
        get_num_threads(),
    )
    if found is None:
        return None
    needed = grad and needs_grad(*tensors, input, h0)
    if isinstance(found, Backend):
        h = input.new_zeros(1, input.shape[1], weight_hh.shape[0]) if h0 is None else h0
        if found.name == "aten":
            return torch_sequence(input, h, *tensors, nonlinearity, None, reverse)
        if not needed:
            return ops.run_plain_sequence(found, input, h, *tensors, nonlinearity, reverse)
    elif not needed:
        return found
    else:
        h = torch.zeros_like(found[1]) if h0 is None else h0
    return apply_sequence(found, input, h, *tensors, None, nonlinearity, reverse, backend)


def solver_of(
    kind: str,
    input: Tensor,
    input_size: int,
    hidden_size: int,
    batch: int,
    steps: int,
    packed: bool,
    grad: bool,
    backend: str,
) -> Backend:
    """The backend that a call outside of graphs will use; raises as `dispatch.find` does."""
    return find(
        backend,
        kind,
        input.device,
        input.dtype,
        input_size,
        hidden_size,
        batch,
        steps,
        packed,
        grad,
        torch.are_deterministic_algorithms_enabled(),
    )


def autocast_on(input: Tensor) -> bool:
    """Whether autocast is on for the device of `input`."""
    # any_autocast takes a fraction of the other's time, but torch.compile can't trace it.
    if not torch.compiler.is_compiling() and not any_autocast():
        return False
    return torch.is_autocast_enabled(input.device.type)


def _autocast(tensors: Arguments) -> Arguments:
    """Casts the tensors as autocast casts the arguments of a linear layer and of torch's RNN."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)

    def cast(t: Optional[Tensor]) -> Any:
        if t is None or not t.is_floating_point() or t.dtype is torch.float64:
            return t
        return t.to(dtype)

    x, h, weight_ih, weight_hh, bias_ih, bias_hh = tensors
    return cast(x), cast(h), cast(weight_ih), cast(weight_hh), cast(bias_ih), cast(bias_hh)


def shown_to_others(backend: str, *arguments: Any) -> bool:
    """Whether a `__torch_function__` is to see a call just as it would see one of torch's modules.

    Where a backend was asked for and there are tensors for it to work on, it sees ours instead.
    """
    if not overridden(*arguments):
        return False
    return backend in ("auto", "aten") or not all(t is None or isinstance(t, Tensor) for t in arguments)


def _usual(x: Any, h: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> bool:
    """Whether these are torch's own tensors and nobody intercepts a call: the usual case."""
    return (
        x is not None
        and h is not None
        and weight_ih is not None
        and weight_hh is not None
        and ordinary(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    )


def _are_tensors(x: Any, h: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> bool:
    """Whether each is one, but for a bias that may be missing."""
    for required in (x, h, weight_ih, weight_hh):
        if not isinstance(required, Tensor):
            return False
    return (bias_ih is None or isinstance(bias_ih, Tensor)) and (
        bias_hh is None or isinstance(bias_hh, Tensor)
    )
