"""A call is read once: what native code reads, what it refuses, and where something else goes first."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast import context, testing
from rnnfast.call import READY, Call, Network, made, read
from rnnfast.functional import rnn_sequence, rnn_step, run
from tests.calls import (
    CHANGES,
    NETWORKS,
    Tagged,
    arguments,
    each_change,
    each_dtype,
    each_network,
    quietly,
    replaced,
)

if not READY:
    pytest.skip("needs the native extension and a torch with DLPack's C functions", allow_module_level=True)


# ---- what is read -----------------------------------------------------------------------------------


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
        extra = network.nonlinearity, "elman", False, False
        known = (kind, torch.device("cpu"), dtype, *sizes, given[3] is not None, *layers, *extra)
        assert call.problem == known
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
        call = read(ours._network, x, h, tuple(ours.parameters()), None)
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


# ---- what is refused --------------------------------------------------------------------------------


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
    [
        [],
        [6],
        [2, 2],
        [2, 2, 1, 1, 0],
        [1, 2, 3],
        [3, 2, 2],
        [3, 4, -1],
        [0, 3, 3],
        [2**62, 2**62, 6],
        [2**62 + 6, *[2**62] * 3],
    ],
    ids=str,
)
def test_refused_batch_sizes(sizes):
    network = NETWORKS["stack"]
    x, h0, weights, right = arguments(network, packed=True)
    assert read(network, x, h0, weights, right) is not None
    for states in (h0, None) if sizes != [6] else (h0,):  # six sequences of a step, if no states are there
        assert read(network, x, states, weights, torch.tensor(sizes, dtype=torch.int64)) is None
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
    alone = isinstance(h0, torch.Tensor) and h0.dim() < 3  # else h0 is [1, B, H], as torch has it
    states = h0[None] if alone else h0
    out, h_n = torch.rnn_tanh(x, states, list(weights), True, 1, 0.0, True, False, False)
    return out, h_n[0] if alone else h_n


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
        kinds = (type(theirs), TypeError, RuntimeError) if backend == "cpu" else type(theirs)
        assert isinstance(ours, kinds), ours
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


# ---- where calls are not read -----------------------------------------------------------------------


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


@pytest.mark.parametrize("shape", [(3, 5), (1, 4, 5), (4, 1, 5), (3, 2, 5)], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["dispatch mode", "profiler"])
def test_contexts_of_a_backward_pass_alone(name, batch_first, shape):
    """What was computed by kernels becomes an operator's arguments."""
    rnn = rnnfast.RNN(5, 7, 2, bidirectional=True, batch_first=batch_first, backend="cpu")
    batch = () if len(shape) == 2 else (shape[0 if batch_first else 1],)
    x, hx = torch.randn(shape, requires_grad=True), torch.randn(4, *batch, 7, requires_grad=True)
    leaves = [x, hx, *rnn.parameters()]
    for given in ((x, hx), (x,)):
        found, wanted = [], [leaf for leaf in leaves if leaf is not hx or len(given) == 2]
        for around in (contextlib.nullcontext, CONTEXTS[name]):
            results = rnn(*given)
            with around():
                found.append(torch.autograd.grad(results, wanted, [r.detach().cos() for r in results]))
        torch.testing.assert_close(*found, rtol=0, atol=0)


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
print(rnnfast.call.READY, rnnfast.explain(rnn, x).backend)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.stdout.split()[0] == "False", done.stderr
