"""A call is read once: what native code reads, what it refuses, and that its Python twin is the same call."""

import os
import subprocess
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast import context, testing
from rnnfast.call import Call, Network, _ready, made, read
from rnnfast.functional import rnn_sequence, rnn_step, run

if not _ready:
    pytest.skip("needs the native extension and a torch with DLPack's C functions", allow_module_level=True)

NETWORKS = {
    "step": Network("tanh", step=True),
    "step of a module": Network("relu", step=True, module=True, input_size=5, hidden_size=7),
    "layer": Network("tanh"),
    "layer from the end": Network("relu", reverse=(True,)),
    "layer without biases": Network("tanh", biases=False),
    "module": Network("tanh", module=True, input_size=5, hidden_size=7),
    "stack": Network("tanh", 3, (False, True), module=True, input_size=5, hidden_size=7),
    "stack without biases": Network("relu", 2, biases=False, module=True),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
each_dtype = pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)


def arguments(network, dtype=torch.float32, packed=False, steps=3, batch=2):
    """x, h0, weights and batch_sizes of a call with 5 inputs and 7 hidden units."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return (torch.randn(size, generator=generator) / 3).to(dtype)

    count = network.layers * len(network.reverse)
    x = normal(batch, 5) if network.step else normal(batch * steps, 5) if packed else normal(steps, batch, 5)
    h0 = normal(count, batch, 7) if network.module and not network.step else normal(batch, 7)
    weights = []
    for i in range(count):
        width = 5 if i < len(network.reverse) else 7 * len(network.reverse)
        weights += [normal(7, width), normal(7, 7), normal(7), normal(7)][: network.per]
    return x, h0, tuple(weights), torch.full((steps,), batch) if packed else None


def replaced(given, index, value):
    """The arguments with another one at `index`: x, h0, then the weights."""
    flat = [*given[:2], *given[2]]
    flat[index] = value
    return flat[0], flat[1], tuple(flat[2:]), given[3]


class Tagged(torch.Tensor):
    pass


# What an argument may become that is not dense memory of torch's own, or doesn't fit beside the others.
CHANGES = {
    "strided": lambda t: torch.stack([t, -t], -1)[..., 0],
    "expanded": lambda t: t[..., :1].expand(t.shape),
    "lazily negated": lambda t: torch._neg_view(-t),
    "subclass": lambda t: t.as_subclass(Tagged),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "complex": lambda t: t.to(torch.complex64),
    "conjugate": lambda t: t.to(torch.complex64).conj(),
    "integers": lambda t: t.long(),
    "booleans": lambda t: t > 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
    "empty": lambda t: t[:0],
    "narrower": lambda t: t[..., :-1].contiguous(),
    "one dimension more": lambda t: t[None],
    "one dimension less": lambda t: t[0],
    "four dimensions": lambda t: t.reshape(1, 1, 1, *t.shape)[..., :1].contiguous(),
    "numpy": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "none": lambda t: None,
}
each_change = pytest.mark.parametrize("change", CHANGES)
quietly = pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor", "ignore:Sparse")


# ---- what is read ------------------------------------------------------------------------------------


@each_network
@each_dtype
@pytest.mark.parametrize("packed", [False, True])
def test_fields(packed, dtype, network):
    """Those that the class documents, of the native Call as of its twin."""
    given = arguments(network, dtype, packed and not network.step)
    for call in (read(network, *given), made(network, *given)):
        assert call.network is network and call.weights is given[2]
        assert call.x is given[0] and call.h0 is given[1] and call.batch_sizes is given[3]
        assert (call.steps, call.batch) == (1 if network.step else 3, 2)
        assert call.rows == call.steps * call.batch
        assert (call.input_size, call.hidden_size) == (5, 7)
        kind, sizes = "step" if network.step else "sequence", (5, 7, 2, call.steps)
        layers = network.layers, len(network.reverse)
        assert call.problem == (kind, torch.device("cpu"), dtype, *sizes, given[3] is not None, *layers)
        for name in Call.__annotations__:
            assert name == "_shapes" or hasattr(call, name), name
        bare = call.bare()
        assert bare.x is bare.h0 is bare.batch_sizes is None and set(bare.weights or (None,)) == {None}
        assert bare.problem == call.problem and bare.network is network


@each_network
@pytest.mark.parametrize("sizes", [(1, 0, 5, 7), (2, 2, 0, 7), (2, 2, 5, 0), (1, 0, 0, 0)], ids=str)
def test_sizes_of_0(sizes, network):
    steps, batch, inputs, hidden = sizes
    if network.input_size is not None:
        network = network._replace(input_size=inputs, hidden_size=hidden)
    directions, count = len(network.reverse), network.layers * len(network.reverse)
    x = torch.ones(batch, inputs) if network.step else torch.ones(steps, batch, inputs)
    h0 = torch.ones(*((count,) if network.module and not network.step else ()), batch, hidden)
    weights = []
    for i in range(count):
        width = inputs if i < directions else directions * hidden
        shapes = (hidden, width), (hidden, hidden), (hidden,), (hidden,)
        weights += [torch.ones(shape) for shape in shapes[: network.per]]
    given = x, h0, tuple(weights), None
    expected = run(made(network, *given), "eager")
    torch.testing.assert_close(run(read(network, *given), "cpu"), expected)


def test_no_steps_are_not_read():
    network = NETWORKS["layer"]
    x, *rest = arguments(network)
    assert read(network, x[:0], *rest) is None


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (1, 1, 5), (1, 2, 5), (3, 1, 5), (3, 2, 5)], ids=str)
def test_layouts_of_a_module(shape, hx, batch_first):
    """Rows are read where their memory is time-major: batch_first with B = 1 or T = 1, and unbatched."""
    cell = len(shape) == 1
    ours = rnnfast.RNNCell(5, 7) if cell else rnnfast.RNN(5, 7, 2, batch_first=batch_first)
    theirs = torch.nn.RNNCell(5, 7) if cell else torch.nn.RNN(5, 7, 2, batch_first=batch_first)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    batch = shape[0 if batch_first else 1] if len(shape) == 3 else None
    h = torch.randn(*(() if cell else (2,)), *(() if batch is None else (batch,)), 7) if hx else None
    if not cell:
        call = read(ours._network, x, h, ours._weights())
        assert (call is None) == (batch_first and min(shape[:2]) > 1 and len(shape) == 3)
        assert call is None or (call.steps, call.batch) == (
            (shape[0], 1) if batch is None else (shape[1 if batch_first else 0], batch)
        )
    for backend in testing.BACKENDS:
        ours.backend = backend
        torch.testing.assert_close(ours(x, h), theirs(x, h))
        gradients = [
            torch.autograd.grad(sum(part.sum() for part in _tuple(m(x, h))), list(m.parameters()))
            for m in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients)


def _tuple(result):
    return result if isinstance(result, tuple) else (result,)


# ---- what is refused ---------------------------------------------------------------------------------


@quietly
@each_network
@each_change
def test_refused(change, network):
    """Every argument with everything that is not plain."""
    given = arguments(network)
    for index, tensor in enumerate((*given[:2], *given[2])):
        value = CHANGES[change](tensor)
        zeros = value is None and index == 1 and network.module
        assert (read(network, *replaced(given, index, value)) is not None) == zeros, index
    for weights in (given[2][:-1], (*given[2], given[2][-1]), list(given[2]), ()):
        assert read(network, *given[:2], weights, None) is None


WRONG_NETWORKS = {
    "nonlinearity": {"nonlinearity": "sin"},
    "no layers": {"layers": 0},
    "two layers": {"layers": 2},
    "no direction": {"reverse": ()},
    "three directions": {"reverse": (False, True, False)},
    "two from the end": {"reverse": (True, True)},
    "a list": {"reverse": [False]},
    "another input_size": {"input_size": 6},
    "another hidden_size": {"hidden_size": 6},
    "not a module's state": {"module": True},
    "text for a number": {"layers": "1"},
}


@pytest.mark.parametrize("fields", WRONG_NETWORKS.values(), ids=list(WRONG_NETWORKS))
def test_refused_networks(fields):
    given = arguments(Network("tanh"))
    assert read(Network("tanh"), *given) is not None
    assert read(Network("tanh")._replace(**fields), *given) is None
    assert read(tuple(Network("tanh"))[:-1], *given) is None


@pytest.mark.parametrize(
    "sizes",
    [[], [6], [2, 2], [2, 2, 1, 1, 0], [1, 2, 3], [3, 2, 2], [3, 4, -1], [0, 3, 3], [2**62, 2**62, 6]],
    ids=str,
)
def test_refused_batch_sizes(sizes):
    network = NETWORKS["stack"]
    x, h0, weights, right = arguments(network, packed=True)
    assert read(network, x, h0, weights, right) is not None
    assert read(network, x, h0, weights, torch.tensor(sizes, dtype=torch.int64)) is None
    wrong = [right.int(), right.double(), right[None], right.to("meta"), right.to_sparse(), right.tolist()]
    wrong += [torch._neg_view(-right), right.repeat_interleave(2)[::2], right[0], right.as_subclass(Tagged)]
    for other in wrong:
        assert read(network, x, h0, weights, other) is None
    assert read(network, x.view(3, 2, 5), h0, weights, right) is None
    step = NETWORKS["step"]
    assert read(step, *arguments(step)[:3], torch.tensor([2])) is None


def in_torch(step, x, h0, *weights):
    if step:
        return (torch.rnn_tanh_cell(x, h0, *weights),)
    states = h0[None] if isinstance(h0, torch.Tensor) else h0
    out, h_n = torch.rnn_tanh(x, states, list(weights), True, 1, 0.0, True, False, False)
    return out, h_n[0]


@quietly
@each_change
@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("index", range(6), ids=testing.NAMES)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_what_is_refused_is_prepared_or_torch_s(step, index, backend, change):
    """The result that torch's operator has, or its error; a backend that was asked for may refuse."""
    if change == "none" and index > 3:
        return  # a bias may be missing
    network = NETWORKS["step" if step else "layer"]
    args = [t for part in arguments(network)[:3] for t in (part if isinstance(part, tuple) else (part,))]
    args[index] = CHANGES[change](args[index])
    outcomes = []
    for function in (
        lambda: in_torch(step, *args),
        lambda: _tuple((rnn_step if step else rnn_sequence)(*args, backend=backend)),
    ):
        try:
            outcomes.append(function())
        except Exception as error:
            outcomes.append(error)
    theirs, ours = outcomes
    if isinstance(theirs, Exception):
        assert isinstance(ours, (TypeError, RuntimeError) if backend == "cpu" else type(theirs)), ours
    elif isinstance(ours, Exception):
        assert backend == "cpu" and "backend 'cpu' takes" in str(ours), ours
    elif not any(
        getattr(t, "is_meta", False) for t in args
    ):  # torch's cell reads nonsense from a meta weight
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("steps", [1, 2])
def test_imaginary_part_of_a_conjugate(steps):
    """The one tensor in daily use that is dense and yet negated: a single number."""
    z = torch.randn(steps, 1, 1, dtype=torch.complex64)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    for x in (z[:1].conj().imag, z.conj().imag):
        out, _ = rnn_sequence(x, zero, one, one, backend="cpu")
        torch.testing.assert_close(out[0], torch.tanh(-z.imag[0]))
    weight = torch.nn.Parameter(torch.complex(one, one).conj().imag)
    out, _ = rnn_sequence(torch.ones(steps, 1, 1), zero, weight, one, backend="cpu")
    torch.testing.assert_close(out[0], torch.tanh(-one))


