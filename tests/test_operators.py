"""Operators with whatever a graph may be called with: torch's error, or one that names the argument."""

import shutil

import pytest
import torch
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS, make

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


def arguments(step=False):
    x, *rest = make((4, 3, 5, 7), torch.float32).args
    return [x[0].clone() if step else x, *rest]


def call(step, args, requires_grad, backend="auto"):
    args = [t.detach().requires_grad_(requires_grad and t.is_floating_point()) for t in args]
    if step:
        return OPS.rnn_step(*args, "tanh", False, backend)
    return OPS.rnn_sequence(*args, None, "tanh", False, False, backend)


def outcome(function):
    try:
        return function()
    except Exception as error:
        return error


@each_backend
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("index", range(6), ids=["x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_forward(step, change, index, requires_grad, backend):
    """As torch's own operator with the same arguments, but that a backend may be named that takes less."""
    args = arguments(step)
    args[index] = CHANGES[change](args[index])
    if step:
        theirs = outcome(lambda: torch.rnn_tanh_cell(*args))
    else:
        x, h0, *weights = args
        rest = ([*weights], True, 1, 0.0, True, False, False)
        stacked = h0[(None,) * max(0, 3 - h0.dim())]
        theirs = outcome(lambda: torch.rnn_tanh(x, stacked, *rest))
    ours = outcome(lambda: call(step, args, requires_grad, backend))
    if isinstance(theirs, Exception):
        assert type(ours) is type(theirs)
        assert str(ours) == str(theirs) or change == "meta"
    elif backend not in ("auto", "aten") and (step, change, index) != (
        False,
        "longer",
        0,
    ):  # another T is right
        assert isinstance(ours, RuntimeError) and f"backend '{backend}' takes" in str(ours)
    elif not any(t.is_meta for t in args):
        theirs, ours = (theirs, ours) if step else (theirs[0], ours[0])
        torch.testing.assert_close(ours, theirs)


@each_backend
@pytest.mark.parametrize("change", ["float64", "wider", "longer"])
def test_names(change, backend):
    for step in (False, True):
        args = arguments(step)
        out = call(step, args, False)
        function, rest = (OPS.rnn_step, ()) if step else (OPS.rnn_sequence, (None,))
        walk = () if step else (False,)
        with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
            function(*args, *rest, "sin", *walk, False, backend)
        with pytest.raises(ValueError, match="Unknown backend 'nobody'"):
            function(*args, *rest, "tanh", *walk, False, "nobody")
        backward = backward_of(step, args, out)
        with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
            backward(nonlinearity="sin", backend=backend)
        with pytest.raises(ValueError, match="Unknown backend 'nobody'"):
            backward(backend="nobody")
        for needs in ([], [True] * 4, [True] * 6):
            with pytest.raises(ValueError, match="needs must have 5 flags"):
                backward(needs=needs, backend=backend)


def backward_of(step, args, out):
    """A backward operator of right arguments, to be replaced by their names."""
    x, h0, weight_ih, weight_hh, *_ = args
    right = {"x": x, "h0": h0, "weight_ih": weight_ih, "weight_hh": weight_hh}
    right["out"], right["h_n"] = (out, None) if step else out
    right["grad_out"], right["grad_hn"] = right["out"].clone(), None if step else right.pop("h_n").clone()

    def call(nonlinearity="tanh", needs=(True,) * 5, backend="auto", **changed):
        t = {**right, **changed}
        inputs = (t["x"], t["h0"], t["weight_ih"], t["weight_hh"], t["out"])
        if step:
            return OPS.rnn_step_backward(t["grad_out"], *inputs, nonlinearity, needs, backend)
        grads = (t["grad_out"], t["grad_hn"])
        return OPS.rnn_sequence_backward(*grads, *inputs, None, nonlinearity, False, needs, backend)

    call.right = right
    return call


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("name", ["x", "h0", "weight_ih", "weight_hh", "out", "grad_out", "grad_hn"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_backward(step, change, name, backend):
    """An argument that doesn't fit is named, or one beside it; gradients of any layout are taken."""
    args = arguments(step)
    backward = backward_of(step, args, call(step, args, False))
    if step and name == "grad_hn":
        return
    changed = {name: CHANGES[change](backward.right[name])}
    if change == "zeros without memory" or (change == "sparse" and name.startswith("grad")):
        # torch gives zeros their memory before an operator runs.
        right = backward.right[name]
        expected = backward(**{name: right if change == "sparse" else torch.zeros_like(right)})
        torch.testing.assert_close(backward(**changed, backend=backend), expected)
        return
    with pytest.raises(RuntimeError, match=r"must (be|have) .*got \["):
        backward(**changed, backend=backend)


@each_backend
@pytest.mark.parametrize(
    "sizes", [[], [3], [3, 1, 0], [1, 3], [4, 0], [2, 2], [3, -1, 2], [5, -1], [3, 3]], ids=str
)
def test_batch_sizes(sizes, backend):
    """Their values are looked at whoever computes; here 4 rows of 3 sequences."""
    x, h0, *weights = make((4, 3, 5, 7), torch.float32, lengths=[2, 1, 1]).args
    sizes = torch.tensor(sizes, dtype=torch.int64)
    out = torch.zeros(4, 7)
    inputs = (x, h0, weights[0], weights[1], out, sizes)
    calls = [
        lambda: OPS.rnn_sequence(x, h0, *weights, sizes, "tanh", False, False, backend),
        lambda: OPS.rnn_sequence_backward(out, None, *inputs, "tanh", False, [True] * 5, backend),
        lambda: rnn_sequence(x, h0, *weights, batch_sizes=sizes, backend=backend),
        lambda: rnn_sequence(x.requires_grad_(), h0, *weights, batch_sizes=sizes, backend=backend),
        lambda: torch.func.vmap(
            lambda x: rnn_sequence(x, h0, *weights, batch_sizes=sizes, backend=backend)[0]
        )(x.detach()[None]),
    ]
    for function in calls:
        with pytest.raises(ValueError, match="batch_sizes must be"):
            function()


@each_backend
def test_kinds_of_batch_sizes(backend):
    case = make((4, 3, 5, 7), torch.float32, lengths=[2, 1, 1])
    sizes = case.batch_sizes
    wrong = [sizes.int(), sizes.float(), sizes[None], sizes.to("meta"), sizes.to_sparse()]
    wrong += [torch._neg_view(-sizes), sizes.repeat_interleave(2)[::2], sizes[0]]
    for other in wrong:
        with pytest.raises(ValueError, match="batch_sizes must be"):
            rnn_sequence(*case.args, batch_sizes=other, backend=backend)
        if not (other.is_meta or other.is_neg()):  # torch resolves negation before an operator runs
            with pytest.raises(ValueError, match="batch_sizes must be"):
                OPS.rnn_sequence(*case.args, other, "tanh", False, False, backend)
    for other in (sizes.tolist(), sizes.numpy(), 3, "3"):
        with pytest.raises(TypeError, match="batch_sizes"):
            rnn_sequence(*case.args, batch_sizes=other, backend=backend)


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
