"""Stacks of layers as backends get them: problems, results by name, and what torch.nn.RNN makes of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnfast import dispatch, testing
from rnnfast.backends.base import Backend, read_by
from rnnfast.call import Call, Network

Results = dict[str, Tensor]  # out, h_n, hidden and inner; or gradients by `Stack.names`


@dataclass(frozen=True)
class Stack:
    """A call, and the gradients that come back to it."""

    call: Call
    grad_out: Optional[Tensor]  # like out; None for zeros
    grad_hn: Optional[Tensor]  # like h_n; None for zeros

    @property
    def names(self) -> tuple[str, ...]:
        """Of x, h0 and each weight, which has the number of its layer and direction."""
        network = self.call.network
        count = network.layers * len(network.reverse)
        return "x", "h0", *(f"{kind}.{i}" for i in range(count) for kind in network.parts)

    def forward(self, solver: Backend) -> Results:
        network = self.call.network
        names = ["out", "h_n"] + ["hidden"] * (network.layers > 1) + ["inner"] * (network.cell != "elman")
        return dict(zip(names, solver.forward(self.call), strict=True))

    def backward(
        self, solver: Backend, results: Results, wanted: Optional[Collection[str]] = None
    ) -> Results:
        """The wanted gradients, by default all, of a call that has no tensor but those that they read."""
        call, names = self.call, self.names
        needs = tuple(wanted is None or name in wanted for name in names)
        read = read_by(call.network, needs, call.steps > 1)
        given = (call.x, call.h0, *call.weights)
        x, h0, *weights = (t if needed else None for t, needed in zip(given, read, strict=True))
        call = call.bare().having(x, h0, tuple(weights), call.batch_sizes, call.resets)
        outputs = tuple(results.values())
        grads = testing.backward(solver, call, outputs, (self.grad_out, self.grad_hn), needs)
        assert [grad is not None for grad in grads] == list(needs)
        return {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}


def make(
    shape: tuple[int, int, int, int, int, int],  # L, D, T, B, I, H
    dtype: torch.dtype,
    lengths: Optional[list[int]] = None,
    h0: bool = True,
    **network: Any,
) -> Stack:
    """A stack whose products with W_hh contract; `lengths` are those of packed sequences, longest first."""
    layers, directions, steps, batch, inputs, hidden = shape
    batch_sizes, rows = None, (steps, batch)
    if lengths is not None:
        batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(lengths[0])])
        batch, rows = len(lengths), (sum(lengths),)  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    network = {"nonlinearity": "tanh", "reverse": (False, True)[:directions], **network}
    weights = []
    for width in [inputs] * directions + [directions * hidden] * directions * (layers - 1):
        weights += [normal(hidden, width) / width**0.5, normal(hidden, hidden) / hidden**0.5 / 4]
        weights += [normal(hidden), normal(hidden)] if network.get("biases", True) else []
        weights += [normal(hidden).sigmoid()] if network.get("cell", "elman") != "elman" else []
        weights += [normal(steps * batch, hidden) / 4] if network.get("noise") else []
    resets = torch.arange(steps * batch) % 3 == 1 if network.get("resets") else None
    state = (layers * directions, batch, hidden)
    tensors = normal(*rows, inputs), normal(*state) if h0 else None, tuple(weights), batch_sizes, resets
    call = testing.call_of(Network(layers=layers, module=True, **network), *tensors)
    return Stack(call, normal(*rows, directions * hidden), normal(*state))


def of_torch(stack: Stack) -> tuple[Results, Results]:
    """Outputs and gradients by torch.nn.RNN in float64."""
    network, call = stack.call.network, stack.call
    x, h0, *weights = (
        None if t is None else t.detach().double().requires_grad_() for t in (call.x, call.h0, *call.weights)
    )
    assert x is not None and network.reverse in ((False,), (False, True)) and not network.step

    def layers(count: int) -> Any:
        rnn = torch.nn.RNN(
            call.input_size,
            call.hidden_size,
            count,
            network.nonlinearity,
            network.biases,
            network.batch_first,
            bidirectional=len(network.reverse) == 2,
            dtype=torch.float64,
        )
        states = None if h0 is None else h0[: count * len(network.reverse)]
        names = [name for name, _ in rnn.named_parameters()]
        given = dict(zip(names, weights, strict=False))
        rows = x if call.batch_sizes is None else PackedSequence(x, call.batch_sizes)
        out, h_n = torch.func.functional_call(rnn, given, (rows, states))
        return out if call.batch_sizes is None else out.data, h_n

    out, h_n = layers(network.layers)
    results = {"out": out, "h_n": h_n}
    if network.layers > 1:
        below = [layers(count)[0].reshape(call.rows, out.shape[-1]) for count in range(1, network.layers)]
        results["hidden"] = torch.stack(below)
    grads = [
        torch.zeros_like(result) if grad is None else grad.double()
        for result, grad in ((out, stack.grad_out), (h_n, stack.grad_hn))
    ]
    leaves = [leaf for leaf in (x, h0, *weights) if leaf is not None]
    found = iter(torch.autograd.grad([out, h_n], leaves, grads))
    given = zip(stack.names, (x, h0, *weights), strict=True)
    gradients = {name: next(found) for name, leaf in given if leaf is not None}
    return {name: result.detach() for name, result in results.items()}, gradients


def compare(stack: Stack, backend: str) -> None:
    """Every output and gradient with torch.nn.RNN's in float64."""
    solver, call = dispatch.get(backend), stack.call
    outputs, gradients = of_torch(stack)
    terms = call.input_size + 2 * call.hidden_size + call.rows
    tolerance = call.network.layers * testing.tolerance(call.x.dtype, terms)
    results = stack.forward(solver)
    assert list(results) == list(outputs)
    assert all(result._base is None for result in results.values())  # autograd takes no views
    for name, result in results.items():
        testing.check(name, result, outputs[name], tolerance)
    for name, gradient in stack.backward(solver, results, set(gradients)).items():
        testing.check(f"gradient of {name}", gradient, gradients[name], tolerance)