# ---- the native Call and its twin --------------------------------------------------------------------


def results_and_gradients(call, leaves, backend="cpu", gradient=lambda out: out.detach().cos()):
    results = run(call, backend)[:2]
    return *results, *torch.autograd.grad(results, leaves, [gradient(r) for r in results])


@each_network
@each_dtype
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_same_bits(steps, packed, dtype, network):
    given = arguments(network, dtype, packed and not network.step, steps)
    calls = [make(network, *given) for make in (read, made)]
    for left, right in zip(*[run(call, "cpu") for call in calls], strict=True):
        assert torch.equal(left, right) and not left.requires_grad
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]
    for left, right in zip(*[results_and_gradients(call, leaves) for call in calls], strict=True):
        assert torch.equal(left, right) and left.stride() == right.stride()


@pytest.mark.parametrize("backend", testing.BACKENDS)
def test_the_same_problem_for_every_backend(backend):
    network = NETWORKS["stack"]
    given = arguments(network, torch.float64)
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]
    found = [results_and_gradients(make(network, *given), leaves, backend) for make in (read, made)]
    torch.testing.assert_close(*found)


# ---- bare, and having the saved tensors --------------------------------------------------------------

WRONG = [
    "float64",
    "float16",
    "integers",
    "narrower",
    "one dimension more",
    "one dimension less",
    "meta",
    "empty",
]
each_maker = pytest.mark.parametrize("make", [read, made], ids=["native", "twin"])


