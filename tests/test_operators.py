"""Operators with whatever a graph may be called with: torch's error, or one that names the argument."""

import shutil

import pytest
import torch
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import rnnfast
from rnnfast import derivative
from rnnfast.call import Network
from rnnfast.functional import rnn_sequence, rnn_stack, rnn_step
from rnnfast.testing import BACKENDS, NAMES, make
from tests.calls import arguments

OPS = torch.ops.rnnfast
each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch's compiler needs a C++ compiler"
)

# What may have become of an argument since a graph was captured.
CHANGES = {
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "integers": lambda t: t.long(),
    "meta": lambda t: t.to("meta"),
    "longer": lambda t: torch.cat([t, t]),
    "wider": lambda t: torch.cat([t, t], -1),
    "empty": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "one dimension more": lambda t: t[None],
    "one dimension less": lambda t: t[0],
    "sparse": lambda t: t.to_sparse(),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
}


NETWORKS = {
    "step": Network("tanh", step=True),
    "layer": Network("tanh", module=True),
    "stack": Network("tanh", 2, (False, True), module=True),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
each_tensor = pytest.mark.parametrize("index", range(6), ids=NAMES)


def given(network, lengths=None):
    """x, h0, weights and batch_sizes: 4 steps, 3 sequences, 5 inputs, 7 hidden units."""
    x, h0, weights, _ = arguments(network, steps=4, batch=3)
    if lengths is None:
        return x, h0, list(weights), None
    sizes = [sum(n > t for n in lengths) for t in range(lengths[0])]
    return x.flatten(0, 1)[: sum(lengths)], h0, list(weights), torch.tensor(sizes)


def changed(args, index, change):
    """With another one of x, h0, and the weights of the last layer and direction."""
    x, h0, weights, sizes = args
    flat = [x, h0, *weights]
    at = index if index < 2 else len(flat) - 6 + index
    flat[at] = change(flat[at])
    return flat[0], flat[1], flat[2:], sizes


def forward(network, args, backend="auto", grad=False, **fields):
    return OPS.rnn(*args, None, *derivative.fields(network._replace(**fields)), grad, backend)


def in_torch(network, x, h0, weights, batch_sizes):
    if network.step:
        return [torch.rnn_tanh_cell(x, h0, *weights)]
    rest = (weights, True, network.layers, 0.0, True, len(network.reverse) == 2, False)
    return list(torch.rnn_tanh(x, h0, *rest))


def outcome(function):
    try:
        return function()
    except Exception as error:
        return error


@each_backend
@pytest.mark.parametrize("requires_grad", [False, True])
@each_tensor
@pytest.mark.parametrize("change", CHANGES)
@each_network
@pytest.mark.filterwarnings("ignore:Sparse")
def test_forward(network, change, index, requires_grad, backend):
    """As torch's own operator with the same arguments, but that a backend may be named that takes less."""
    args = changed(given(network), index, CHANGES[change])
    tensors = [args[0], args[1], *args[2]]
    for t in tensors:
        t.requires_grad_(requires_grad and t.is_floating_point() and t.is_leaf)
    theirs = outcome(lambda: in_torch(network, *args))
    ours = outcome(lambda: forward(network, args, backend)[:2])
    if isinstance(theirs, Exception):
        assert type(ours) is type(theirs)
        assert str(ours) == str(theirs) or change == "meta"
    elif backend not in ("auto", "aten") and (network.step or (change, index) != ("longer", 0)):
        assert isinstance(ours, RuntimeError) and f"backend '{backend}' takes" in str(
            ours
        )  # another T is right
    elif not any(t.is_meta for t in tensors):
        torch.testing.assert_close(ours, theirs)


@each_backend
@each_network
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 2, 1]], ids=["dense", "packed"])
def test_results(lengths, requires_grad, network, backend):
    """Those of the eager backend, forward and backward, whether or not autograd records the call."""
    if lengths is not None and network.step:
        return
    args = given(network, lengths)
    tensors = [t.requires_grad_(requires_grad) for t in (args[0], args[1], *args[2])]
    results, expected = (forward(network, args, name) for name in (backend, "eager"))
    assert len(results) == (1 if network.step else 2 if network.layers == 1 else 3)
    torch.testing.assert_close(results, expected)
    if requires_grad:
        grads = [r.detach().cos() for r in results[:2]]
        actual, right = (torch.autograd.grad(r[:2], tensors, grads) for r in (results, expected))
        torch.testing.assert_close(actual, right)


