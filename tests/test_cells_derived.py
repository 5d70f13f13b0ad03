"""Leaky and continuous-time cells, noise and resets under autograd, torch.func, tracers and as operators."""

import io
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import rnnfast
from rnnfast import derivative, testing
from rnnfast.backends.base import Outputs
from rnnfast.functional import rnn_sequence
from tests import cells, stacks
from tests.test_cells import LEAKING, STACKS, each_backend, each_cell

MODULES = {
    "leaky": lambda **kw: rnnfast.LeakyRNN(3, 4, alpha=0.3, **kw),
    "learned": lambda **kw: rnnfast.LeakyRNN(3, 4, 2, "sigmoid", alpha=0.3, learn_alpha=True, **kw),
    "ctrnn": lambda **kw: rnnfast.CTRNN(3, 4, bidirectional=True, alpha=torch.linspace(0.1, 1, 4), **kw),
    "noisy": lambda **kw: rnnfast.CTRNN(3, 4, 2, "softplus", alpha=0.2, noise_std=0.3, **kw),
    "rnn": lambda **kw: rnnfast.RNN(3, 4, **kw),  # with resets
}
each_module = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def seed():
    torch._dynamo.reset()
    torch.manual_seed(0)


def sequence(problem, backend):
    """`rnn_sequence` as a function of the tensors there are, and these."""
    names = [name for name, tensor in problem.tensors.items() if tensor is not None]

    def function(*tensors):
        x, h0, *weights, alpha, noise = {**problem.tensors, **dict(zip(names, tensors, strict=True))}.values()
        options = {"cell": problem.cell, "alpha": alpha, "noise": noise, "resets": problem.resets}
        options |= {"reverse": problem.reverse, "batch_sizes": problem.batch_sizes, "backend": backend}
        return rnn_sequence(x, h0, *weights, problem.nonlinearity, **options)

    return function, [problem.tensors[name].clone().requires_grad_() for name in names]


def small(cell, nonlinearity, kind):
    options = {"dense": {}, "packed": {"lengths": [3, 2, 2]}, "resets": {"resets": "some", "reverse": True}}
    return cells.make((3, 2, 3, 4), torch.float64, cell, nonlinearity, **options[kind])


@each_cell
@each_backend
@pytest.mark.parametrize("nonlinearity", cells.NONLINEARITIES)
@pytest.mark.parametrize("kind", ["dense", "packed", "resets"])
def test_gradcheck(kind, nonlinearity, backend, cell):
    function, leaves = sequence(small(cell, nonlinearity, kind), backend)
    modes = {f"check_{mode}": True for mode in ("forward_ad", "batched_grad", "undefined_grad")}
    assert torch.autograd.gradcheck(function, leaves, **modes, fast_mode=True)


@each_cell
@each_backend
@pytest.mark.parametrize("nonlinearity", cells.NONLINEARITIES)
@pytest.mark.parametrize("kind", ["dense", "packed", "resets"])
def test_gradgradcheck(kind, nonlinearity, backend, cell):
    function, leaves = sequence(small(cell, nonlinearity, kind), backend)
    assert torch.autograd.gradgradcheck(
        function, leaves, check_batched_grad=True, check_fwd_over_rev=True, fast_mode=True
    )


@each_backend
@pytest.mark.parametrize("kind", STACKS)
def test_double_backward_of_stacks(kind, backend):
    """Through what lies between layers, and beside their outputs."""
    call = stacks.make((2, 2, 3, 2, 2, 3), torch.float64, **STACKS[kind]).call
    x, h0, *weights = (t.clone().requires_grad_() for t in (call.x, call.h0, *call.weights))
    network, resets = call.network._replace(resets=False), call.resets

    def function(x, h0, *weights):
        mask = None if resets is None else resets.reshape(x.shape[:2])
        inner = network.cell != "elman"
        return rnnfast.functional.rnn_stack(network, x, h0, weights, None, backend, mask, inner)

    assert torch.autograd.gradcheck(function, (x, h0, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, h0, *weights), fast_mode=True)


@each_backend
@pytest.mark.parametrize("cell", LEAKING)
def test_vmap_and_jvp(cell, backend):
    problem = replace(small(cell, "tanh", "resets"))
    function, leaves = sequence(problem, backend)
    leaves = [leaf.detach() for leaf in leaves]
    batched = [torch.stack([leaf, leaf / 2, leaf * 0.9]) for leaf in leaves]
    one_by_one = [function(*(leaf[i] for leaf in batched)) for i in range(3)]
    expected = tuple(map(torch.stack, zip(*one_by_one, strict=True)))
    torch.testing.assert_close(vmap(function)(*batched), expected)

    tangents = tuple(map(torch.randn_like, leaves))
    _, (along, _) = jvp(function, tuple(leaves), tangents)
    step = 1e-6
    ahead, behind = (
        function(*(leaf + s * t for leaf, t in zip(leaves, tangents, strict=True)))[0] for s in (step, -step)
    )
    torch.testing.assert_close(along, (ahead - behind) / (2 * step), atol=1e-7, rtol=1e-6)


@each_backend
@each_module
def test_functional_gradients(name, backend):
    rnn = MODULES[name](backend=backend).double().eval()
    x, resets = torch.randn(5, 2, 3, dtype=torch.float64), torch.rand(5, 2) < 0.3

    def loss(parameters):
        output, h_n = functional_call(rnn, parameters, (x,), {"resets": resets})
        return output.sin().sum() + h_n.square().sum()

    parameters = {key: p.detach() for key, p in rnn.named_parameters()}
    leaves = {key: p.clone().requires_grad_() for key, p in parameters.items()}
    expected = torch.autograd.grad(loss(leaves), list(leaves.values()))
    torch.testing.assert_close(list(grad(loss)(parameters).values()), list(expected))


