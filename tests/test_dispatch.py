"""Choosing a backend: a rule that is pure, can be asked, and can be overruled."""

from dataclasses import replace

import pytest
import torch

import rnnfast
from rnnfast import dispatch, functional
from rnnfast.backends.base import Backend, Problem
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS, DTYPES
from tests.pairs import flat

PROBLEM = Problem("sequence", "cpu", "float32", 4, 8, 2, 3)


class Awkward(Backend):
    """Available or not, willing or not."""

    name = "awkward"

    def __init__(self, missing=None, refusal=None):
        self.missing = missing
        self.refusal = refusal

    def unavailable(self):
        return self.missing

    def refuses(self, problem):
        return self.refusal


@pytest.fixture
def awkward():
    def register(**reasons):
        dispatch.register(Awkward(**reasons))

    with dispatch.replaced():
        yield register


def test_auto_takes_the_first_preference_that_can():
    able = [name for name in dispatch.PREFERENCE if dispatch.why_not(name, PROBLEM) is None]
    assert dispatch.choose(PROBLEM) == able[0]


def test_auto_avoids_a_backend_where_it_is_slower(monkeypatch):
    first = dispatch.choose(PROBLEM)
    here = dispatch.Region("sequence", grad=False, batch=(1, 3), steps=(3, 4))
    monkeypatch.setattr(dispatch, "SLOWER", {first: (here,)})
    assert dispatch.choose(PROBLEM) != first
    elsewhere = dispatch.Region("sequence", grad=False, batch=(1, 2))
    monkeypatch.setattr(dispatch, "SLOWER", {first: (elsewhere,)})
    assert dispatch.choose(PROBLEM) == first


def test_auto_waits_for_a_measurement(monkeypatch):
    first = dispatch.choose(PROBLEM)
    here = dispatch.Region("sequence", grad=False, batch=(1, 3), steps=(3, 4))
    monkeypatch.setattr(dispatch, "FASTER", {first: (here,)})
    assert dispatch.choose(PROBLEM) == first
    with monkeypatch.context() as other_device:
        other_device.setattr(dispatch.get(first), "measured", lambda: False)
        assert dispatch.choose(PROBLEM) != first
    monkeypatch.setattr(dispatch, "FASTER", {first: ()})
    assert dispatch.choose(PROBLEM) != first
    others = rnnfast.explain(rnnfast.RNN(4, 8), torch.zeros(3, 2, 4)).others
    assert others[first] == "not measured yet to be faster for problems like this"


def test_auto_depends_on_whether_there_will_be_gradients(monkeypatch):
    asked, find = [], dispatch.find
    monkeypatch.setattr(functional, "find", lambda *args: asked.append(find(*args)) or asked[-1])
    rnn, x = rnnfast.RNN(4, 8), torch.zeros(3, 2, 4)
    with dispatch.replaced(slower={"cpu": (dispatch.Region("sequence", grad=True),)}):
        rnn(x)
        with torch.no_grad():
            rnn(x)
        rnn.requires_grad_(False)(x)
        expected = [dispatch.choose(replace(PROBLEM, grad=grad)) for grad in (True, False, False)]
    assert [backend.name for backend in asked] == expected
    assert (asked[0].name == asked[1].name) == ("cpu" not in BACKENDS)


def test_what_is_replaced_comes_back(monkeypatch):
    """Backends, regions, and what was chosen by them; after an error, too."""
    rnn, x, asked, find = rnnfast.RNN(4, 8).requires_grad_(False), torch.zeros(3, 2, 4), [], dispatch.find
    monkeypatch.setattr(functional, "find", lambda *args: asked.append(find(*args)) or asked[-1])
    names, regions = dispatch.names(), dict(dispatch.SLOWER)
    rnn(x)
    everywhere = {name: (dispatch.Region("sequence"),) for name in ("cpu", "aten")}
    with pytest.raises(KeyError), dispatch.replaced(Awkward(), slower=everywhere):
        assert dispatch.names() == (*names, "awkward")
        rnn(x)
        raise KeyError
    assert (dispatch.names(), dispatch.SLOWER) == (names, regions)
    rnn(x)
    assert asked[1].name == "eager"
    assert asked[0] is asked[2]