@each_maker
@each_network
@pytest.mark.parametrize("change", WRONG)
def test_a_call_has_no_other_tensors(change, network, make):
    given = arguments(network, packed=not network.step)
    bare = make(network, *given).bare()
    again = bare.having(*given)
    assert (again.x, again.h0, again.batch_sizes) == (given[0], given[1], given[3])
    assert all(a is b for a, b in zip(again.weights, given[2], strict=True))
    for index, tensor in enumerate((*given[:2], *given[2])):
        with pytest.raises(RuntimeError, match="is not what the forward pass of this call had"):
            bare.having(*replaced(given, index, CHANGES[change](tensor)))
        assert bare.having(*replaced(given, index, None)).network is network
    with pytest.raises(RuntimeError, match="weights must be a tuple of"):
        bare.having(*given[:2], given[2][:-1], given[3])


@each_maker
def test_a_call_has_no_other_batch_sizes(make):
    network = NETWORKS["stack"]
    given = arguments(network, packed=True)
    bare = make(network, *given).bare()
    for sizes in ([2, 2], [2, 2, 2, 2], [3, 2, 1], [2, 1, 3], [2, 2, 3], [2, 4, 0], [2, 3, 1]):
        with pytest.raises(RuntimeError, match="batch_sizes are not those"):
            bare.having(*given[:3], torch.tensor(sizes))
    with pytest.raises(RuntimeError, match="batch_sizes are not those"):
        bare.having(*given[:3], given[3].int())