@each_backend
@each_network
def test_fields(network, backend):
    """What describes the network is looked at by operators and by `rnn_stack`."""
    args = given(network)
    out = forward(network, args)
    backward = backward_of(network, args, out)
    wrong = [
        ({"nonlinearity": "sin"}, ValueError, "Unknown nonlinearity 'sin'"),
        ({"layers": 0}, ValueError, "there is no network of 0 layers"),
        ({"layers": -1}, ValueError, "there is no network of -1 layers"),
        ({"reverse": ()}, ValueError, "there is no network"),
        ({"reverse": (False, True, False)}, ValueError, "there is no network"),
        ({"reverse": (True, True)}, ValueError, "there is no network"),
        ({"reverse": (True, False)}, ValueError, "there is no network"),
        ({"layers": 5}, (RuntimeError, ValueError), "weights|there is no network"),
        ({"biases": False}, (RuntimeError, ValueError), "weights"),
    ]
    for fields, error, message in wrong:
        with pytest.raises(error, match=message):
            forward(network, args, backend, **fields)
        with pytest.raises(error, match=message):
            backward(backend=backend, fields=fields)
        if network.module and error is ValueError:
            with pytest.raises(error, match=message):
                rnn_stack(network._replace(**fields), args[0], args[1], tuple(args[2]), None, backend)
    for weights in ([], args[2][:1], args[2][:-1], [*args[2], *args[2]]):
        with pytest.raises((RuntimeError, ValueError, TypeError), match="weights"):
            forward(network, (*args[:2], weights, None), backend)
        with pytest.raises((RuntimeError, ValueError), match="weights"):
            backward(backend=backend, weights=weights)
    with pytest.raises(ValueError, match="Unknown backend 'nobody'"):
        forward(network, args, "nobody")
    with pytest.raises(ValueError, match="Unknown backend 'nobody'"):
        backward(backend="nobody")
    count = 2 + len(args[2])
    for needs in ([], [True] * (count - 1), [True] * (count + 1)):
        with pytest.raises(ValueError, match=f"needs must have {count} flags"):
            backward(needs=needs, backend=backend)


