"""Derivatives of a call, in one place: a `torch.autograd.Function` around whatever computes it.

It saves nothing but inputs and outputs, and of the inputs what the wanted gradients read. Where that can't
serve (a second derivative, `torch.func` transforms, forward-mode AD) the same formulas run in differentiable
torch operators: the eager backend's.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from .arguments import weight_shape
from .backends.base import Outputs, read_by, state_shape
from .backends.eager import EagerBackend
from .call import Call, Network, dense_gradient
from .context import needs_composite, watched

_EAGER = EagerBackend()

# A private name of torch, looked up with a default so that another version can at worst lose the feature.
_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def composite(call: Call) -> tuple[Tensor, ...]:
    """What `Backend.forward` returns, in differentiable operators of torch's."""
    return _EAGER.forward_layers(call)


def _higher_order(
    grad_out: Optional[Tensor], grad_hn: Optional[Tensor], grad_inner: Optional[Tensor]
) -> bool:
    """Whether a backward is itself to be differentiated or transformed.

    What `torch.autograd.grad(is_grads_batched=True)` sends shows on nothing but the tensors.
    """
    if is_grad_enabled() or needs_composite():
        return True
    return not is_compiling() and (
        (grad_out is not None and _is_legacy_batched(grad_out))
        or (grad_hn is not None and _is_legacy_batched(grad_hn))
        or (grad_inner is not None and _is_legacy_batched(grad_inner))
    )


def fields(network: Network) -> tuple[Any, ...]:
    """A network, among the arguments of the operators."""
    return (
        network.nonlinearity,
        network.layers,
        [int(reverse) for reverse in network.reverse],
        network.biases,
        network.step,
        network.cell,
        network.noise,
    )


def _recorded_forward(call: Call, backend: str) -> tuple[Tensor, ...]:
    """A forward pass as a graph holds it."""
    inputs = (call.x, call.h0, list(call.weights), call.batch_sizes, call.resets, *fields(call.network))
    return tuple(torch.ops.rnnfast.rnn(*inputs, True, backend))


def _recorded_backward(
    call: Call, outputs: Outputs, needs: tuple[bool, ...], backend: str
) -> tuple[Optional[Tensor], ...]:
    """A backward pass as a graph holds it: of rows that are time-major, and of stacked states."""
    network, directions, hidden_size = call.network, len(call.network.reverse), call.hidden_size
    rows: tuple[int, ...] = (call.steps, call.batch)
    if network.step or call.batch_sizes is not None:
        rows = rows[1:] if network.step else (call.rows,)
    stacked = () if network.step else (network.layers * directions,)
    state = (*stacked, call.batch, hidden_size)
    width = directions * hidden_size
    out, hidden, grad_out, grad_hn, _, inner, grad_inner = outputs
    out, grad_out = _shaped(out, (*rows, width)), _shaped(grad_out, (*rows, width))
    shapes: list[tuple[int, ...]] = [(*rows, call.input_size), state]
    shapes += [
        weight_shape(network, i, call.input_size, hidden_size, call.rows) for i in range(len(call.weights))
    ]
    # Something of the right shape, but without memory, takes the place of what is not read.
    x, h0, *weights = (
        out.new_empty(()).expand(shape) if tensor is None else _shaped(tensor, shape)
        for tensor, shape in zip((call.x, call.h0, *call.weights), shapes, strict=True)
    )
    if call.h0 is None and read_by(network, needs, bool(call.steps > 1))[1]:
        h0 = None  # read, and zeros
    inputs = (x, h0, weights, call.batch_sizes, call.resets, *fields(network))
    grads = (grad_out, _shaped(grad_hn, state), grad_inner)
    given = (out, hidden, inner, *grads, list(needs), backend)
    found = iter(torch.ops.rnnfast.rnn_backward(*inputs, *given))
    dx, dh0, *dweights = (next(found) if needed else None for needed in needs)
    x_shape = (*outputs.out.shape[:-1], call.input_size)
    return _shaped(dx, x_shape), _shaped(dh0, state_shape(call, outputs.out)), *dweights


def _shaped(tensor: Any, shape: tuple[int, ...]) -> Any:
    """The same numbers in another shape, where it is another."""
    return tensor if tensor is None or tensor.shape == shape else dense_gradient(tensor).reshape(shape)


class Recurrence(torch.autograd.Function):
    """Returns what `solver.forward(call)` does; x, h0 and weights are those of the call.

    Without a solver the registered operators compute both passes, as they do where a call is `watched`.
    """

    @staticmethod
    def forward(ctx: Any, solver: Any, call: Any, backend: str, x: Any, h0: Any, *weights: Any) -> Any:
        outputs = _recorded_forward(call, backend) if solver is None else solver.forward(call)
        needs = ctx.needs_input_grad[3:]
        read = read_by(call.network, needs, bool(call.steps > 1))
        saved = [tensor if wanted else None for tensor, wanted in zip((x, h0, *weights), read, strict=True)]
        hidden = inner = None
        if len(outputs) > 2:
            hidden = outputs[2] if call.network.layers > 1 else None
            inner = outputs[-1] if call.network.cell != "elman" else None
        ctx.save_for_backward(*saved, outputs[0], hidden, inner, call.batch_sizes, call.resets)
        ctx.set_materialize_grads(False)  # most callers use one of the outputs; the other's is None
        ctx.call, ctx.backend, ctx.solver = call.bare(), backend, solver
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_out: Any, grad_hn: Any = None, *rest: Any) -> Any:
        x, h0, *weights, out, hidden, inner, batch_sizes, resets = ctx.saved_tensors
        needs, solver = ctx.needs_input_grad[3:], ctx.solver
        grad_hidden = rest[0] if rest and hidden is not None else None
        grad_inner = rest[-1] if rest and inner is not None else None
        outputs = Outputs(out, hidden, grad_out, grad_hn, grad_hidden, inner, grad_inner)
        call = ctx.call.having(x, h0, tuple(weights), batch_sizes, resets)
        # A gradient of what lies between layers comes from a double backward pass alone.
        between = grad_hidden is not None or (grad_inner is not None and call.network.cell == "leaky")
        if between or _higher_order(grad_out, grad_hn, grad_inner):
            grads = _EAGER.backward(call, outputs, needs)
        elif solver is None or watched(out, grad_out, grad_hn):
            grads = _recorded_backward(call, outputs, needs, ctx.backend)
        else:
            grads = solver.backward(call, outputs, needs)
        return None, None, None, *grads


# Function.apply first looks for what a finished transform may have left in its arguments, for 2 us. Calls
# outside of transforms skip it.
apply = super(torch.autograd.Function, Recurrence).apply
