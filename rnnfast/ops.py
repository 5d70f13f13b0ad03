"""The operators torch.ops.rnnfast.*: calls as graphs hold them.

A graph may be called with tensors of other shapes, dtypes or devices than it was captured with, so operators
check all of their arguments, when a graph is captured as when it runs. The backend is chosen when an operator
runs, so that a graph with backend="auto" takes the best one for every batch size and length.

Arguments of both: x ``[T, B, I]``, with batch_sizes ``[R, I]``, of a step ``[B, I]``; h0 ``[L * D, B, H]``,
of a step ``[B, H]``, None for zeros (not in graphs of packed sequences, which know B from h0 alone);
weights, for each layer and direction those of `call.Network.parts`; batch_sizes ``[T]``; resets ``[R]`` bool;
then fields of `call.Network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from . import dispatch
from .arguments import (
    check_backward,
    check_fake_batch_sizes,
    check_names,
    check_network,
    check_packed,
    check_resets,
    fits,
    left_to_torch,
)
from .backends.aten import torch_call
from .backends.base import Outputs, read_by
from .call import Call, Network, made, memory, read
from .context import needs_grad
from .derivative import Recurrence

_lib = torch.library.Library("rnnfast", "DEF")
# Function modes see a call, not what it consists of, as with torch's own operators; so none can change what a
# kernel gets or where it writes.
unseen = torch._C.DisableTorchFunction

# Integers, as torch.jit.trace records no list of bools.
_CALL = (
    "Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, Tensor? resets, str nonlinearity,"
    " int layers, int[] reverse, bool biases, bool step, str cell, bool noise"
)
_FORWARD = f"rnn({_CALL}, bool grad, str backend) -> Tensor[]"
_BACKWARD = (
    f"rnn_backward({_CALL}, Tensor out, Tensor? hidden, Tensor? inner, Tensor? grad_out, Tensor? grad_hn,"
    " Tensor? grad_inner, bool[] needs, str backend) -> Tensor[]"
)


def _network(arguments: Sequence[Any], resets: bool) -> Network:
    nonlinearity, layers, reverse, biases, step, cell, noise = arguments
    extras = {"cell": cell, "noise": noise, "resets": resets}
    walks = tuple(map(bool, reverse))
    network = Network(nonlinearity, layers, walks, biases, step, module=not step, **extras)
    check_network(network)
    return network


def _looked_at(arguments: Sequence[Any], backend: str, fake: bool) -> Optional[Call]:
    """A call of an operator's arguments, or None if no kernel may be given them."""
    x, h0, weights, batch_sizes, resets, *fields = arguments
    check_names(fields[0], backend, fields[4])
    if x is None:
        raise TypeError("argument 'x' (position 1) must be Tensor, not NoneType")
    network = _network(fields, resets is not None)
    if network.step and h0 is None:
        raise TypeError("argument 'h0' (position 2) must be Tensor, not NoneType")
    if fake:
        check_fake_batch_sizes(batch_sizes, x)
    elif batch_sizes is not None:
        check_packed(batch_sizes, x, h0)
    packed = batch_sizes is not None
    if packed and resets is not None:
        check_resets(resets, x, packed)
    if len(weights) < 2 or not fits(network, x, h0, weights, packed, resets):
        return None
    return made(network, x, h0, tuple(weights), batch_sizes, resets)


def _of_torch(arguments: Sequence[Any], backend: str) -> list[Tensor]:
    """What torch's operator makes of arguments that no kernel takes.

    Raises:
        RuntimeError: it doesn't take them either, or another backend was asked for.
    """
    x, h0, weights, batch_sizes, resets, *fields = arguments
    network = _network(fields, resets is not None)
    if len(weights) != network.layers * len(network.reverse) * network.per:
        raise RuntimeError(f"got {len(weights)} weights for {network}")
    results = torch_call(network, x, h0, tuple(weights), batch_sizes, resets)
    return list(left_to_torch(results, backend, (x, h0, *weights)))


def _detached(results: Sequence[Tensor]) -> list[Tensor]:
    """Without the derivatives that torch's operators inside of a backend may have recorded."""
    return [result.detach() if result.requires_grad else result for result in results]


def _fake(*arguments: Any) -> list[Tensor]:
    *inputs, _, backend = arguments
    call = _looked_at(inputs, backend, fake=True)
    if call is None:
        return _of_torch(inputs, backend)
    network, x = call.network, call.x
    directions = len(network.reverse)
    width = directions * call.hidden_size
    out = x.new_empty((*x.shape[:-1], width))
    if network.step:
        return [out]
    h_n = x.new_empty((network.layers * directions, call.batch, call.hidden_size))
    results = [out, h_n]
    if network.layers > 1:
        results.append(x.new_empty((network.layers - 1, call.rows, width)))
    if network.cell != "elman":
        results.append(x.new_empty((network.layers, call.rows, width)))
    return results