BACKWARD_NAMES = ["x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
BACKWARD_NAMES += ["out", "hidden", "grad_out", "grad_hn"]


def backward_of(network, args, results):
    """A backward operator of right arguments, to be replaced by their names."""
    x, h0, weights, batch_sizes = args
    out, h_n, hidden = (*results, None, None)[:3]
    right = {"x": x, "h0": h0, "out": out, "hidden": hidden, "batch_sizes": batch_sizes, "weights": weights}
    right |= dict(zip(BACKWARD_NAMES[2:6], weights[-4:], strict=True))
    right |= {"grad_out": out.clone(), "grad_hn": None if h_n is None else h_n.clone()}
    right = {name: t.detach() if isinstance(t, torch.Tensor) else t for name, t in right.items()}

    def call(needs=None, backend="auto", fields=(), **changed):
        t, needs = {**right, **changed}, [True] * (2 + len(weights)) if needs is None else needs
        every = t["weights"]
        if "weights" not in changed:
            every = [*weights[:-4], *(t[name] for name in BACKWARD_NAMES[2:6])]
        described = derivative.fields(network._replace(**dict(fields)))
        inputs = (t["x"], t["h0"], every, t["batch_sizes"], None, *described)
        outputs = (t["out"], t["hidden"], None, t["grad_out"], t["grad_hn"], None)
        return OPS.rnn_backward(*inputs, *outputs, needs, backend)

    call.right = right
    return call


@each_backend
@pytest.mark.parametrize("name", BACKWARD_NAMES)
@pytest.mark.parametrize("change", CHANGES)
@each_network
@pytest.mark.filterwarnings("ignore:Sparse")
def test_backward(network, change, name, backend):
    """An argument that doesn't fit is named, or one beside it; gradients of any layout are taken."""
    args = given(network)
    backward = backward_of(network, args, forward(network, args))
    right = backward.right[name]
    if right is None:
        return
    changed = {name: CHANGES[change](right)}
    if change == "zeros without memory" or (change == "sparse" and name.startswith("grad")):
        # torch gives zeros their memory before an operator runs.
        expected = backward(**{name: right if change == "sparse" else torch.zeros_like(right)})
        torch.testing.assert_close(backward(**changed, backend=backend), expected)
        return
    with pytest.raises(RuntimeError, match=r"must (be|have) .*got \["):
        backward(**changed, backend=backend)


@each_backend
@each_network
def test_backward_without_an_argument(network, backend):
    args = given(network)
    backward = backward_of(network, args, forward(network, args))
    for name, message in (("x", "argument 'x'"), ("out", "argument 'out'")):
        with pytest.raises((TypeError, RuntimeError), match=message):
            backward(**{name: None}, backend=backend)
    with pytest.raises(RuntimeError, match="h0, whose gradient is wanted, is missing"):
        backward(h0=None, backend=backend)
    if network.layers > 1:
        with pytest.raises(RuntimeError, match="hidden, the outputs of all layers but the last, is missing"):
            backward(hidden=None, backend=backend)
    for missing in ("grad_out", "grad_hn"):
        zeros = backward.right[missing]
        expected = backward(**{missing: None if zeros is None else torch.zeros_like(zeros)})
        torch.testing.assert_close(backward(**{missing: None}, backend=backend), expected)
    if not network.step:
        needs = [True, False, *[True] * len(args[2])]
        zeros = torch.zeros_like(args[1])
        expected = backward(h0=zeros, needs=needs)
        torch.testing.assert_close(backward(h0=None, needs=needs, backend=backend), expected)


@each_backend
@each_network
def test_every_set_of_gradients(network, backend):
    """Those that were asked for alone, in their order."""
    args = given(network)
    backward = backward_of(network, args, forward(network, args))
    everything = backward()
    count = len(everything)
    assert [g.shape for g in everything] == [t.shape for t in (args[0], args[1], *args[2])]
    for chosen in ([i] for i in range(count)):
        needs = [i in chosen for i in range(count)]
        torch.testing.assert_close(backward(needs=needs, backend=backend), [everything[i] for i in chosen])
    assert backward(needs=[False] * count, backend=backend) == []


@each_backend
@pytest.mark.parametrize("network", [NETWORKS["layer"], NETWORKS["stack"]], ids=["layer", "stack"])
@pytest.mark.parametrize(
    "sizes", [[], [3], [3, 1, 0], [1, 3], [4, 0], [2, 2], [3, -1, 2], [5, -1], [3, 3]], ids=str
)
def test_batch_sizes(sizes, network, backend):
    """Their values are looked at whoever computes; here 4 rows of 3 sequences."""
    x, h0, weights, right = given(network, [2, 1, 1])
    backward = backward_of(network, (x, h0, weights, right), forward(network, (x, h0, weights, right)))
    sizes = torch.tensor(sizes, dtype=torch.int64)
    calls = [
        lambda: forward(network, (x, h0, weights, sizes), backend),
        lambda: forward(network, (x, None, weights, sizes), backend),
        lambda: backward(batch_sizes=sizes, backend=backend),
        lambda: backward(batch_sizes=sizes, h0=None, needs=[False] * (2 + len(weights)), backend=backend),
        lambda: rnn_stack(network, x, h0, tuple(weights), sizes, backend),
        lambda: rnn_stack(network, x.requires_grad_(), h0, tuple(weights), sizes, backend),
        lambda: torch.func.vmap(lambda x: rnn_stack(network, x, h0, tuple(weights), sizes, backend)[0])(
            x.detach()[None]
        ),
    ]
    # Without states nothing says how many sequences there are.
    known = sizes.tolist() != [2, 2]
    for i, function in enumerate(calls):
        if i == 1 and not known:
            continue
        with pytest.raises(ValueError, match="batch_sizes must be"):
            function()


@each_backend
def test_kinds_of_batch_sizes(backend):
    network = NETWORKS["layer"]
    x, h0, weights, sizes = given(network, [2, 1, 1])
    wrong = [sizes.int(), sizes.float(), sizes[None], sizes.to("meta"), sizes.to_sparse()]
    wrong += [torch._neg_view(-sizes), sizes.repeat_interleave(2)[::2], sizes[0]]
    for other in wrong:
        with pytest.raises(ValueError, match="batch_sizes must be"):
            rnn_sequence(x, h0[0], *weights, batch_sizes=other, backend=backend)
        if not (other.is_meta or other.is_neg()):  # torch resolves negation before an operator runs
            with pytest.raises(ValueError, match="batch_sizes must be"):
                forward(network, (x, h0, weights, other), backend)
    for other in (sizes.tolist(), sizes.numpy(), 3, "3"):
        with pytest.raises(TypeError, match="batch_sizes"):
            rnn_sequence(x, h0[0], *weights, batch_sizes=other, backend=backend)


# ---- graphs that are called with other arguments than they were captured with ------------------------

OTHERS = {
    "larger batch": lambda x, h: (torch.cat([x, x], 1), h),
    "more features": lambda x, h: (x.repeat(1, 1, 100), h),
    "larger state": lambda x, h: (x, h.repeat(1, 1000)),
    "float64": lambda x, h: (x.double(), h),
    "all float64": lambda x, h: (x.double(), h.double()),
    "all float16": lambda x, h: (x.half(), h.half()),
}


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, _, *weights = make((4, 3, 5, 7), torch.float32).args
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, x, h):
        weights = tuple(self.weights)  # torch.compile of torch 2.11 and 2.12 can't unpack a ParameterList
        out, h_n = rnn_sequence(x, h, *weights)
        return out, h_n, rnn_step(x[0], h, *weights)