def run(module, x, resets):
    torch.manual_seed(1)
    output, h_n = module(x, resets=resets)
    loss = output.sin().sum() + h_n.sum()
    return [output, h_n, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.slow
@each_backend
@each_module
def test_compile(name, backend):
    """Whole, never again when T and B change, and the results of the module itself."""
    rnn = MODULES[name](backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter, dynamic=True)
    frames = []
    for steps, batch in [(4, 2), (5, 3), (7, 9)]:
        x = torch.randn(steps, batch, 3, requires_grad=True)
        resets = torch.rand(steps, batch) < 0.3
        torch.testing.assert_close(run(compiled, x, resets), run(rnn, x, resets))
        frames.append(counter.frame_count)
    assert frames[-1] == frames[0]


@pytest.mark.slow
@each_module
def test_export_with_dynamic_sizes(name):
    rnn = MODULES[name]().eval()
    x, resets = torch.randn(4, 2, 3), torch.rand(4, 2) < 0.3
    steps, batch = torch.export.Dim("T", min=1, max=4096), torch.export.Dim("B", min=1, max=1024)
    shapes = {"input": {0: steps, 1: batch}, "resets": {0: steps, 1: batch}}
    program = torch.export.export(rnn, (x,), {"resets": resets}, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in [(4, 2), (1, 1), (9, 5)]:
        x, resets = torch.randn(*size, 3), torch.rand(*size) < 0.5
        torch.testing.assert_close(loaded(x, resets=resets), rnn(x, resets=resets))


@each_module
def test_a_trace_is_a_loop(name):
    """Of one number of steps; it holds torch's operators alone."""
    rnn = MODULES[name]().eval()
    x, resets = torch.randn(4, 2, 3), torch.rand(4, 2) < 0.3
    trace = torch.jit.trace(rnn, example_kwarg_inputs={"input": x, "resets": resets})
    assert "rnnfast::" not in str(trace.inlined_graph)
    x, resets = torch.randn(4, 2, 3), torch.rand(4, 2) < 0.5
    torch.testing.assert_close(trace(input=x, resets=resets), rnn(x, resets=resets))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["leaky", "ctrnn"])
def test_onnx_is_a_loop(name, tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install --group test")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install --group test")
    rnn, x = MODULES[name]().eval(), torch.randn(4, 2, 3)
    torch.onnx.export(rnn, (x,), dynamo=True, verbose=False).save(tmp_path / "rnn.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "rnn.onnx"))
    x = torch.randn(4, 2, 3)
    actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = [result.detach() for result in rnn(x)]
    torch.testing.assert_close([torch.from_numpy(result) for result in actual], expected)


@pytest.mark.parametrize("kind", STACKS)
@each_backend
def test_opcheck(backend, kind):
    stack = stacks.make((2, 1, 3, 2, 3, 5), torch.float64, **STACKS[kind])
    call, network = stack.call, stack.call.network
    inputs = (call.x, call.h0, list(call.weights), None, call.resets, *derivative.fields(network))
    tests = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(torch.ops.rnnfast.rnn.default, (*inputs, False, backend), test_utils=tests)
    out, _, hidden, *rest = torch.ops.rnnfast.rnn(*inputs, False, backend)
    inner = rest[0] if rest else None
    grads = (stack.grad_out, stack.grad_hn, None if network.cell != "ctrnn" else inner.cos())
    needs = [True] * (2 + len(call.weights))
    torch.library.opcheck(
        torch.ops.rnnfast.rnn_backward.default,
        (*inputs, out, hidden, inner, *grads, needs, backend),
        test_utils=tests,
    )
    found = torch.ops.rnnfast.rnn_backward(*inputs, out, hidden, inner, *grads, needs, backend)
    outputs = Outputs(out, hidden, *grads[:2], inner=inner, grad_inner=grads[2])
    right = rnnfast.dispatch.get("eager").backward(call, outputs, tuple(needs))
    torch.testing.assert_close(tuple(found), right)


@each_backend
@pytest.mark.parametrize("cell", LEAKING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, cell, backend):
    """Casts all tensors as it casts a linear layer's, so results are those of 16-bit arguments."""
    problem = cells.make((4, 3, 5, 7), torch.float32, cell, resets="some")
    with torch.autocast("cpu", dtype):
        results = problem.run(backend)
    assert results["output"].dtype is dtype and results["gradient of alpha"].dtype is torch.float32
    expected = problem.to(dtype).run(backend)
    torch.testing.assert_close(results["output"], expected["output"])


@pytest.mark.parametrize("cell", LEAKING)
def test_flops(cell):
    """Products alone: as many as an elman cell's, and the forward ones again for a ctrnn's dalpha."""

    def count(problem):
        with FlopCounterMode(display=False) as counter:
            problem.run("auto")
        return counter.get_total_flops()

    problem = cells.make((4, 3, 5, 7), torch.float32, cell, alpha="unit", noise=False)
    products = 2 * 4 * 3 * (5 * 7 + 7 * 7)
    again = products if cell == "ctrnn" else 0
    assert count(problem) == count(problem.without_extras()) + again


@each_backend
@pytest.mark.parametrize("cell", LEAKING)
def test_modification_of_what_backward_needs_is_detected(cell, backend):
    problem = cells.make((3, 2, 3, 4), torch.float64, cell)
    function, leaves = sequence(problem, backend)
    output, _ = function(*leaves)
    with torch.no_grad():
        leaves[-2].mul_(0.9)  # alpha
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_all_backends_are_here():
    assert "eager" in cells.solvers("ctrnn", resets=True)
    assert "aten" in testing.BACKENDS and "aten" not in cells.solvers("elman", noise=True)