def test_a_backend_that_takes_the_place_of_another():
    class Other(dispatch.EagerBackend):
        def forward(self, call):
            return tuple(2 * result for result in super().forward(call))

    rnn, x = rnnfast.RNN(4, 8, 2, backend="eager"), torch.randn(3, 2, 4)
    with torch.no_grad():
        expected = rnn(x)[0]
        with dispatch.replaced(Other()):
            torch.testing.assert_close(rnn(x)[0], 2 * expected)
        torch.testing.assert_close(rnn(x)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_aten_has_the_bits_of_torch(options, hx, bias, dtype):
    """Results and gradients are its modules'."""
    for name in ("RNN", "RNNCell"):
        kwargs = {"bias": bias, "dtype": dtype, **(options if name == "RNN" else {})}
        theirs = getattr(torch.nn, name)(5, 7, **kwargs)
        ours = getattr(rnnfast, name)(5, 7, **kwargs, backend="aten")
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn((3, 2, 5) if name == "RNN" else (2, 5), dtype=dtype)
        h = torch.randn((len(theirs.all_weights), 2, 7) if name == "RNN" else (2, 7), dtype=dtype)
        found = []
        for module in (theirs, ours):
            leaves = [t.clone().requires_grad_() for t in ((x, h) if hx else (x,))]
            results = flat(module(*leaves))
            total = sum(result.sum() for result in results)
            found.append([*results, *torch.autograd.grad(total, [*leaves, *module.parameters()])])
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    "region",
    [
        dispatch.Region("step"),
        dispatch.Region("sequence", grad=True),
        dispatch.Region("sequence", dtypes=frozenset({"float64"})),
        dispatch.Region("sequence", input_size=(5, 9)),
        dispatch.Region("sequence", hidden_size=(9, 10)),
        dispatch.Region("sequence", batch=(0, 2)),
        dispatch.Region("sequence", steps=(4, 5)),
    ],
)
def test_region_that_differs_in_one_size(region):
    assert PROBLEM not in region


def test_unknown_name():
    message = "Unknown backend 'fast'. Select from 'auto', 'eager', 'aten', 'cpu'"
    for build in (rnnfast.RNN, rnnfast.RNNCell):
        with pytest.raises(ValueError, match=message):
            build(4, 8, backend="fast")
    with pytest.raises(ValueError, match=message):
        rnnfast.convert(torch.nn.RNN(4, 8), backend="fast")
    rnn = rnnfast.RNN(4, 8)
    rnn.backend = "fast"
    with pytest.raises(ValueError, match=message):
        rnn(torch.zeros(3, 2, 4))


def test_unavailable_backend_raises_with_the_reason(awkward):
    awkward(missing="the moon is full")
    message = "backend 'awkward' is not available: the moon is full"
    for build in (rnnfast.RNN, rnnfast.RNNCell):
        with pytest.raises(RuntimeError, match=message):
            build(4, 8, backend="awkward")
    rnn, cell = rnnfast.RNN(4, 8), rnnfast.RNNCell(4, 8)
    rnn.backend = cell.backend = "awkward"
    for call in (lambda: rnn(torch.zeros(3, 2, 4)), lambda: cell(torch.zeros(2, 4))):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert f"awkward  {message[21:]}" in rnnfast.show_config()


def test_refusing_backend_raises_with_the_reason(awkward):
    awkward(refusal="not on a Sunday")
    rnn, cell = rnnfast.RNN(4, 8, backend="awkward"), rnnfast.RNNCell(4, 8, backend="awkward")
    for call in (
        lambda: rnn(torch.zeros(3, 2, 4)),
        lambda: cell(torch.zeros(2, 4)),
        lambda: rnnfast.explain(rnn, torch.zeros(3, 2, 4)),
    ):
        with pytest.raises(RuntimeError, match="backend 'awkward' can't run this problem: not on a Sunday"):
            call()


