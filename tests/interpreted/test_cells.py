"""The Triton kernels of leaky and continuous-time cells, resets, noise: against loops in float64."""

import pytest
import torch

from rnnfast import dispatch
from rnnfast.backends.base import Outputs
from rnnfast.backends.triton import INTERPRETED
from rnnfast.functional import rnn_sequence
from rnnfast.testing import check
from tests import cells, stacks
from tests.cells import CELLS, NONLINEARITIES

assert INTERPRETED, "set TRITON_INTERPRET=1: " + __doc__

from rnnfast.kernels import launch, table  # noqa: E402

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16], ids=lambda dtype: str(dtype)[6:]
)
each_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
LEAKING = ["leaky", "ctrnn"]


@pytest.fixture(params=["resident", "stepwise"])
def way(request, monkeypatch):
    """Both ways through the recurrence, whatever the size of the layer."""
    if request.param == "stepwise":
        monkeypatch.setattr(table, "RESIDENT", {})
    ran = []
    run = launch.Launch.run
    monkeypatch.setattr(launch.Launch, "run", lambda self, **k: ran.append(self.name) or run(self, **k))
    yield request.param
    assert ran and all(name.startswith(request.param) for name in ran), ran


@each_cell
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@each_dtype
def test_dense(dtype, nonlinearity, cell, way):
    """More sequences than a tile has, and padded units; with noise, resets and an alpha for each unit."""
    shape = (3, 2, 3, 5) if nonlinearity != "softplus" else (3, 17, 3, 19)
    cells.make(shape, dtype, cell, nonlinearity, resets="some").check("triton")


@pytest.mark.slow
@pytest.mark.parametrize("cell", LEAKING)
@pytest.mark.parametrize(("hidden", "dtype"), [(100, torch.float32), (200, torch.float16)], ids=str)
def test_large_layers(hidden, dtype, cell):
    """Those of which W_hh is in shared memory."""
    cells.make((2, 2, 3, hidden), dtype, cell, resets="some").check("triton")


@each_cell
@each_direction
@pytest.mark.parametrize("lengths", [[4, 3, 3, 1], None], ids=["packed", "dense"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid"])
def test_order_of_steps(nonlinearity, lengths, reverse, cell, way):
    resets = "some" if lengths is None else None
    options = {"resets": resets, "lengths": lengths, "reverse": reverse}
    cells.make((4, 3, 3, 18), torch.float32, cell, nonlinearity, **options).check("triton")


@each_cell
@pytest.mark.parametrize("where", ["first", "last", "all", "none"])
def test_resets(where, cell, way):
    found = cells.make((3, 2, 3, 5), torch.float32, cell, "sigmoid", resets=where)
    found.check("triton")
    if where in ("first", "all"):
        assert not found.run("triton")["gradient of h0"].any()


@pytest.mark.parametrize("cell", LEAKING)
@each_dtype
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_alpha_of_1_has_the_bits_of_elman(nonlinearity, dtype, cell, way):
    found = cells.make((4, 3, 3, 18), dtype, cell, nonlinearity, alpha=1.0, noise=False)
    elman = found.without_extras()
    if cell == "ctrnn":  # whose h0 is v
        elman.tensors["h0"] = getattr(torch, nonlinearity)(elman.tensors["h0"])
    assert torch.equal(found.run("triton")["output"], elman.run("triton")["output"])


@pytest.mark.parametrize("cell", LEAKING)
@each_dtype
def test_small_alpha(dtype, cell, way):
    """The state loses no digits from step to step: in float16, a loop in that type is no better."""
    found = cells.make((24, 2, 3, 5), dtype, cell, alpha=0.01, noise=False)
    truth, loop, ours = found.loop(), found.loop(dtype), found.run("triton")
    for name in ("output", "h_n", "gradient of x", "gradient of h0", "gradient of weight_hh"):
        bound = 2 * cells.testing.error(loop[name], truth[name]) + 2 * torch.finfo(dtype).eps
        check(name, ours[name], truth[name], bound)


@pytest.mark.parametrize("network", [
    {"cell": "leaky"},
    {"cell": "ctrnn", "nonlinearity": "sigmoid", "noise": True, "resets": True},
    {"nonlinearity": "softplus", "noise": True, "resets": True},
], ids=["leaky", "ctrnn", "elman"])  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 1, 3, 2, 3, 5), (2, 2, 3, 2, 2, 5)], ids=str)
def test_each_gradient_alone(shape, network, way):
    """Of a call that has no tensor but those that `read_by` names: the same as among all."""
    stack = stacks.make(shape, torch.float32, **{"nonlinearity": "tanh", **network})
    solver, eager = dispatch.get("triton"), dispatch.get("eager")
    results = stack.forward(solver)
    everything = stack.backward(solver, results)
    torch.testing.assert_close(results, stack.forward(eager))
    torch.testing.assert_close(everything, stack.backward(eager, results), rtol=1e-5, atol=1e-5)
    for name in stack.names:
        torch.testing.assert_close(stack.backward(solver, results, {name}), {name: everything[name]})


@pytest.mark.parametrize("cell", LEAKING)
@pytest.mark.parametrize("lengths", [None, [3, 1]], ids=["dense", "packed"])
def test_gradient_of_inner(lengths, cell, way):
    """That of v, which a continuous-time cell returns, and that of f, which a double backward pass has."""
    network = {"cell": cell, "nonlinearity": "tanh"}
    stack = stacks.make((2, 1, 3, 2, 2, 5), torch.float32, lengths, **network)
    grads = {}
    for name in ("triton", "eager"):
        solver = dispatch.get(name)
        out, _, hidden, inner = results = tuple(stack.forward(solver).values())
        grad_inner = torch.linspace(-1, 1, inner.numel()).reshape(inner.shape)
        outputs = Outputs(out, hidden, stack.grad_out, None, None, inner, grad_inner)
        grads[name] = solver.backward(stack.call, outputs, (True,) * (2 + len(stack.call.weights)))
        assert len(results) == 4
    torch.testing.assert_close(grads["triton"], grads["eager"], rtol=1e-5, atol=1e-5)


@each_cell
def test_nan_stays_in_its_sequence_until_a_reset(cell, way):
    found = cells.make((4, 3, 3, 5), torch.float32, cell, "softplus", noise=False)
    resets = torch.zeros(4, 3, dtype=torch.bool)
    resets[2, 1] = True
    x, h0, *weights, alpha, _ = found.tensors.values()
    x[0, 1, 0] = torch.nan
    out, _ = rnn_sequence(
        *(x, h0, *weights, "softplus"), cell=cell, alpha=alpha, resets=resets, backend="triton"
    )
    wanted = torch.zeros(4, 3, dtype=torch.bool)
    wanted[:2, 1] = True
    assert torch.equal(out.isnan().all(-1), wanted) and torch.equal(out.isnan().any(-1), wanted)
