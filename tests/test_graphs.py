"""Captured graphs: torch.compile, torch.export, make_fx, TorchScript, FX."""

import io
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import rnnfast
from rnnfast import derivative
from rnnfast.call import Network
from rnnfast.testing import BACKENDS
from tests.calls import arguments

STACKS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "batch_first": {"batch_first": True, "nonlinearity": "relu", "bias": False},
}
SIZES = [(4, 2), (5, 3), (6, 4), (7, 9), (50, 5)]

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch's compiler needs a C++ compiler"
)
each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])


@pytest.fixture(autouse=True)
def seed():
    torch._dynamo.reset()
    torch.manual_seed(0)


def run(module, x, train):
    """Outputs, and gradients where there are some, with one state of the random generator."""
    torch.manual_seed(1)
    output, h_n = module(x)
    if not train:
        return [output, h_n]
    return [output, h_n, *torch.autograd.grad(output.sin().sum() + h_n.sum(), [x, *module.parameters()])]


def same(compiled, module, x, train=False):
    with torch.set_grad_enabled(train):
        torch.testing.assert_close(run(compiled, x, train), run(module, x, train))


def input_of(steps, batch, train=False, features=3):
    return torch.randn(steps, batch, features, requires_grad=train)


@pytest.mark.sample(4)
@each_backend
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
def test_compile(stack, train, dynamic, backend):
    """One graph, and one more when T and B first vary; then never again."""
    rnn = rnnfast.RNN(3, 5, backend=backend, **STACKS[stack]).train(train)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, fullgraph=True, backend=counter, dynamic=dynamic)
    frames = []
    for steps, batch in SIZES:
        same(compiled, rnn, input_of(steps, batch, train), train)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[0 if dynamic else 1]


@each_backend
def test_compile_cell(backend):
    cell = rnnfast.RNNCell(3, 5, backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, fullgraph=True, backend=counter)
    for batch in range(2, 7):
        x, h = torch.randn(batch, 3, requires_grad=True), torch.randn(batch, 5)
        torch.testing.assert_close(compiled(x, h), cell(x, h))
        actual, expected = (torch.autograd.grad(f(x, h).sum(), x) for f in (compiled, cell))
        torch.testing.assert_close(actual, expected)
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    ("dtype", "backend", "operators"),
    [(torch.float32, "auto", 0), (torch.float64, "auto", 0), (torch.bfloat16, "auto", 3)]
    + [(torch.float32, name, 3) for name in BACKENDS],
    ids=str,
)
@pytest.mark.parametrize("call", ["cell", "function"])
def test_a_compiled_loop_over_steps_can_be_fused(call, dtype, backend, operators):
    """In torch's operators, where `auto` is left the choice, with the same results; an export has ours."""
    cell = rnnfast.RNNCell(3, 5, dtype=dtype, backend=backend)
    weights = cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh

    def loop(x, h):
        for row in x:
            h = (
                cell(row, h)
                if call == "cell"
                else rnnfast.functional.rnn_step(row, h, *weights, backend=backend)
            )
        return h

    found = []

    def compiler(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x, h = torch.randn(3, 2, 3, dtype=dtype), torch.randn(2, 5, dtype=dtype)
    actual = torch.compile(loop, fullgraph=True, backend=compiler)(x, h)
    assert sum("rnnfast" in target for target in found) == operators
    torch.testing.assert_close(actual, loop(x, h))
    gradients = [torch.autograd.grad(out.sum(), weights) for out in (actual, loop(x, h))]
    torch.testing.assert_close(*gradients)
    if call == "cell" and backend == "auto":
        targets = [str(node.target) for node in torch.export.export(cell, (x[0], h)).graph.nodes]
        assert targets.count("rnnfast.rnn.default") == 1


def test_backend_is_chosen_when_the_graph_runs(monkeypatch):
    """The graph says "auto"; which backend that is can differ from call to call."""
    rnn = rnnfast.RNN(3, 5)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager", dynamic=True)
    chosen = []

    def find(backend, *args, _find=rnnfast.dispatch.find):
        chosen.append((backend, _find(backend, *args).name))
        return _find(backend, *args)

    monkeypatch.setattr(rnnfast.dispatch, "find", find)
    small = rnnfast.dispatch.Region("sequence", batch=(0, 4))
    slower = {name: (small,) for name in ("cpu", "aten")}
    with rnnfast.dispatch.replaced(slower=slower), torch.no_grad():
        compiled(input_of(4, 3))
        compiled(input_of(4, 5))
    assert chosen[0] == ("auto", "eager")
    assert chosen[1][0] == "auto" and chosen[1][1] != "eager"


@pytest.mark.slow
@needs_compiler
def test_inductor():
    """Torch's own compiler, around an RNN in the middle of other things, for a sequence of 1024 steps."""
    model = torch.nn.ModuleDict({"rnn": rnnfast.RNN(3, 5), "head": torch.nn.Linear(5, 2)})

    def loss(x):
        return model["head"](model["rnn"](x.sin())[0]).square().mean()

    x = input_of(1024, 2)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(loss(x), parameters)
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), parameters)
    torch.testing.assert_close(actual, expected)


def test_compile_under_autocast():
    rnn = rnnfast.RNN(3, 5)

    def call(x):
        with torch.autocast("cpu", torch.bfloat16):
            return rnn(x)[0]

    x = input_of(4, 2)
    actual = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, call(x))


@pytest.mark.slow
def test_compile_of_transforms():
    rnn = rnnfast.RNN(3, 5, num_layers=2)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def gradient(parameters, x):
        return torch.func.grad(lambda p: torch.func.functional_call(rnn, p, (x,))[0].sum())(parameters)

    def per_sample(parameters, x):
        return torch.func.vmap(gradient, in_dims=(None, 0))(parameters, x)

    for function, x in ((gradient, input_of(4, 2)), (per_sample, torch.randn(5, 4, 3))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(parameters, x), function(parameters, x))


