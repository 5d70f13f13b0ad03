"""Plain calls of which a backend for GPUs does the computing: checked in C, then handed to its methods.

The backend here is one of torch's operators on the CPU; test_cuda_kernels.py goes the same way to kernels.
"""

import pytest
import torch

import rnnfast
from rnnfast import dispatch, plain, testing
from rnnfast.backends.eager import EagerBackend
from rnnfast.backends.recurrence import RecurrenceBackend
from rnnfast.functional import rnn_sequence, rnn_step
from tests import plain_calls
from tests.plain_calls import (
    CHANGES,
    CONTEXTS,
    Tagged,
    arguments,
    assert_identical,
    both_ways,
    each_dtype,
    strided,
)

if not plain.ready:
    pytest.skip("needs the native extension and a torch with DLPack's C functions", allow_module_level=True)

taken = plain_calls.taken
BACKEND = "recurrence-on-cpu"


class OnCpu(RecurrenceBackend):
    """Counts its calls, and insists on dense tensors, as kernels do."""

    name = BACKEND

    def __init__(self):
        self.calls = []

    def unavailable(self):
        return None

    def refuses(self, problem):
        return None

    def called(self, name, *tensors):
        assert all(t is None or (t.is_contiguous() and not t.is_neg()) for t in tensors)
        self.calls.append(name)

    def step_forward(self, x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity):
        self.called("step", x, h, weight_ih, weight_hh, bias_ih, bias_hh)
        cell = torch.rnn_tanh_cell if nonlinearity == "tanh" else torch.rnn_relu_cell
        with torch.no_grad():
            return cell(x, h, weight_ih, weight_hh, bias_ih, bias_hh)

    def step_backward(self, grad, x, h, weight_ih, weight_hh, out, nonlinearity, needs):
        read = ((x, needs.weight_ih), (h, needs.weight_hh), (weight_ih, needs.x), (weight_hh, needs.h0))
        self.called("step backward", grad, out, *(tensor for tensor, is_read in read if is_read))
        return EagerBackend().step_backward(grad, x, h, weight_ih, weight_hh, out, nonlinearity, needs)

    def recurrence_forward(self, pre, h0, weight_hh, nonlinearity, walk):
        self.called("sequence", pre, h0, weight_hh)
        act = torch.tanh if nonlinearity == "tanh" else torch.relu
        h, out = h0, torch.empty_like(pre).view(walk.steps, walk.batch, -1)
        with torch.no_grad():
            for t in self.order(walk):
                out[t] = h = act(pre.view_as(out)[t] + h @ weight_hh.t())
        return out.view_as(pre), h.clone()

    def recurrence_backward(self, grad_out, grad_hn, out, weight_hh, nonlinearity, walk):
        self.called("sequence backward", grad_out, grad_hn, out, weight_hh)
        out = out.view(walk.steps, walk.batch, -1)
        dpre, dh = torch.empty_like(out), torch.zeros_like(out[0])
        with torch.no_grad():
            dh = dh if grad_hn is None else dh + grad_hn
            for t in reversed(self.order(walk)):
                dh = dh if grad_out is None else dh + grad_out.view_as(out)[t]
                dpre[t] = dh * (1 - out[t] ** 2 if nonlinearity == "tanh" else out[t] > 0)
                dh = dpre[t] @ weight_hh
        return dpre.flatten(0, 1), dh

    def order(self, walk):
        assert walk.offsets is None
        return range(walk.steps)[:: -1 if walk.reverse else 1]


@pytest.fixture
def calls(monkeypatch):
    """What the backend has been called for."""
    backend = OnCpu()
    monkeypatch.setattr(dispatch, "_registry", dict(dispatch._registry))
    dispatch.register(backend)
    yield backend.calls
    monkeypatch.undo()
    dispatch.find.cache_clear()


def results_and_gradients(function, args, **options):
    leaves = [None if a is None else a.clone().requires_grad_() for a in args]
    results = function(*leaves, **options, backend=BACKEND)
    results = results if isinstance(results, tuple) else (results,)
    weights = [torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view_as(r) for r in results]
    return *results, torch.autograd.grad(results, [leaf for leaf in leaves if leaf is not None], weights)


@each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("reverse", [False, True])
def test_sequence(reverse, nonlinearity, bias, dtype, calls, taken):
    args = arguments(dtype, 4, bias=bias, nonlinearity=nonlinearity)
    options = {"nonlinearity": nonlinearity, "reverse": reverse}
    assert_identical(*both_ways(lambda: results_and_gradients(rnn_sequence, args, **options)))
    assert_identical(*both_ways(lambda: rnn_sequence(*args, **options, backend=BACKEND)))
    assert taken == ["sequence", "backward", "sequence"]
    assert calls == 2 * ["sequence", "sequence backward"] + 2 * ["sequence"]


@pytest.mark.parametrize("reverse", [False, True])
def test_sequence_is_right(reverse, calls, taken):
    """The other tests compare two ways to one backend."""
    args = arguments(torch.float64)
    results = [
        results_and_gradients(
            lambda *a, backend, name=name: rnn_sequence(*a, reverse=reverse, backend=name), args
        )
        for name in (BACKEND, "eager")
    ]
    torch.testing.assert_close(*results)
    assert calls and "backward" in taken