@each_maker
@pytest.mark.parametrize(
    "change", ["strided", "lazily negated", "subclass", "sparse", "zeros without memory"]
)
@quietly
def test_saved_tensors_are_made_dense(change, make):
    if change == "subclass" and make is made:
        return  # its backward pass is an operator's
    network = NETWORKS["layer"]
    given = arguments(network)
    for index, tensor in enumerate((*given[:2], *given[2])):
        call = make(network, *given).bare().having(*replaced(given, index, CHANGES[change](tensor)))
        kept = [call.x, call.h0, *call.weights][index]
        expected = CHANGES[change](tensor)
        torch.testing.assert_close(kept, expected.to_dense() if expected.is_sparse else 1 * expected)
        assert kept.is_contiguous() and not kept.is_neg()


@pytest.mark.parametrize("network", [NETWORKS["step"], NETWORKS["stack"]], ids=["step", "stack"])
def test_backward_lacks_or_rejects(network):
    """What native code needs is there and fits, whoever calls."""
    given = arguments(network, packed=not network.step)
    call = read(network, *given)
    out, *rest = call.forward(4, 1)
    hidden = rest[1] if rest else None
    h_n = None if network.step else rest[0]
    needs = (True,) * (2 + len(given[2]))
    right = [out, hidden, out, h_n, needs, 1]
    assert None not in call.backward(*right)
    for i, tensor in enumerate(right[:4]):
        for change in WRONG if tensor is not None else ():
            wrong = [*right[:i], CHANGES[change](tensor), *right[i + 1 :]]
            with pytest.raises(RuntimeError, match="is not what the forward pass of this call had"):
                call.backward(*wrong)
    for flags in ((), needs[1:], list(needs)):
        with pytest.raises(RuntimeError, match="needs must be a tuple of"):
            call.backward(*right[:4], flags, 1)
    lacking = [call.bare(), call.bare().having(given[0], given[1], given[2], None)][
        : 1 if network.step else 2
    ]
    lacking += [call.bare().having(*replaced(given, i, None)) for i in (0, 2, 3)]
    for other in lacking:
        with pytest.raises(RuntimeError, match="a tensor that this backward pass reads is missing"):
            other.backward(*right)
    with pytest.raises(RuntimeError, match="this call has no tensors"):
        call.bare().forward(4, 1)
    assert call.backward(*right[:4], (False,) * len(needs), 1) == (None,) * len(needs)


