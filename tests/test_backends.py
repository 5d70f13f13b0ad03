"""Backends below the public functions: stacks, cells, and which tensors a backward pass reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rnnfast import dispatch, testing
from rnnfast.backends.base import read_by
from rnnfast.call import Network, dense, made
from rnnfast.native import native
from rnnfast.testing import BACKENDS
from tests.stacks import compare, make

# L, D, T, B, I, H
SHAPES = [(1, 1, 5, 3, 4, 6), (1, 2, 4, 2, 3, 5), (2, 1, 1, 3, 4, 6), (3, 2, 6, 3, 4, 7), (3, 1, 4, 1, 9, 2)]
LENGTHS = [5, 5, 2, 1]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@each_backend
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stack(shape, h0, nonlinearity, dtype, backend):
    if nonlinearity == "relu" and dtype.itemsize == 2:
        dtype = torch.float32  # a rounding error of 16 bits may decide a derivative
    compare(make(shape, dtype, h0=h0, nonlinearity=nonlinearity), backend)


@each_backend
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 0, 0, 4, 7), (2, 1, 0, 0, 3, 5)], ids=str)
def test_packed_stack(shape, h0, biases, dtype, backend):
    compare(make(shape, dtype, LENGTHS, h0, biases=biases), backend)


@each_backend
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "packed"])
def test_call_made_in_python(lengths, h0, backend):
    """As where there is no native extension."""
    stack = make((3, 2, 4, 2, 3, 5), torch.float64, lengths, h0)
    call = stack.call
    compare(replace(stack, call=made(call.network, call.x, call.h0, call.weights, call.batch_sizes)), backend)


@each_backend
@pytest.mark.parametrize("used", ["out", "h_n"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "packed"])
def test_one_output_used(lengths, used, backend):
    stack = make((3, 2, 4, 2, 3, 5), torch.float64, lengths)
    compare(replace(stack, **{"grad_hn" if used == "out" else "grad_out": None}), backend)


@each_backend
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "packed"])
@pytest.mark.parametrize("steps", [1, 4])
def test_one_gradient_wanted(steps, lengths, backend):
    """Of the tensors that it doesn't read, none is there."""
    stack, solver = make((3, 2, steps, 2, 3, 5), torch.float64, lengths), dispatch.get(backend)
    results = stack.forward(solver)
    everything = stack.backward(solver, results)
    for name in stack.names:
        (gradient,) = stack.backward(solver, results, [name]).values()
        testing.check(f"gradient of {name}", gradient, everything[name], 1e-14)
    assert stack.backward(solver, results, []) == {}


@pytest.mark.parametrize("steps", [1, 4])
def test_nothing_is_kept_that_no_gradient_reads(steps):
    """NaN in any tensor that is kept for a gradient reaches it."""
    stack, solver = make((3, 1, steps, 2, 3, 5), torch.float64), dispatch.get("eager")
    call, results = stack.call, tuple(stack.forward(solver).values())
    given = (call.x, call.h0, *call.weights)
    for name in stack.names:
        needs = tuple(name == other for other in stack.names)
        for i, read in enumerate(read_by(call.network, needs, steps > 1)):
            if read:
                x, h0, *weights = (
                    t if i != j else torch.full_like(t, torch.nan) for j, t in enumerate(given)
                )
                poisoned = call.having(x, h0, tuple(weights), None)
                grads = testing.backward(solver, poisoned, results, (stack.grad_out, stack.grad_hn), needs)
                assert grads[needs.index(True)].isnan().any(), f"{name} keeps {stack.names[i]}"


@each_backend
@pytest.mark.parametrize(
    "way", ["unbatched", "batch_first of one sequence", "batch_first of one step", "batch of none"]
)
def test_other_shapes_of_input(way, backend):
    """As native code reads them of a module's call: the memory is that of rows in each."""
    steps, batch = {"batch_first of one step": (1, 4), "batch of none": (4, 0)}.get(way, (4, 1))
    stack = make((2, 2, steps, batch, 3, 5), torch.float64)
    call = stack.call
    if way == "unbatched":
        x, h0 = call.x.squeeze(1), call.h0.squeeze(1)
        grads = stack.grad_out.squeeze(1), stack.grad_hn.squeeze(1)
        network = call.network
    else:
        first = way.startswith("batch_first")
        network = call.network._replace(batch_first=first)
        x, grad = (t.transpose(0, 1) if first else t for t in (call.x, stack.grad_out))
        h0, grads = call.h0, (grad, stack.grad_hn)
    if native is None and way != "batch of none":
        pytest.skip("without native code, such a call is prepared before it is made")
    arranged = testing.call_of(network, dense(x), h0, call.weights)
    assert arranged.x.shape == x.shape
    compare(type(stack)(arranged, *map(dense, grads)), backend)


@each_backend
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("given", ["h0", "no h0", "no batch", "no batch, no h0"])
def test_cell(given, biases, nonlinearity, backend):
    """A module's step, whose state may be missing and whose input may be without a batch."""
    solver = dispatch.get(backend)
    case = testing.make((1, 3, 4, 6), torch.float64, nonlinearity, bias=biases)
    x, h0, *weights = case.args
    x, weights, grad = x[0], tuple(w for w in weights if w is not None), case.grad_out[0]
    if "no batch" in given:
        x, h0, grad = x[0], h0[0], grad[0]
    network = Network(nonlinearity, biases=biases, step=True, module=True)
    if native is None and "no batch" in given:
        pytest.skip("without native code, such a call is prepared before it is made")
    call = testing.call_of(network, x, None if "no h0" in given else h0, weights)
    leaves = [t.detach().requires_grad_() for t in (x, h0, *weights)]
    cell = torch.rnn_tanh_cell if nonlinearity == "tanh" else torch.rnn_relu_cell
    rows, states = (t if t.dim() == 2 else t[None] for t in leaves[:2])
    if "no h0" in given:
        states = states * 0
    wanted = cell(rows, states, *leaves[2:], *(() if biases else (None, None))).view(h0.shape)
    gradients = torch.autograd.grad(wanted, leaves, grad)
    (out,) = results = solver.forward(call)
    testing.check("out", out, wanted.detach(), 1e-13)
    grads = testing.backward(solver, call, results, (grad, None))
    for i, (actual, gradient) in enumerate(zip(grads, gradients, strict=True)):
        if i != 1 or "no h0" not in given:
            testing.check(f"gradient {i}", actual, gradient, 1e-13)
    nothing = testing.backward(solver, call, results, (None, None))
    assert all((gradient == 0).all() for gradient in nothing)