@each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
def test_step(nonlinearity, bias, dtype, calls, taken):
    args = arguments(dtype, bias=bias, nonlinearity=nonlinearity, step=True)
    options = {"nonlinearity": nonlinearity}
    assert_identical(*both_ways(lambda: results_and_gradients(rnn_step, args, **options)))
    assert_identical(*both_ways(lambda: rnn_step(*args, **options, backend=BACKEND)))
    assert taken == ["step", "backward", "step"]
    assert calls == 2 * ["step", "step backward"] + 2 * ["step"]


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_modules(cell, hx, grad, calls, taken):
    module = (rnnfast.RNNCell if cell else rnnfast.RNN)(5, 7, backend=BACKEND)
    x = torch.randn((2, 5) if cell else (3, 2, 5), requires_grad=grad)
    h = torch.randn((2, 7) if cell else (1, 2, 7), requires_grad=grad) if hx else None

    def call():
        with torch.set_grad_enabled(grad):
            result = module(x, h)
        outputs = (result,) if cell else result
        if not grad:
            return result
        leaves = [x, *([h] if hx else []), *module.parameters()]
        return result, torch.autograd.grad(outputs, leaves, [o.detach() for o in outputs])

    assert_identical(*both_ways(call))
    assert taken == ["step" if cell else "sequence", *(["backward"] if grad else [])]


@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor", "ignore:Sparse")
@pytest.mark.parametrize("index", range(6), ids=["x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_arguments_that_are_not_plain(step, change, index, calls, taken):
    args = arguments(step=step)
    args[index] = CHANGES[change](args[index])
    short, general = both_ways(lambda: (rnn_step if step else rnn_sequence)(*args, backend=BACKEND))
    if isinstance(args[index], Tagged) or getattr(args[index], "is_meta", False):
        assert type(short) is type(general)
    else:
        assert_identical(short, general)
    copied = change in ("strided", "expanded") and index == 0 and not step
    if not (copied or (change == "none" and index > 3)):
        assert taken == []


# What autograd may send that isn't a dense tensor of torch's own type.
GRADIENTS = {
    "expanded": lambda out: torch.ones((), dtype=out.dtype).expand_as(out),
    "strided": lambda out: strided(torch.randn(out.shape)),
    "transposed": lambda out: torch.randn(out.shape[::-1]).permute(*reversed(range(out.dim()))),
    "lazily negated": lambda out: torch._neg_view(torch.randn(out.shape)),
    "subclass": lambda out: torch.randn(out.shape).as_subclass(Tagged),
}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_gradients_that_are_not_dense(step, gradient, calls):
    args = arguments(step=step)
    leaves = [a.requires_grad_() for a in args]
    function = rnn_step if step else rnn_sequence
    like = function(*args, backend=BACKEND)
    grad = GRADIENTS[gradient]((like if step else like[0]).detach())

    def call():
        out = function(*args, backend=BACKEND)
        return torch.autograd.grad(out if step else out[0], leaves, grad)

    short, general = both_ways(call)
    assert [type(g) for g in short] == [type(g) for g in general]
    assert_identical(*[tuple(g.as_subclass(torch.Tensor) for g in grads) for grads in (short, general)])
    assert calls.count("step backward" if step else "sequence backward") == 2


@pytest.mark.parametrize("wanted", range(6))
def test_one_gradient_alone(wanted, calls, taken):
    args = arguments()
    args[wanted].requires_grad_()

    def call(of):
        return torch.autograd.grad(rnn_sequence(*args, backend=BACKEND)[of].sum(), args[wanted])

    for of in (0, 1):
        assert_identical(*both_ways(lambda of=of: call(of)))
    assert taken == 2 * ["sequence", "backward"]


@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_higher_derivatives(step, calls):
    leaves = [a.requires_grad_() for a in arguments(torch.float64, step=step)]
    function = rnn_step if step else rnn_sequence

    def call():
        results = function(*leaves, backend=BACKEND)
        results = (results,) if step else results
        grads = torch.autograd.grad(sum(r.sin().sum() for r in results), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        again = function(*leaves, backend=BACKEND)
        h_n = again if step else again[1]
        grad_outs = torch.eye(14, dtype=torch.float64).view(14, 2, 7)
        (batched,) = torch.autograd.grad(h_n, leaves[1], grad_outs, is_grads_batched=True)
        return tuple(g.detach() for g in grads), second, batched

    torch.testing.assert_close(*both_ways(call))


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_in_which_no_call_is_plain(name, calls, taken):
    rnn = rnnfast.RNN(5, 7, backend=BACKEND)
    x, leaves = torch.randn(3, 2, 5), list(rnn.parameters())

    def call():
        with CONTEXTS[name]():
            results = rnn(x)
            return results, torch.autograd.grad(results, leaves, [torch.ones_like(r) for r in results])

    assert_identical(*both_ways(call))
    assert taken == []


def test_results_are_not_views(calls):
    """autograd would let nobody change them in place, and a caller may."""
    rnn = rnnfast.RNN(5, 7, backend=BACKEND)
    x = torch.randn(3, 2, 5)
    output, h_n = rnn(x)
    assert not output._is_view() and not h_n._is_view()
    h_n.mul_(2)
    output.sum().backward()  # h_n is not what backward reads
    output, h_n = rnn(x)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_tensors_of_two_dtypes_or_shapes_are_not_handed_on(calls):
    args = arguments()
    found = plain.sequence(*args, "tanh", False, None, BACKEND, False, False, 4, 1)
    assert isinstance(found, OnCpu)
    for index in range(6):
        for change in (lambda t: t.double(), lambda t: t[..., :-1].contiguous(), lambda t: t.to("meta")):
            changed = [*args]
            changed[index] = change(args[index])
            assert plain.sequence(*changed, "tanh", False, None, BACKEND, False, False, 4, 1) is None
    assert calls == []
