"""Leaky and continuous-time cells, noise, resets, nonlinearities: values and gradients against loops."""

import pytest
import torch

from rnnfast import dispatch, testing
from rnnfast.functional import rnn_sequence
from tests import cells, stacks
from tests.cells import CELLS, NONLINEARITIES

each_cell = pytest.mark.parametrize("cell", CELLS)
each_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
each_dtype = pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
each_shape = pytest.mark.parametrize("shape", testing.SHAPES, ids=str)
# Those that take every cell; others may join.
each_backend = pytest.mark.parametrize("backend", cells.solvers("ctrnn", "softplus", resets=True))
LEAKING = [cell for cell in CELLS if cell != "elman"]


@each_cell
@each_nonlinearity
@each_dtype
@each_backend
@each_shape
@pytest.mark.parametrize("reverse", [False, True])
def test_dense(reverse, shape, backend, dtype, nonlinearity, cell):
    problem = cells.make(shape, dtype, cell, nonlinearity, resets="some", reverse=reverse)
    problem.check(backend)


@each_cell
@each_nonlinearity
@each_dtype
@each_backend
@pytest.mark.parametrize("lengths", testing.LENGTHS, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed(reverse, lengths, backend, dtype, nonlinearity, cell):
    cells.make((1, 1, 5, 17), dtype, cell, nonlinearity, lengths=lengths, reverse=reverse).check(backend)


@pytest.mark.parametrize("cell", LEAKING)
@pytest.mark.parametrize("alpha", ["scalar", "unit", 1.0, 0.01])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@each_backend
def test_alpha(backend, bias, noise, alpha, cell):
    cells.make((5, 3, 4, 9), torch.float64, cell, alpha=alpha, noise=noise, bias=bias).check(backend)


@each_cell
@each_nonlinearity
@each_backend
@pytest.mark.parametrize("where", cells.RESETS)
@pytest.mark.parametrize("reverse", [False, True])
def test_resets(reverse, where, backend, nonlinearity, cell):
    problem = cells.make((4, 3, 2, 7), torch.float64, cell, nonlinearity, resets=where, reverse=reverse)
    problem.check(backend)
    if where == "all" or where == ("last" if reverse else "first"):
        assert not problem.run(backend)["gradient of h0"].any()
    if where == "none":
        without = cells.make((4, 3, 2, 7), torch.float64, cell, nonlinearity, reverse=reverse).run(backend)
        torch.testing.assert_close(problem.run(backend), without)


@each_dtype
@each_backend
@each_shape
@pytest.mark.parametrize("cell", LEAKING)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("reverse", [False, True])
def test_alpha_of_1_has_the_bits_of_elman(reverse, nonlinearity, cell, shape, backend, dtype):
    problem = cells.make(shape, dtype, cell, nonlinearity, alpha=1.0, noise=False, reverse=reverse)
    if cell == "ctrnn":  # whose h0 is v; f(0) = 0 is the same whoever computes it
        assert problem.tensors["h0"] is not None
        problem.tensors["h0"] = torch.zeros_like(problem.tensors["h0"])
    elman = problem.without_extras()
    torch.use_deterministic_algorithms(True)  # else Elman's cell takes fused steps, if there are few
    try:
        assert torch.equal(problem.run(backend)["output"], elman.run(backend)["output"])
    finally:
        torch.use_deterministic_algorithms(False)


@each_backend
@pytest.mark.parametrize("cell", LEAKING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_alpha_loses_no_more_precision_than_a_loop(dtype, cell, backend):
    """Twice the loop's error, as either is one draw of rounding errors, and what storing the result takes."""
    problem = cells.make((150, 4, 5, 20), dtype, cell, alpha=0.01, noise=False)
    assert problem.tensors["noise"] is None
    truth, loop, ours = problem.loop(), problem.loop(dtype), problem.run(backend)
    for name, right in truth.items():
        bound = 2 * testing.error(loop[name], right) + 2 * torch.finfo(dtype).eps
        testing.check(name, ours[name], right, bound)


@each_backend
@each_cell
def test_a_reset_is_a_new_sequence(cell, backend):
    """The steps from a reset on are those of a sequence that begins there with zeros."""
    problem = cells.make((6, 2, 3, 5), torch.float64, cell)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[4] = True
    x, h0, *weights, alpha, noise = problem.tensors.values()
    options = {"cell": cell, "alpha": alpha, "backend": backend}
    whole, h_n = rnn_sequence(x, h0, *weights, noise=noise, resets=resets, **options)
    first, _ = rnn_sequence(x[:4], h0, *weights, noise=noise[:4], **options)
    second, last = rnn_sequence(x[4:], torch.zeros_like(h0), *weights, noise=noise[4:], **options)
    torch.testing.assert_close((whole, h_n), (torch.cat([first, second]), last))


# ---- stacks, and what a backward pass is given ------------------------------------------------------


STACKS = {
    "leaky": {"cell": "leaky"},
    "ctrnn": {"cell": "ctrnn", "nonlinearity": "sigmoid"},
    "leaky with noise": {"cell": "leaky", "noise": True, "resets": True},
    "ctrnn with noise": {"cell": "ctrnn", "noise": True, "resets": True},
    "elman with noise": {"noise": True},
    "elman with resets": {"resets": True, "nonlinearity": "softplus"},
}


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 3, 2, 3, 5), (2, 2, 4, 3, 2, 5), (3, 1, 1, 2, 4, 3)], ids=str)
@each_backend
def test_each_gradient_alone(backend, shape, biases, kind):
    """Of a call that has no tensor but those that `read_by` names: the same as among all."""
    stack = stacks.make(shape, torch.float64, biases=biases, **STACKS[kind])
    solver = dispatch.get(backend)
    results = stack.forward(solver)
    everything = stack.backward(solver, results)
    assert list(everything) == list(stack.names)
    eager = dispatch.get("eager")
    torch.testing.assert_close(results, stack.forward(eager))
    torch.testing.assert_close(everything, stack.backward(eager, results))
    for name in stack.names:
        torch.testing.assert_close(stack.backward(solver, results, {name}), {name: everything[name]})