def traced(layer, x, h):
    return torch.jit.trace(layer, (x, h))


def exported(layer, x, h):
    return torch.export.export(layer, (x, h)).module()


def with_make_fx(layer, x, h):
    return make_fx(lambda x, h: torch.func.functional_call(layer, dict(layer.named_parameters()), (x, h)))(
        x, h
    )


def compiled(layer, x, h):
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("capture", [traced, exported, with_make_fx, compiled])
@pytest.mark.parametrize("grad", [False, True])
def test_graphs_with_other_arguments(capture, grad):
    layer = Layer()
    x, h = make((4, 3, 5, 7), torch.float32).args[:2]
    with torch.set_grad_enabled(grad):
        graph = capture(layer, x, h)
        torch.testing.assert_close(tuple(graph(x, h)), layer(x, h))
        for change in OTHERS.values():
            # Who captured the graph may check first, with a type of its own.
            with pytest.raises((RuntimeError, AssertionError)):
                graph(*change(x, h))
        torch.testing.assert_close(tuple(graph(x, h)), layer(x, h))


@pytest.mark.thorough
@needs_compiler
def test_ahead_of_time_compiled(tmp_path):
    rnn = rnnfast.RNN(5, 7).eval()
    x = torch.randn(4, 3, 5)
    sizes = ({0: Dim("T", min=1, max=4096), 1: Dim("B", min=1, max=1024)},)
    with torch.no_grad():
        exported = torch.export.export(rnn, (x,), dynamic_shapes=sizes)
        path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "rnn.pt2"))
        model = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(model(x), rnn(x))
        for other in (x.double(), x.half(), x.repeat(1, 1, 100)):
            with pytest.raises(RuntimeError):
                model(other)
        torch.testing.assert_close(model(x), rnn(x))