def _kernel(*arguments: Any) -> list[Tensor]:
    *inputs, grad, backend = arguments
    call = _looked_at(inputs, backend, fake=False)
    if call is None:
        return _detached(_of_torch(inputs, backend))
    with unseen():
        call = dense_call(call)
        return _detached(dispatch.find(backend, call, grad).forward(call))


def dense_call(call: Call) -> Call:
    """The same of dense tensors, read by native code if there is one."""
    weights = tuple(memory(weight) for weight in call.weights)
    given: Any = (
        call.network,
        memory(call.x),
        memory(call.h0),
        weights,
        call.batch_sizes,
        memory(call.resets),
    )
    return read(*given) or made(*given)


def _differentiable(*arguments: Any) -> list[Tensor]:
    """What the operator does where autograd may record it.

    A caller need not say whether a backward pass will follow: that is known here, when the operator runs, and
    not when a graph is captured.
    """
    *inputs, grad, backend = arguments
    x, h0, weights, batch_sizes = inputs[:4]
    call = _looked_at(inputs, backend, fake=True)
    if call is None:
        if batch_sizes is not None:
            check_packed(batch_sizes, x, h0)  # torch's operator would not
        return _of_torch(inputs, backend)  # it has its own derivative
    if not needs_grad(x, h0, *weights):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.rnnfast.rnn(*inputs, grad, backend)
    return list(Recurrence.apply(None, call, backend, x, h0, *weights))


def _backward_call(arguments: Sequence[Any]) -> tuple[Network, tuple[Any, ...], Outputs, tuple[bool, ...]]:
    """The checked arguments of rnn_backward: network; x, h0, weights, batch_sizes, resets; outputs; needs."""
    inputs, fields, (*results, needs, backend) = arguments[:5], arguments[5:12], arguments[12:]
    x, resets = inputs[0], inputs[4]
    out, hidden, inner, grad_out, grad_hn, grad_inner = results
    check_names(fields[0], backend, fields[4])
    for position, name, tensor in ((1, "x", x), (13, "out", out)):
        if tensor is None:
            raise TypeError(f"argument '{name}' (position {position}) must be Tensor, not NoneType")
    network = _network(fields, resets is not None)
    check_backward(network, tuple(inputs), (out, hidden, inner), (grad_out, grad_hn, grad_inner), needs)
    outputs = Outputs(out, hidden, grad_out, grad_hn, inner=inner, grad_inner=grad_inner)
    return network, tuple(inputs), outputs, tuple(needs)


def _fake_backward(*arguments: Any) -> list[Tensor]:
    _, (x, h0, weights, batch_sizes, _), _, needs = _backward_call(arguments)
    check_fake_batch_sizes(batch_sizes, x)
    return [
        x.new_empty(tensor.shape)
        for tensor, needed in zip((x, h0, *weights), needs, strict=True)
        if needed and tensor is not None
    ]


def _kernel_backward(*arguments: Any) -> list[Tensor]:
    network, (x, h0, weights, batch_sizes, resets), outputs, needs = _backward_call(arguments)
    if batch_sizes is not None:
        check_packed(batch_sizes, x, outputs.grad_hn if h0 is None else h0)
    with unseen():
        steps = len(batch_sizes) if batch_sizes is not None else 1 if network.step else x.shape[0]
        read_flags = read_by(network, needs, steps > 1)
        # What no gradient reads may have no memory behind it.
        x, h0, *weights = (
            tensor if tensor is None else memory(tensor) if wanted else tensor.new_empty(tensor.shape)
            for tensor, wanted in zip((x, h0, *weights), read_flags, strict=True)
        )
        given: Any = (network, x, h0, tuple(weights), batch_sizes, memory(resets))
        call = read(*given) or made(*given)
        outputs = Outputs(*(memory(tensor) for tensor in outputs))
        grads = dispatch.find(arguments[-1], call, True).backward(call, outputs, needs)
        return _detached([grad for grad in grads if grad is not None])


def _register(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.split("(")[0]
    _lib.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _lib.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rnnfast::{name}", fake, lib=_lib)


_register(_FORWARD, _kernel, _fake)
_register(_BACKWARD, _kernel_backward, _fake_backward)
_lib.impl("rnn", _differentiable, "Autograd")