def test_complex_is_for_torch():
    """No backend of ours takes complex numbers; auto leaves them to torch, a named backend refuses."""
    rnn = rnnfast.RNN(4, 8, dtype=torch.complex64)
    theirs = torch.nn.RNN(4, 8, dtype=torch.complex64)
    theirs.load_state_dict(rnn.state_dict())
    x = torch.randn(3, 2, 4, dtype=torch.complex64)
    torch.testing.assert_close(rnn(x), theirs(x))
    rnn.backend = "eager"
    with pytest.raises(RuntimeError, match=r"backend 'eager'.*complex64"):
        rnn(x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_explain_a_named_backend(backend):
    rnn = rnnfast.RNN(4, 8, num_layers=2, batch_first=True, backend=backend)
    explanation = rnnfast.explain(rnn, torch.zeros(2, 3, 4))
    assert (explanation.backend, explanation.reason) == (backend, "asked for by name")
    assert explanation.problem == Problem("sequence", "cpu", "float32", 4, 8, 2, 3, layers=2, grad=True)
    assert set(explanation.others) == set(dispatch.names()) - {backend}


def test_explain_auto():
    cell = rnnfast.RNNCell(4, 8)
    with torch.no_grad():
        explanation = rnnfast.explain(cell, torch.zeros(2, 4))
    assert explanation.problem == Problem("step", "cpu", "float32", 4, 8, 2, 1)
    assert explanation.backend == dispatch.choose(explanation.problem)
    assert all(explanation.others.values())
    for name, reason in explanation.others.items():
        assert f"not {name}: {reason}" in str(explanation)


def test_explain_asks_what_the_call_asks():
    """The problem of the whole stack, as it is in the call."""
    asked = []

    class Asked(Awkward):
        name = "asked"

        def refuses(self, problem):
            asked.append(problem)
            return "only asked"

    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(n, 4) for n in (5, 2)])
    for module, input in (
        (rnnfast.RNN(4, 8, 3, bidirectional=True, batch_first=True), torch.zeros(2, 3, 4)),
        (rnnfast.RNN(4, 8, 2, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)),
        (rnnfast.RNN(4, 8, bidirectional=True), packed),
        (rnnfast.RNNCell(4, 8), torch.zeros(2, 4)),
    ):
        module.backend = "asked"
        for call in (module, lambda input, module=module: rnnfast.explain(module, input)):
            with dispatch.replaced(Asked()), pytest.raises(RuntimeError, match="only asked"):
                call(input)
        assert asked[-1] == asked[-2]


def test_explain_packed():
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(n, 4) for n in (5, 2)])
    problem = rnnfast.explain(rnnfast.RNN(4, 8), packed).problem
    assert (problem.batch, problem.steps, problem.packed) == (2, 5, True)


@pytest.mark.parametrize("batch_sizes", [[2, 2], [1, 2, 2], [3, 2], [2, 2, 1, 0], [2, 1, 2]], ids=str)
def test_batch_sizes_that_do_not_fit(batch_sizes):
    x, h0 = torch.zeros(5, 4), torch.zeros(2, 8)
    weights = torch.zeros(8, 4), torch.zeros(8, 8)
    for backend in BACKENDS:
        if backend != "aten":  # torch's own operator has its own checks
            with pytest.raises(ValueError, match="batch_sizes must be"):
                rnn_sequence(x, h0, *weights, batch_sizes=torch.tensor(batch_sizes), backend=backend)


def test_unknown_nonlinearity():
    tensors = torch.zeros(2, 4), torch.zeros(2, 8), torch.zeros(8, 4), torch.zeros(8, 8)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        rnn_step(*tensors, nonlinearity="sin")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_aten_says_whether_it_is_training(grad, packed, monkeypatch):
    """cuDNN refuses to differentiate what it was not told to; torch's operator on the CPU doesn't care."""
    told, operator = [], torch.rnn_tanh

    def spy(*args):
        told.append(args[-2 if packed else -3])
        return operator(*args)

    monkeypatch.setattr(torch, "rnn_tanh", spy)
    sizes = torch.tensor([2, 1]) if packed else None
    x = torch.randn(3, 4) if packed else torch.randn(3, 2, 4)
    with torch.set_grad_enabled(grad):
        rnn_sequence(
            x, torch.zeros(2, 5), torch.ones(5, 4), torch.ones(5, 5), batch_sizes=sizes, backend="aten"
        )
    assert told == [grad]
