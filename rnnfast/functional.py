"""The recurrence as functions: argument checks, autocast, derivatives.

The derivative is a `torch.autograd.Function` around the fused operators, which saves nothing but the
inputs and the output. Where that can't serve (a second derivative, `torch.func` transforms,
forward-mode AD) the same formulas run in differentiable torch operators: those of the eager backend.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import ops
from .backends.aten import torch_sequence, torch_step
from .backends.base import Grads, Needs
from .backends.eager import DTYPES, EagerBackend
from .dispatch import check_name, find

_EAGER = EagerBackend()
_DTYPES = frozenset(getattr(torch, name) for name in DTYPES)

# Private names of torch, looked up with a default so that another version can at worst lose the feature.
_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


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

    Args:
        input: ``[B, I]``, of dtype float64, float32, bfloat16 or float16, as all the tensors.
        hx: the state before the step, ``[B, H]``.
        weight_ih: ``[H, I]``.
        weight_hh: ``[H, H]``.
        bias_ih, bias_hh: ``[H]`` each, or None.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        backend: ``"auto"`` or the name of a backend.

    Returns:
        The state after the step, ``[B, H]``; a new tensor, ``hx`` is left as it is.

    Raises:
        RuntimeError: shapes, dtypes or devices don't fit (torch's own error for the same arguments),
            or the backend is not available or refuses the problem.
        ValueError: unknown nonlinearity or backend.
    """
    tensors = (input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    if autocast_on(input):
        input, hx, *_ = tensors = _autocast(*tensors)
    if nonlinearity not in ("tanh", "relu"):
        _raise_unknown(nonlinearity)
    if input.dim() != 2 or not _consistent(*tensors) or input.shape[0] != hx.shape[0]:
        return _left_to_torch(torch_step(*tensors, nonlinearity), backend, tensors)

    if needs_composite():
        check_name(backend)
        return _EAGER.step_forward(*tensors, nonlinearity)
    grad = needs_grad(*tensors)
    watched = ops.watched(*tensors)
    if not watched:
        batch, input_size = input.shape
        if solver("step", input, input_size, hx.shape[1], batch, 1, False, grad, backend) == "aten":
            return torch_step(*tensors, nonlinearity)
    if grad:
        return _Step.apply(*tensors, nonlinearity, backend)
    operator = torch.ops.rnnfast.rnn_step if watched else ops.rnn_step
    return operator(*tensors, nonlinearity, False, backend)


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
    for t from T - 1 down to 0.

    Args:
        input: ``[T, B, I]`` with T of at least 1; with ``batch_sizes`` the packed rows ``[R, I]``.
        h0: the state before the first step taken, ``[B, H]``.
        weight_ih: ``[H, I]``.
        weight_hh: ``[H, H]``.
        bias_ih, bias_hh: ``[H]`` each, or None.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        reverse: walk from the last step to the first; outputs stay in the order of the inputs.
        batch_sizes: ``[T]``, int64, on the CPU: as in a PackedSequence, the number of sequences that
            are at least t + 1 steps long, for every t.
        backend: ``"auto"`` or the name of a backend.

    Returns:
        ``output``, the states of all steps, ``[T, B, H]`` (packed: ``[R, H]``), and ``h_n``, the state
        after each sequence's last step taken, ``[B, H]``. New tensors; ``h0`` is left as it is.

    Raises:
        RuntimeError: shapes, dtypes or devices don't fit (torch's own error for the same arguments),
            or the backend is not available or refuses the problem.
        ValueError: unknown nonlinearity or backend, or ``batch_sizes`` that don't fit the input.
    """
    tensors = (input, h0, weight_ih, weight_hh, bias_ih, bias_hh)
    if autocast_on(input):
        input, h0, *_ = tensors = _autocast(*tensors)
    if nonlinearity not in ("tanh", "relu"):
        _raise_unknown(nonlinearity)
    packed = batch_sizes is not None
    if (
        input.dim() != (2 if packed else 3)
        or input.shape[0] == 0
        or not _consistent(*tensors)
        or (not packed and input.shape[1] != h0.shape[0])
    ):
        result = torch_sequence(*tensors, nonlinearity, batch_sizes, reverse)
        return _left_to_torch(result, backend, tensors)

    if needs_composite():
        check_name(backend)
        return _composite_sequence(*tensors, nonlinearity, batch_sizes, reverse)
    grad = needs_grad(*tensors)
    watched = ops.watched(*tensors)
    if not watched:
        steps = input.shape[0] if batch_sizes is None else batch_sizes.shape[0]
        batch, hidden_size = h0.shape
        name = solver("sequence", input, input.shape[-1], hidden_size, batch, steps, packed, grad, backend)
        if name == "aten":
            return torch_sequence(*tensors, nonlinearity, batch_sizes, reverse)
    if grad:
        # Copied once here, where autograd sees it, rather than in the operator and again in its backward.
        return _Sequence.apply(input.contiguous(), *tensors[1:], batch_sizes, nonlinearity, reverse, backend)
    operator = torch.ops.rnnfast.rnn_sequence if watched else ops.rnn_sequence
    return operator(*tensors, batch_sizes, nonlinearity, reverse, False, backend)


def solver(
    kind: str,
    input: Tensor,
    input_size: int,
    hidden_size: int,
    batch: int,
    steps: int,
    packed: bool,
    grad: bool,
    backend: str,
) -> str:
    """The name of the backend that a call outside of graphs will use; raises as `dispatch.find` does."""
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
    ).name


def needs_grad(*tensors: Optional[Tensor]) -> bool:
    """Whether autograd will record a call with these arguments."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, backend):  # type: ignore
        inputs = (x, h, weight_ih, weight_hh, bias_ih, bias_hh)
        operator = torch.ops.rnnfast.rnn_step if ops.watched(*inputs) else ops.rnn_step
        out = operator(*inputs, nonlinearity, True, backend)
        ctx.save_for_backward(x, h, weight_ih, weight_hh, out)
        ctx.nonlinearity = nonlinearity
        ctx.backend = backend
        return out

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore
        saved = ctx.saved_tensors
        needs = _needs(ctx.needs_input_grad)
        if _higher_order(grad):
            grads = _fields(_EAGER.step_backward(grad, *saved, ctx.nonlinearity, Needs(*needs)))
        else:
            watched = ops.watched(grad, *saved)
            operator = torch.ops.rnnfast.rnn_step_backward if watched else ops.rnn_step_backward
            grads = _spread(operator(grad, *saved, ctx.nonlinearity, needs, ctx.backend), needs)
        return *_both_biases(grads, ctx.needs_input_grad), None, None


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore
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
    def backward(ctx: Any, grad_out, grad_hn):  # type: ignore
        *saved, batch_sizes = ctx.saved_tensors
        needs = _needs(ctx.needs_input_grad)
        if _higher_order(grad_out, grad_hn):
            grads = _composite_sequence_backward(
                grad_out, grad_hn, *saved, ctx.nonlinearity, batch_sizes, ctx.reverse, Needs(*needs)
            )
        else:
            inputs = (grad_out, grad_hn, *saved)
            watched = ops.watched(*inputs)
            operator = torch.ops.rnnfast.rnn_sequence_backward if watched else ops.rnn_sequence_backward
            grads = _spread(
                operator(*inputs, batch_sizes, ctx.nonlinearity, ctx.reverse, needs, ctx.backend), needs
            )
        return *_both_biases(grads, ctx.needs_input_grad), None, None, None, None


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


