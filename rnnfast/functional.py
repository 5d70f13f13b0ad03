"""The recurrence as functions, and the way that every call takes.

A call is `read` and run (`run`), in most cases without anything in between. What can't be read takes
`_prepared`, where everything unusual branches off before anything is computed, in this order:

1. torch's own operator, for arguments that no kernel takes (it rejects most of them with its own errors) and
   where a `__torch_function__` is to see what torch's modules call;
2. the composite of differentiable torch operators, under `torch.func` transforms and forward-mode AD, and for
   single steps on the CPU that torch.compile may fuse with what is around them;
3. the registered operator, under torch.compile, export, a dispatch mode or the profiler.

What is left has been made dense, or cast by autocast, and is read and run like any other call.
"""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor, is_grad_enabled
from torch.overrides import handle_torch_function

from . import onnx, ops
from .arguments import (
    check_alpha,
    check_names,
    check_network,
    check_packed,
    check_resets,
    described,
    fits,
    left_to_torch,
    strided,
)
from .backends.aten import torch_call
from .call import CELLS, Call, Network, made, read
from .context import (
    autocast_on,
    fusible,
    needs_composite,
    ordinary,
    overridden,
    recorded_as_torch_s,
    tracing,
    undisturbed,
    watched,
)
from .derivative import apply, composite, fields
from .dispatch import check_name, find, means_auto


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
    given = (input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    weights = given[2:4] if bias_ih is None and bias_hh is None else given[2:]
    if hx is not None and undisturbed():
        network = _NETWORKS.get((nonlinearity, False, len(weights) == 4, True))
        call = None if network is None else read(network, input, hx, weights, None)
        if call is not None:
            return run(call, backend)[0]
    check_names(nonlinearity, backend, step=True)
    network = Network(nonlinearity, biases=len(weights) == 4, step=True)
    if not _usual(given):
        if not _are_tensors(given) or shown_to_others(backend, *given):
            return torch_call(network, input, hx, weights)[0]
        if overridden(*given):
            return handle_torch_function(rnn_step, given, *given, nonlinearity, backend=backend)
    return _prepared(network, input, hx, _both(weights), None, backend)[0]


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
    alpha: Union[float, Tensor, None] = None,
    cell: str = "elman",
    noise: Optional[Tensor] = None,
    resets: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    r"""One layer in one direction over a whole sequence, time-major.

    Computes ``h_t = act(x_t @ W_ih.T + b_ih + h_{t-1} @ W_hh.T + b_hh)`` for all t, which is
    ``for t in range(T): h = output[t] = rnn_step(input[t], h, ...)``, or with ``reverse`` the same
    for t from T - 1 down to 0. It is what `torch.nn.RNN` of one layer computes; ``reverse`` is the second
    direction of a bidirectional one.

    With ``a_t = x_t @ W_ih.T + b_ih + c @ W_hh.T + b_hh``, c being what is carried from step to step, and n_t
    being ``noise``, or zero, the cells are

    - ``"elman"``: ``h_t = act(a_t + n_t)``, c = h_{t-1};
    - ``"leaky"``: ``h_t = (1 - alpha) h_{t-1} + alpha act(a_t + n_t)``, c = h_{t-1};
    - ``"ctrnn"``: ``v_t = (1 - alpha) v_{t-1} + alpha a_t + n_t``, c = act(v_{t-1}). ``h0`` and ``h_n`` are
      v, ``output`` is act(v).

    Args:
        input: ``[T, B, I]`` with T of at least 1; with ``batch_sizes`` the packed rows ``[R, I]``, R being
            their sum. float64, float32, bfloat16 or float16; all tensors have its dtype and device.
        h0: the state before the first step taken, ``[B, H]``.
        weight_ih: ``[H, I]``.
        weight_hh: ``[H, H]``.
        bias_ih, bias_hh: ``[H]`` each, or None.
        nonlinearity: ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` or ``"identity"``.
        reverse: walk from the last step to the first; outputs stay in the order of the inputs.
        batch_sizes: ``[T]``, int64, on the CPU: as in a PackedSequence, the number of sequences that
            are at least t + 1 steps long, for every t. Positive and non-increasing.
        backend: ``"auto"`` or the name of a backend, see `rnnfast.show_config`.
        alpha: of a leaky or continuous-time cell a number in (0, 1], or a tensor, ``[]`` or ``[H]``, whose
            values are not looked at.
        cell: ``"elman"``, ``"leaky"`` or ``"ctrnn"``.
        noise: ``[T, B, H]``, packed ``[R, H]``: what is added in each step. It may have a gradient.
        resets: ``[T, B]``, bool, without ``batch_sizes``: where it is set, the step starts from a state (h,
            or v) of zeros in place of the one that the step before has left, or of ``h0``.

    Returns:
        ``output``, the states of all steps, ``[T, B, H]`` (packed: ``[R, H]``), and ``h_n``, the state
        after each sequence's last step taken, ``[B, H]``. New tensors; ``h0`` is left as it is.

    Raises:
        RuntimeError: shapes, dtypes or devices don't fit (torch's own error for the same arguments),
            or the backend is not available or refuses the problem.
        TypeError: an argument of another type (torch's own error where torch takes that argument).
        ValueError: unknown nonlinearity, cell or backend, ``batch_sizes`` that don't fit the input,
            ``resets`` beside them, or an ``alpha`` out of range, missing, or of a cell that has none.
    """
    given = (input, h0, weight_ih, weight_hh, bias_ih, bias_hh)
    weights = given[2:4] if bias_ih is None and bias_hh is None else given[2:]
    plain = cell == "elman" and alpha is None and noise is None and resets is None
    if plain and undisturbed() and isinstance(reverse, bool):
        network = _NETWORKS.get((nonlinearity, reverse, len(weights) == 4, False))
        call = None if network is None else read(network, input, h0, weights, batch_sizes)
        if call is not None:
            return run(call, backend, False)[:2]
    check_names(nonlinearity, backend)
    if not isinstance(reverse, bool):
        raise TypeError(f"argument 'reverse' must be bool, not {type(reverse).__name__}")
    network = Network(nonlinearity, reverse=(reverse,), biases=len(weights) == 4)
    tensors = (*given, alpha, noise, resets)
    if not _usual(given) or not ordinary(noise, resets):
        if not _are_tensors(given) or (plain and shown_to_others(backend, *given)):
            output, h_n = torch_call(network, input, h0, _both(weights), batch_sizes)
            return output, h_n
        if overridden(*tensors):
            options: dict[str, Any] = {"reverse": reverse, "batch_sizes": batch_sizes, "backend": backend}
            options |= {"alpha": alpha, "cell": cell, "noise": noise, "resets": resets}
            return handle_torch_function(rnn_sequence, tensors, *given, nonlinearity, **options)
    weights = _both(weights)
    if not plain:
        extras = _extras(input, weight_hh, cell, alpha, noise)
        weights = (*weights, *(tensor for tensor in extras[1:] if tensor is not None))
        if resets is not None:
            resets = _flat(resets, input, batch_sizes is not None)
        network = network._replace(cell=extras[0], noise=noise is not None, resets=resets is not None)
        if undisturbed():
            call = read(network, input, h0, weights, batch_sizes, resets)
            if call is not None:
                return run(call, backend, False)[:2]
    output, h_n, *_ = _prepared(network, input, h0, weights, batch_sizes, backend, resets)
    return output, h_n


def _extras(
    x: Tensor, weight_hh: Tensor, cell: Any, alpha: Any, noise: Any
) -> tuple[str, Optional[Tensor], Optional[Tensor]]:
    """Checks and returns the cell, alpha ``[H]`` and noise ``[R, H]``.

    A leaky cell whose alpha is the number 1 is an elman cell.
    """
    if cell not in CELLS:
        raise ValueError(f"Unknown cell '{cell}'. Select from {', '.join(map(repr, CELLS))}.")
    if noise is not None:
        if not isinstance(noise, Tensor):
            raise TypeError(f"argument 'noise' must be Tensor, not {type(noise).__name__}")
        if not strided(noise) or noise.dim() != x.dim() or noise.shape[:-1] != x.shape[:-1]:
            wanted = [*x.shape[:-1], weight_hh.shape[0]]
            raise RuntimeError(f"noise must be {wanted}, dense, beside x; got {described(noise)}")
        noise = noise.reshape(-1, noise.shape[-1]) if noise.dim() == 3 else noise
    if cell == "elman":
        if alpha is not None:
            raise ValueError("the cell 'elman' has no alpha; 'leaky' and 'ctrnn' have one")
        return cell, None, noise
    if alpha is None:
        raise ValueError(f"the cell '{cell}' has an alpha, a number in (0, 1] or a tensor; got None")
    if isinstance(alpha, Tensor):
        if alpha.dim() == 0:
            alpha = alpha.expand(weight_hh.shape[:1]).contiguous()
        return cell, alpha, noise
    check_alpha(alpha)
    if cell == "leaky" and alpha == 1:
        return "elman", None, noise
    return cell, weight_hh.new_full(weight_hh.shape[:1], alpha), noise


def _flat(resets: Any, x: Any, packed: bool) -> Tensor:
    """``[R]``, as a call has them, of ``[T, B]``. Beside an x that has other dimensions, which is an error
    that is found later, they are as they were."""
    if packed or not isinstance(resets, Tensor) or (isinstance(x, Tensor) and x.dim() == 3):
        check_resets(resets, x, packed)
        return resets.reshape(-1)
    return resets


def rnn_stack(
    network: Network,
    input: Tensor,
    h0: Optional[Tensor],
    weights: tuple[Tensor, ...],
    batch_sizes: Optional[Tensor] = None,
    backend: str = "auto",
    resets: Optional[Tensor] = None,
    inner: bool = False,
) -> tuple[Tensor, ...]:
    """All layers and directions of a module, time-major and with a batch: what `rnnfast.RNN` calls.

    Args:
        network: what is computed, with ``module=True``.
        input: ``[T, B, I]``, or with ``batch_sizes`` ``[R, I]``, as in `rnn_sequence`.
        h0: ``[L * D, B, H]``, or None for zeros.
        weights: for each layer, for each direction: W_ih ``[H, I]`` or, from the second layer on,
            ``[H, D * H]``, W_hh ``[H, H]``, with ``biases`` b_ih and b_hh ``[H]``, of a leaky or
            continuous-time cell alpha ``[H]``, and with ``noise`` that, ``[T * B, H]`` or ``[R, H]``.
        batch_sizes, backend, resets: as in `rnn_sequence`.
        inner: whether to return inner, too.

    Returns:
        ``output``, ``[T, B, D * H]`` (packed: ``[R, D * H]``), and ``h_n``, ``[L * D, B, H]``. With ``inner``
        the third is what the cells of all layers have beside their outputs, ``[L, T * B, D * H]`` or
        ``[L, R, D * H]``: act(a_t + n_t) of a leaky cell, v_t of a continuous-time one.

    Raises:
        As `rnn_sequence`.
    """
    given = (input, h0, *weights)
    if inner and network.cell == "elman":
        raise ValueError("an elman cell has nothing beside its output")
    if resets is not None:
        network, resets = network._replace(resets=True), _flat(resets, input, batch_sizes is not None)
    if undisturbed():
        call = read(network, input, h0, weights, batch_sizes, resets)
        if call is not None:
            return _chosen(run(call, backend, inner), inner)
    check_names(network.nonlinearity, backend)
    check_network(network)
    for i, tensor in enumerate(given):
        if not isinstance(tensor, Tensor) and not (i == 1 and tensor is None):
            name = ("input", "h0")[i] if i < 2 else f"weights[{i - 2}]"
            raise TypeError(f"argument '{name}' must be Tensor, not {type(tensor).__name__}")
    if not ordinary(*given) and overridden(*given):
        options = (network, input, h0, weights, batch_sizes, backend, resets, inner)
        return handle_torch_function(rnn_stack, given, *options)
    return _chosen(_prepared(network, input, h0, weights, batch_sizes, backend, resets), inner)


def _chosen(results: tuple[Tensor, ...], inner: bool) -> tuple[Tensor, ...]:
    return (*results[:2], results[-1]) if inner else results[:2]


def run(call: Call, backend: str, inner: bool = True) -> Any:
    """Computes a call that nothing watches; returns what `Backend.forward` does, of torch's own less.

    Without `inner` that may be missing where no derivative is wanted.
    """
    grad = is_grad_enabled() and _requires_grad(call)
    solver = find(backend, call, grad)
    if solver.name == "aten":
        return torch_call(call.network, call.x, call.h0, call.weights, call.batch_sizes)
    if grad:
        return apply(solver, call, backend, call.x, call.h0, *call.weights)
    return solver.forward(call) if inner else solver.infer(call)


def _requires_grad(call: Call) -> bool:
    for weight in call.weights:  # they do more often than inputs
        if weight.requires_grad:
            return True
    return call.x.requires_grad or (call.h0 is not None and call.h0.requires_grad)


def _prepared(
    network: Network,
    x: Tensor,
    h0: Optional[Tensor],
    weights: tuple[Any, ...],
    batch_sizes: Optional[Tensor],
    backend: str,
    resets: Optional[Tensor] = None,
) -> tuple[Tensor, ...]:
    """Runs what was not read, or lets others do it; see the head of this file."""
    given = x, h0, weights
    if autocast_on(x):
        x, h0, *weights = _autocast(x, h0, *weights)  # type: ignore[assignment]
        weights = tuple(weights)
    packed, seen = batch_sizes is not None, watched(x, h0, *weights)
    if batch_sizes is not None and not seen:  # else the operator does it, when it runs
        check_packed(batch_sizes, x, h0)
    if not fits(network, x, h0, weights, packed, resets) and not (packed and seen):
        return left_to_torch(torch_call(network, *given, batch_sizes, resets), backend, (x, h0, *weights))
    if needs_composite() or (network.step and means_auto(backend) and fusible(x)):
        check_name(backend)
        return composite(made(network, x, h0, weights, batch_sizes, resets))
    if seen:
        if network.extras and tracing():  # torch has no operator for it, so a loop of one number of steps
            return composite(made(network, x, h0, weights, batch_sizes, resets))
        if recorded_as_torch_s(backend) and not network.extras:
            return torch_call(network, x, h0, weights, batch_sizes)
        if torch.onnx.is_in_onnx_export() and not packed:
            if network.step or network.extras:
                return composite(made(network, x, h0, weights, None, resets))
            if x.dtype is not onnx.DTYPE:
                return torch_call(network, x, h0, weights)
            return onnx.rnn(network, x, h0, weights)
        # Copied here, where autograd sees it, rather than in the operator and again in its backward.
        rows = x if network.step else x.contiguous()
        return _recorded(network, rows, h0, weights, batch_sizes, resets, backend)
    with ops.unseen():
        return run(ops.dense_call(made(network, x, h0, weights, batch_sizes, resets)), backend)


def _recorded(
    network: Network,
    x: Tensor,
    h0: Optional[Tensor],
    weights: tuple[Tensor, ...],
    batch_sizes: Optional[Tensor],
    resets: Optional[Tensor],
    backend: str,
) -> tuple[Tensor, ...]:
    """As the registered operator, whose states have a dimension of layers and directions."""
    stacked = network.step or network.module
    states = h0 if stacked or h0 is None else h0.unsqueeze(0)
    inputs = (x, states, list(weights), batch_sizes, resets, *fields(network))
    out, *rest = torch.ops.rnnfast.rnn(*inputs, False, backend)
    return (out,) if network.step else (out, rest[0] if stacked else rest[0].squeeze(0), *rest[1:])


_NETWORKS = {
    (nonlinearity, reverse, biases, step): Network(nonlinearity, 1, (reverse,), biases, step)
    for nonlinearity in ("tanh", "relu")
    for reverse in (False, True)
    for biases in (False, True)
    for step in (False, True)
}


def _both(weights: tuple[Any, ...]) -> tuple[Any, ...]:
    """With zeros in place of a bias that is missing beside another; torch's operators know no such layer."""
    if len(weights) != 4 or (weights[2] is not None and weights[3] is not None):
        return weights
    like = weights[2] if weights[3] is None else weights[3]
    zeros = torch.zeros_like(like) if isinstance(like, Tensor) else None
    return *weights[:2], *(zeros if bias is None else bias for bias in weights[2:])


def _autocast(*tensors: Optional[Tensor]) -> tuple[Any, ...]:
    """Casts the tensors as autocast casts the arguments of a linear layer and of torch's RNN."""
    assert tensors[0] is not None
    dtype = torch.get_autocast_dtype(tensors[0].device.type)

    def cast(t: Optional[Tensor]) -> Any:
        if t is None or not t.is_floating_point() or t.dtype is torch.float64:
            return t
        return t.to(dtype)

    return tuple(map(cast, tensors))


def shown_to_others(backend: str, *arguments: Any) -> bool:
    """Whether a `__torch_function__` is to see a call just as it would see one of torch's modules.

    Where a backend was asked for and there are tensors for it to work on, it sees ours instead.
    """
    if not overridden(*arguments):
        return False
    return backend in ("auto", "aten") or not all(t is None or isinstance(t, Tensor) for t in arguments)


def _usual(given: tuple[Any, ...]) -> bool:
    """Whether these are torch's own tensors and nobody intercepts a call: the usual case."""
    return all(argument is not None for argument in given[:4]) and ordinary(*given)


def _are_tensors(given: tuple[Any, ...]) -> bool:
    """Whether each is one, but for a bias that may be missing."""
    return all(isinstance(argument, Tensor) for argument in given[:4]) and all(
        bias is None or isinstance(bias, Tensor) for bias in given[4:]
    )