class Doubling(TorchFunctionMode):
    """Makes every new tensor twice as large."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return (
            torch.cat([result, result]) if function in (torch.Tensor.new_empty, torch.empty_like) else result
        )


def test_a_new_tensor_is_looked_at():
    call = read(NETWORKS["layer"], *arguments(NETWORKS["layer"]))
    with Doubling(), pytest.raises(RuntimeError, match="a new tensor has another shape"):
        call.forward(4, 1)
    with torch.device("meta"):
        assert call.forward(4, 1)[0].device.type == "cpu"


# ---- what autograd sends and saves -------------------------------------------------------------------

# What may come back that isn't a dense tensor of torch's own type.
GRADIENTS = {
    "expanded": lambda out: torch.ones((), dtype=out.dtype).expand_as(out),
    "strided": lambda out: CHANGES["strided"](out.detach().cos()),
    "transposed": lambda out: torch.arange(out.numel()).to(out).view(out.shape[::-1]).mT.reshape(out.shape),
    "permuted": lambda out: out.detach().permute(*reversed(range(out.dim()))).contiguous().mT.reshape_as(out),
    "lazily negated": lambda out: torch._neg_view(out.detach().cos()),
    "subclass": lambda out: out.detach().cos().as_subclass(Tagged),
    "sparse": lambda out: out.detach().cos().to_sparse(),
    "zeros without memory": lambda out: torch._efficientzerotensor(out.shape),
}


@quietly
@pytest.mark.parametrize("gradient", GRADIENTS)
@each_network
def test_gradients_of_any_layout(network, gradient):
    given = arguments(network)
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]

    def dense(out):
        sent = GRADIENTS[gradient](out).as_subclass(torch.Tensor)
        return sent.to_dense() if sent.is_sparse else 1 * sent.resolve_neg()

    expected = results_and_gradients(read(network, *given), leaves, gradient=dense)
    actual = results_and_gradients(read(network, *given), leaves, gradient=GRADIENTS[gradient])
    torch.testing.assert_close([t.as_subclass(torch.Tensor) for t in actual], [*expected], rtol=0, atol=0)


UNPACKED = {
    "a copy": lambda t: t.clone(),
    "a view": lambda t: torch.stack([t, t], -1)[..., 0],
    "a parameter": lambda t: torch.nn.Parameter(t.clone(), False),
}


@pytest.mark.parametrize("unpack", UNPACKED)
@each_network
def test_hooks_on_saved_tensors(network, unpack):
    given = arguments(network, packed=not network.step)
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]
    expected = results_and_gradients(read(network, *given), leaves)

    def bring_back(tensor):
        return UNPACKED[unpack](tensor) if tensor.is_floating_point() else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), bring_back):
        actual = results_and_gradients(read(network, *given), leaves)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each_maker
def test_references_are_given_back(make):
    network = NETWORKS["stack"]
    given = arguments(network, packed=True)
    wrong, short = torch.randn(6, 6), torch.tensor([2, 2])
    held = [network, *given[:2], *given[2], given[2], given[3], wrong, short, None, torch.float32]
    leaves = [t.requires_grad_() for t in (given[0], *given[2])]

    def use():
        for _ in range(300):
            call = make(network, *given)
            results_and_gradients(call, leaves)
            read(network, wrong, *given[1:])
            read(network, *given[:3], short)
            for other in ((wrong, *given[1:]), (*given[:3], short), (*given[:2], given[2][1:], given[3])):
                with pytest.raises(RuntimeError):
                    call.bare().having(*other)
            call.bare().having(None, None, (None,) * len(given[2]), None)

    use()
    before = [sys.getrefcount(thing) for thing in held]
    use()
    after = [sys.getrefcount(thing) for thing in held]
    assert all(abs(a - b) < 200 for a, b in zip(after, before, strict=True)), (before, after)


# ---- where calls are not read ------------------------------------------------------------------------


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu"),
    "dispatch mode": Watching,
    "profiler": lambda: profile(),
    "forward AD": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts(name):
    """Something else goes first in each, with the same results."""
    assert context.undisturbed() and not context.watching() and not context.needs_composite()
    rnn, cell = rnnfast.RNN(5, 7, 2, backend="cpu"), rnnfast.RNNCell(5, 7, backend="cpu")
    x, leaves = torch.randn(3, 2, 5), [*rnn.parameters(), *cell.parameters()]

    def call():
        results = (*rnn(x), cell(x[0]))
        return [*results, *torch.autograd.grad(results, leaves, [torch.ones_like(r) for r in results])]

    expected = call()
    with CONTEXTS[name]():
        assert not context.undisturbed()
        actual = call()
    rough = {"rtol": 0.1, "atol": 0.1, "check_dtype": False} if name == "autocast" else {}
    torch.testing.assert_close(actual, expected, **rough)


NO_TABLE = {
    "no table": "torch.Tensor.__dlpack_c_exchange_api__ = None",
    "another major version": """
import ctypes
table = (ctypes.c_uint32 * 64)(2, 0)
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
name = b"dlpack_exchange_api"
torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), name, None)
""",
    "no extension": "import sys; sys.modules['rnnfast._cpu'] = None",
}


@pytest.mark.slow
@pytest.mark.parametrize("why", NO_TABLE)
def test_without_the_table_of_functions_calls_are_made_in_python(why):
    code = f"""
import torch
{NO_TABLE[why]}
import rnnfast, rnnfast.call
rnn, theirs = rnnfast.RNN(5, 7, 2, bidirectional=True), torch.nn.RNN(5, 7, 2, bidirectional=True)
theirs.load_state_dict(rnn.state_dict())
x = torch.randn(3, 2, 5)
torch.testing.assert_close(rnn(x), theirs(x))
grads = [torch.autograd.grad(m(x)[0].sum(), list(m.parameters())) for m in (rnn, theirs)]
torch.testing.assert_close(*grads)
print(rnnfast.call._ready, rnnfast.explain(rnn, x).backend)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.stdout.split()[0] == "False", done.stderr