DYNAMIC = ({0: Dim("T", min=1, max=4096), 1: Dim("B", min=1, max=1024)},)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("stack", ["plain", "deep"])
def test_export_with_dynamic_sizes(strict, stack):
    rnn = rnnfast.RNN(3, 5, **STACKS[stack]).eval()
    exported = torch.export.export(rnn, (input_of(4, 2),), dynamic_shapes=DYNAMIC, strict=strict)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("rnnfast.rnn.default") == 1
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    for program in (exported, torch.export.load(file)):
        for steps, batch in [(4, 2), (1, 1), (9, 30)]:
            x = input_of(steps, batch)
            torch.testing.assert_close(program.module()(x), rnn(x))


def test_exported_program_can_be_trained():
    rnn = rnnfast.RNN(3, 5)
    x = input_of(4, 2)
    program = torch.export.export(rnn, (x,)).module()
    actual = torch.autograd.grad(program(x)[0].sum(), list(program.parameters()))
    torch.testing.assert_close(actual, torch.autograd.grad(rnn(x)[0].sum(), list(rnn.parameters())))


@pytest.mark.thorough
@pytest.mark.slow
@needs_compiler
def test_ahead_of_time_compiled_saved_and_reloaded(tmp_path):
    rnn = rnnfast.RNN(3, 5).eval()
    with torch.no_grad():
        exported = torch.export.export(rnn, (input_of(4, 2),), dynamic_shapes=DYNAMIC)
        path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "rnn.pt2"))
        x = input_of(7, 3)
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), rnn(x))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    """Forward and backward appear in the graph as one operator each, for all layers and directions."""
    rnn = rnnfast.RNN(3, 5, num_layers=2, bidirectional=True)
    parameters = dict(rnn.named_parameters())

    def gradients(parameters, x):
        output, h_n = torch.func.functional_call(rnn, parameters, (x,))
        return torch.autograd.grad(output.sin().sum() + h_n.sum(), list(parameters.values()))

    graph = make_fx(gradients, tracing_mode=mode)(parameters, input_of(4, 2))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert targets.count("rnnfast.rnn.default") == 1
    assert targets.count("rnnfast.rnn_backward.default") == 1
    x = input_of(*((7, 3) if mode == "symbolic" else (4, 2)))
    torch.testing.assert_close(list(graph(parameters, x)), list(gradients(parameters, x)))


def test_make_fx_of_a_transform():
    cell = rnnfast.RNNCell(3, 5)
    x = torch.randn(6, 2, 3)
    graph = make_fx(torch.func.vmap(cell))(x)
    torch.testing.assert_close(graph(x), torch.func.vmap(cell)(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("build", [rnnfast.RNN, rnnfast.RNNCell])
def test_torchscript_compiles_torch_s_module_in_our_place(build):
    """In the model itself too, which is how torch does such exchanges; convert brings ours back."""
    model = torch.nn.Sequential(build(3, 5))
    x = input_of(4, 2) if build is rnnfast.RNN else torch.randn(2, 3)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(model(x), expected)
    assert type(rnnfast.convert(model)[0]) is build


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated", "ignore::torch.jit.TracerWarning")
def test_torchscript_trace():
    rnn = rnnfast.RNN(3, 5, num_layers=2, bidirectional=True)
    traced = torch.jit.trace(rnn, input_of(4, 2))
    x = input_of(7, 3, train=True)
    torch.testing.assert_close(run(traced, x, True), run(rnn, x, True))


def test_fx_leaf():
    model = torch.nn.Sequential(rnnfast.RNN(3, 5))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    x = input_of(4, 2)
    torch.testing.assert_close(traced(x), model(x))
    with pytest.raises(TypeError, match="trace a module that contains it"):
        torch.fx.symbolic_trace(rnnfast.RNN(3, 5))


OPERATORS = {
    "step": (Network("relu", step=True), False),
    "layer": (Network("tanh", reverse=(True,), module=True), False),
    "stack": (Network("tanh", 2, (False, True), module=True), False),
    # One layer: what lies between layers has a gradient in opcheck, which no graph of packed rows can hold.
    "packed layer": (Network("tanh", 1, (False, True), biases=False, module=True), True),
}


@each_backend
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, requires_grad, backend):
    network, packed = OPERATORS[name]
    x, h0, weights, batch_sizes = arguments(network, torch.float64, packed)
    tensors = [t.requires_grad_(requires_grad) for t in (x, h0, *weights)]
    described = derivative.fields(network)
    # A graph of packed sequences has its number of sequences from the states alone.
    for state in (h0, None) if network.module and not packed else (h0,):
        inputs = (x, state, tensors[2:], batch_sizes, None, *described)
        rnn = torch.ops.rnnfast.rnn.default
        torch.library.opcheck(rnn, (*inputs, False, backend), test_utils=utilities(requires_grad))
    out, h_n, hidden = (*rnn(*inputs, False, "eager"), None, None)[:3]
    detached = [None if t is None else t.detach() for t in (x, state, out, hidden, h_n)]
    inputs = (*detached[:2], [w.detach() for w in weights], batch_sizes, None, *described)
    needs = [False, state is not None, *[True] * len(weights)]
    for grad_hn in (detached[4], None):
        torch.library.opcheck(
            torch.ops.rnnfast.rnn_backward.default,
            (*inputs, *detached[2:4], None, detached[2].cos(), grad_hn, None, needs, backend),
            test_utils=utilities(False),
        )


def utilities(requires_grad):
    """opcheck's tests; that of the autograd registration makes sense with gradients only."""
    every = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    return [*every, "test_autograd_registration"] if requires_grad else every
