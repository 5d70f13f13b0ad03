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
from .dispatch import find

_EAGER = EagerBackend()
_DTYPES = frozenset(getattr(torch, name) for name in DTYPES)

# Private names of torch, looked up with a default so that another version can at worst lose the feature.
_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


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
    if torch.is_autocast_enabled(input.device.type):
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh = _autocast(
            input, hx, weight_ih, weight_hh, bias_ih, bias_hh
        )
    if nonlinearity not in ("tanh", "relu"):
        _raise_unknown(nonlinearity)
    tensors = (input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    if input.dim() != 2 or not _consistent(*tensors):
        return _left_to_torch(torch_step(*tensors, nonlinearity), backend, tensors)

    grad = needs_grad(*tensors)
    if not in_graph():
        batch, input_size = input.shape
        name = solver("step", input, input_size, hx.shape[1], batch, 1, False, grad, backend)
        if _needs_composite():
            return _EAGER.step_forward(*tensors, nonlinearity)
        if name == "aten":
            return torch_step(*tensors, nonlinearity)
    if grad:
        return _Step.apply(*tensors, nonlinearity, backend)
    return ops.rnn_step(*tensors, nonlinearity, False, backend)


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
    if torch.is_autocast_enabled(input.device.type):
        input, h0, weight_ih, weight_hh, bias_ih, bias_hh = _autocast(
            input, h0, weight_ih, weight_hh, bias_ih, bias_hh
        )
    if nonlinearity not in ("tanh", "relu"):
        _raise_unknown(nonlinearity)
    tensors = (input, h0, weight_ih, weight_hh, bias_ih, bias_hh)
    packed = batch_sizes is not None
    if input.dim() != (2 if packed else 3) or input.shape[0] == 0 or not _consistent(*tensors):
        result = torch_sequence(*tensors, nonlinearity, batch_sizes, reverse)
        return _left_to_torch(result, backend, tensors)

    grad = needs_grad(*tensors)
    if not in_graph():
        steps = input.shape[0] if batch_sizes is None else batch_sizes.shape[0]
        batch, hidden_size = h0.shape
        name = solver("sequence", input, input.shape[-1], hidden_size, batch, steps, packed, grad, backend)
        if _needs_composite():
            return _composite_sequence(*tensors, nonlinearity, batch_sizes, reverse)
        if name == "aten":
            return torch_sequence(*tensors, nonlinearity, batch_sizes, reverse)
    if grad:
        # Copied once here, where autograd sees it, rather than in the operator and again in its backward.
        return _Sequence.apply(input.contiguous(), *tensors[1:], batch_sizes, nonlinearity, reverse, backend)
    return ops.rnn_sequence(*tensors, batch_sizes, nonlinearity, reverse, False, backend)


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
    deterministic = torch.are_deterministic_algorithms_enabled()
    device = input.device.type
    return find(
        backend, kind, device, input.dtype, input_size, hidden_size, batch, steps, packed, grad, deterministic
    ).name


def needs_grad(*tensors: Optional[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def in_graph() -> bool:
    """Whether the call is being captured or watched, so that our operators must be seen in it."""
    return torch.compiler.is_compiling() or _dispatch_modes() > 0


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, backend):  # type: ignore
        out = ops.rnn_step(x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, True, backend)
        ctx.save_for_backward(x, h, weight_ih, weight_hh, out)
        ctx.nonlinearity = nonlinearity
        ctx.backend = backend
        return out

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore
        saved = ctx.saved_tensors
        needs = _needs(ctx.needs_input_grad)
        if torch.is_grad_enabled() or _needs_composite(grad):
            grads = _fields(_EAGER.step_backward(grad, *saved, ctx.nonlinearity, Needs(*needs)))
        else:
            grads = _spread(ops.rnn_step_backward(grad, *saved, ctx.nonlinearity, needs, ctx.backend), needs)
        return *_both_biases(grads, ctx.needs_input_grad), None, None


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore
        ctx: Any, x, h0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, nonlinearity, reverse, backend
    ):
        out, h_n = ops.rnn_sequence(
            x, h0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, nonlinearity, reverse, True, backend
        )
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
        if torch.is_grad_enabled() or _needs_composite(grad_out, grad_hn):
            grads = _composite_sequence_backward(
                grad_out, grad_hn, *saved, ctx.nonlinearity, batch_sizes, ctx.reverse, Needs(*needs)
            )
        else:
            grads = _spread(
                ops.rnn_sequence_backward(
                    grad_out, grad_hn, *saved, batch_sizes, ctx.nonlinearity, ctx.reverse, needs, ctx.backend
                ),
                needs,
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


def _needs_composite(*grads: Optional[Tensor]) -> bool:
    """Whether a transform is active that has to see differentiable operators all the way down.

    `torch.autograd.grad(is_grads_batched=True)` shows only on the gradients that it sends.
    """
    return (
        _functorch_active()
        or getattr(forward_ad, "_current_level", -1) >= 0
        or any(
            grad is not None and not torch.compiler.is_compiling() and _is_legacy_batched(grad)
            for grad in grads
        )
    )


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
    if h.dim() != 2 or x.dtype not in _DTYPES:
        return False
    dtype, device, hidden_size = x.dtype, x.device, h.shape[1]
    if weight_ih.shape != (hidden_size, x.shape[-1]) or weight_hh.shape != (hidden_size, hidden_size):
        return False
    for bias in (bias_ih, bias_hh):
        if bias is not None and bias.shape != (hidden_size,):
            return False
    return all(
        t is None or (t.dtype is dtype and t.device == device)
        for t in (h, weight_ih, weight_hh, bias_ih, bias_hh)
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