def _composite_sequence(
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


def autocast_on(input: Tensor) -> bool:
    """Whether autocast is on for the device of `input`."""
    # The first question is several times cheaper, but torch.compile can't trace it.
    if not torch.compiler.is_compiling() and not _any_autocast():
        return False
    return torch.is_autocast_enabled(input.device.type)


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


def _autocast(*tensors: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    """Casts as autocast casts the arguments of a linear layer, which is what it does to torch's RNN."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)  # type: ignore[union-attr]
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in tensors
    )


def _consistent(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
) -> bool:
    """Whether a backend may be handed these tensors: one supported dtype, one device, shapes that fit."""
    # Flat rather than in loops: this is on the path of every call.
    dtype, device = x.dtype, x.device
    if (
        dtype not in _DTYPES
        or h.dim() != 2
        or h.dtype is not dtype
        or h.device != device
        or weight_ih.dtype is not dtype
        or weight_ih.device != device
        or weight_hh.dtype is not dtype
        or weight_hh.device != device
    ):
        return False
    hidden_size = h.shape[1]
    if weight_ih.shape != (hidden_size, x.shape[-1]) or weight_hh.shape != (hidden_size, hidden_size):
        return False
    if bias_ih is not None and (
        bias_ih.dtype is not dtype or bias_ih.device != device or bias_ih.shape != (hidden_size,)
    ):
        return False
    return bias_hh is None or (
        bias_hh.dtype is dtype and bias_hh.device == device and bias_hh.shape == (hidden_size,)
    )


def _left_to_torch(result: Any, backend: str, tensors: tuple[Optional[Tensor], ...]) -> Any:
    """Arguments that no kernel takes are given to torch's operator, which knows best how to reject them.

    It takes more than the kernels do, complex numbers for example; then its result stands, unless the
    caller asked for another backend.
    """
    if backend not in ("auto", "aten"):
        got = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in tensors if t is not None)
        raise RuntimeError(
            f"backend '{backend}' takes tensors of one dtype ({', '.join(sorted(DTYPES))}) on one device,"
            f" with shapes that fit; got {got}"
        )
    return result


def _raise_unknown(nonlinearity: str) -> None:
    torch.nn.RNN(1, 1, nonlinearity=nonlinearity)  # raises torch's own error
