"""The short way for plain calls: taken where it should be, with the general way's bits, and nowhere else."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import rnnfast
from rnnfast import context, dispatch, plain, testing
from rnnfast.backends.cpu import CpuBackend
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


@each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 5, 20])
@pytest.mark.parametrize("grad", [False, True])
def test_sequence_gives_the_bits_of_the_general_way(steps, reverse, nonlinearity, bias, dtype, grad, taken):
    args = arguments(dtype, steps, bias=bias, nonlinearity=nonlinearity)

    def call():
        leaves = [None if a is None else a.clone().requires_grad_(grad) for a in args]
        out, h_n = rnn_sequence(*leaves, nonlinearity, reverse=reverse, backend="cpu")
        if not grad:
            return out, h_n
        wanted = [leaf for leaf in leaves if leaf is not None]
        weight = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        return out, h_n, torch.autograd.grad([out, h_n], wanted, [weight, torch.ones_like(h_n)])

    short, general = both_ways(call)
    assert_identical(short, general)
    assert taken == (["sequence", "backward"] if grad else ["sequence"])


@each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("grad", [False, True])
def test_step_gives_the_bits_of_the_general_way(nonlinearity, bias, dtype, grad, taken):
    args = arguments(dtype, bias=bias, nonlinearity=nonlinearity, step=True)

    def call():
        leaves = [None if a is None else a.clone().requires_grad_(grad) for a in args]
        out = rnn_step(*leaves, nonlinearity, backend="cpu")
        if not grad:
            return out
        weight = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        return out, torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], weight)

    short, general = both_ways(call)
    assert_identical(short, general)
    assert taken == (["step", "backward"] if grad else ["step"])


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_modules(cell, bias, hx, grad, taken):
    module = (rnnfast.RNNCell if cell else rnnfast.RNN)(5, 7, bias=bias, backend="cpu")
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

    short, general = both_ways(call)
    assert_identical(short, general)
    assert taken == ["step" if cell else "sequence", *(["backward"] if grad else [])]


def test_the_general_way_is_not_touched(monkeypatch):
    def fail(*args):
        raise AssertionError("the general way")

    for name in ("step_forward", "step_backward", "sequence_forward", "sequence_backward"):
        monkeypatch.setattr(CpuBackend, name, fail)
    rnnfast.RNN(5, 7, backend="cpu")(torch.randn(3, 2, 5))[0].sum().backward()
    rnnfast.RNN(5, 7, 2, bidirectional=True, backend="cpu")(torch.randn(3, 2, 5))[0].sum().backward()
    rnnfast.RNN(5, 7, batch_first=True, backend="cpu")(torch.randn(2, 3, 5))[0].sum().backward()
    rnnfast.RNNCell(5, 7, backend="cpu")(torch.randn(2, 5)).sum().backward()
    args = arguments()
    args[1] = strided(args[1])
    with pytest.raises(AssertionError, match="the general way"):
        rnn_sequence(*args, backend="cpu")


@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor", "ignore:Sparse")
@pytest.mark.parametrize("index", range(6), ids=["x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_arguments_that_are_not_plain(step, change, index, backend, taken):
    """Same result, or torch's own error."""
    args = arguments(step=step)
    args[index] = CHANGES[change](args[index])
    function = rnn_step if step else rnn_sequence
    short, general = both_ways(lambda: function(*args, backend=backend))
    if isinstance(args[index], Tagged) or getattr(args[index], "is_meta", False):
        # A subclass has its own ideas of equality, and torch's cell computes nonsense from a meta weight.
        assert type(short) is type(general)
    else:
        assert_identical(short, general)
    # What can be a kernel's argument after all: no bias, or a copy.
    copied = change in ("strided", "expanded") and index == 0 and not step
    if not (copied or (change == "none" and index > 3)):
        assert taken == []


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("index", [0, 1], ids=["input", "hx"])
def test_inputs_of_modules_that_are_not_plain(cell, change, index):
    module = (rnnfast.RNNCell if cell else rnnfast.RNN)(5, 7, backend="cpu")
    args = [torch.randn((2, 5) if cell else (3, 2, 5)), torch.randn((2, 7) if cell else (1, 2, 7))]
    args[index] = CHANGES[change](args[index])
    short, general = both_ways(lambda: module(*args))
    if isinstance(args[index], Tagged) or getattr(args[index], "is_meta", False):
        assert type(short) is type(general)
    else:
        assert_identical(short, general)


@pytest.mark.parametrize("shapes", [(1, 1, 1, 1), (2, 1, 1, 1)], ids=str)
def test_imaginary_part_of_a_conjugate(shapes):
    """The one tensor in daily use that is dense and yet negated: a single number."""
    t, b, i, h = shapes
    z = torch.randn(t, b, i, dtype=torch.complex64)
    weights = torch.ones(h, i), torch.ones(h, h)
    for x in (z[:1].conj().imag, z.conj().imag):
        out, _ = rnn_sequence(x, torch.zeros(b, h), *weights, backend="cpu")
        torch.testing.assert_close(out[0], torch.tanh(-z.imag[0]))
    weight = torch.nn.Parameter(torch.complex(weights[0], weights[0]).conj().imag)
    out, _ = rnn_sequence(torch.ones(t, b, i), torch.zeros(b, h), weight, weights[1], backend="cpu")
    torch.testing.assert_close(out[0], torch.tanh(-torch.ones(b, h)))


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_in_which_no_call_is_plain(name, taken):
    rnn, cell = rnnfast.RNN(5, 7, backend="cpu"), rnnfast.RNNCell(5, 7, backend="cpu")
    x, leaves = torch.randn(3, 2, 5), [*rnn.parameters(), *cell.parameters()]

    def call():
        with CONTEXTS[name]():
            results = (*rnn(x), cell(x[0]))
            return results, torch.autograd.grad(results, leaves, [torch.ones_like(r) for r in results])

    assert_identical(*both_ways(call))
    assert taken == []


def test_tensors_without_memory(taken):
    args = arguments()
    for without in (torch._efficientzerotensor(3, 2, 5), torch.empty(3, 2, 5, device="meta")):
        changed = [without, *args[1:]]
        assert plain.sequence(*changed, "tanh", False, None, "cpu", False, False, 4, 1) is None
    assert plain.sequence(*args, "tanh", False, None, "cpu", False, False, 4, 1) is not None


def test_transforms_tracers_and_fake_tensors(taken):
    rnn = rnnfast.RNN(5, 7, backend="cpu")
    x = torch.randn(3, 2, 5)
    with torch.no_grad():
        expected = rnn(x)[0]
        assert taken.pop() == "sequence"
        torch.testing.assert_close(torch.func.vmap(lambda x: rnn(x)[0])(x[None])[0], expected)
        torch.testing.assert_close(torch.jit.trace(rnn, (x,), check_trace=False)(x)[0], expected)
        torch.testing.assert_close(torch.compile(rnn, backend="eager", fullgraph=True)(x)[0], expected)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert rnn(mode.from_tensor(x))[0].shape == (3, 2, 7)
        fake = FakeTensorMode().from_tensor(x)
    assert (
        plain.sequence(fake, None, *rnn.parameters(), "tanh", False, (5, 7), "cpu", False, False, 4, 1)
        is None
    )
    assert "sequence" not in taken


@each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("cell", [False, True])
def test_calls_that_are_left_to_torch(cell, hx, bias, dtype, taken):
    """torch's own backend is called at once: results and gradients are its modules'."""
    theirs, ours = (
        (m.RNNCell if cell else m.RNN)(5, 7, bias=bias, dtype=dtype, **options)
        for m, options in ((torch.nn, {}), (rnnfast, {"backend": "aten"}))
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn((2, 5) if cell else (3, 2, 5), dtype=dtype)
    h = torch.randn((2, 7) if cell else (1, 2, 7), dtype=dtype) if hx else None

    def results(module):
        with torch.no_grad():
            computed = module(x, h)
        leaves = [t.clone().requires_grad_() for t in (x, h) if t is not None]
        outputs = module(*leaves)
        total = outputs.sum() if cell else sum(o.sum() for o in outputs)
        return computed, torch.autograd.grad(total, [*leaves, *module.parameters()])

    short, general = both_ways(lambda: results(ours))
    assert taken == 2 * ["step" if cell else "sequence"]
    assert_identical(short, general)
    assert_identical(short, results(theirs))


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"nonlinearity": "relu"}], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_functions_that_are_left_to_torch(grad, options, taken):
    args = [a.requires_grad_(grad) for a in arguments()]
    for missing in ((), (4,), (5,)):  # with one bias only, too
        some = [None if i in missing else a for i, a in enumerate(args)]
        assert_identical(*both_ways(lambda some=some: rnn_sequence(*some, **options, backend="aten")))
    assert taken == 3 * ["sequence"]
    if "reverse" not in options:
        args = [a.requires_grad_(grad) for a in arguments(step=True)]
        assert_identical(*both_ways(lambda: rnn_step(*args, **options, backend="aten")))
        assert taken[3:] == ["step"]


@pytest.mark.parametrize("backend", ["eager", "unknown"])
def test_other_backends(backend, taken):
    args = arguments()
    assert_identical(*both_ways(lambda: rnn_sequence(*args, backend=backend)))
    args = arguments(step=True)
    assert_identical(*both_ways(lambda: rnn_step(*args, backend=backend)))
    assert taken == []


def test_a_backend_that_takes_the_place_of_cpu(taken, monkeypatch):
    """What dispatch names is asked in every call, and only the CPU backend itself has a short way."""

    class Other(CpuBackend):
        def sequence_forward(self, *args):
            return tuple(2 * result for result in super().sequence_forward(*args))

    monkeypatch.setattr(dispatch, "_registry", dict(dispatch._registry))
    args = arguments()
    expected = rnn_sequence(*args, backend="cpu")[0]
    assert taken == ["sequence"]
    dispatch.register(Other())
    try:
        torch.testing.assert_close(rnn_sequence(*args, backend="cpu")[0], 2 * expected)
        assert taken == ["sequence"]
    finally:
        monkeypatch.undo()
        dispatch.find.cache_clear()


def test_auto_leaves_to_others_what_dispatch_says(taken, monkeypatch):
    monkeypatch.setattr(dispatch, "SLOWER", {"cpu": (dispatch.Region("sequence", grad=True),)})
    dispatch.find.cache_clear()
    try:
        args = arguments()
        args[3].requires_grad_()
        assert type(rnn_sequence(*args, backend="cpu")[0].grad_fn).__name__ == "SequenceBackward"
        assert type(rnn_sequence(*args)[0].grad_fn).__name__ != "SequenceBackward"
        ours, theirs = (rnn_sequence(*args, backend=name)[0] for name in ("cpu", "aten"))
        with torch.no_grad():
            assert torch.equal(rnn_sequence(*args)[0], ours)
        assert torch.equal(rnn_sequence(*args)[0], theirs)
        assert taken == 6 * ["sequence"]
    finally:
        dispatch.find.cache_clear()


def test_deterministic_algorithms(taken):
    """They read the weights packed at any number of steps, as the general way does."""
    torch.use_deterministic_algorithms(True)
    try:
        args = arguments(steps=2)
        assert_identical(*both_ways(lambda: rnn_sequence(*args, backend="cpu")))
    finally:
        torch.use_deterministic_algorithms(False)
    assert taken == ["sequence"]


class Doubling(TorchFunctionMode):
    """Makes every new tensor twice as large."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return torch.cat([result, result]) if function is torch.Tensor.new_empty else result


def test_function_modes():
    args = arguments()
    expected = rnn_sequence(*args, backend="cpu")
    with torch.device("meta"):
        assert_identical(rnn_sequence(*args, backend="cpu"), expected)
    with Doubling():
        assert plain.sequence(*args, "tanh", False, None, "cpu", False, False, 4, 1) is None


def test_gradients_of_the_biases_do_not_share_memory(taken):
    rnn = rnnfast.RNN(5, 7, backend="cpu")
    rnn(torch.randn(3, 2, 5))[0].sum().backward()
    assert taken == ["sequence", "backward"]
    before = rnn.bias_hh_l0.grad.clone()
    assert before.any() and torch.equal(rnn.bias_ih_l0.grad, before)
    rnn.bias_ih_l0.grad.zero_()
    assert torch.equal(rnn.bias_hh_l0.grad, before)


@pytest.mark.parametrize("wanted", range(6))
def test_one_gradient_alone(wanted, taken):
    args = arguments()
    args[wanted].requires_grad_()

    def call():
        out, h_n = rnn_sequence(*args, backend="cpu")
        return torch.autograd.grad(out.sum() + 2 * h_n.sum(), args[wanted])

    assert_identical(*both_ways(call))
    assert taken == ["sequence", "backward"]


def test_higher_derivatives_of_a_plain_call(taken):
    rnn = rnnfast.RNN(5, 7, dtype=torch.float64, backend="cpu")
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(1, 2, 7, dtype=torch.float64, requires_grad=True)

    def call():
        out, h_n = rnn(x, hx)
        loss = out.square().sum() + h_n.sin().sum()
        grads = torch.autograd.grad(loss, [x, hx, *rnn.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), [x, hx, *rnn.parameters()])
        grad_outs = torch.eye(14, dtype=torch.float64).view(14, 1, 2, 7)
        (batched,) = torch.autograd.grad(rnn(x, hx)[1], hx, grad_outs, is_grads_batched=True)
        return tuple(g.detach() for g in grads), second, batched

    short, general = both_ways(call)
    torch.testing.assert_close(short, general)
    # The plain backward is that of the second derivative, through the saved output; the batched one is none.
    assert taken == ["sequence", "backward", "sequence"]


def test_inference_mode(taken):
    rnn = rnnfast.RNN(5, 7, backend="cpu")
    x = torch.randn(3, 2, 5)
    with torch.inference_mode():
        out, h_n = rnn(x)
    assert out.is_inference() and h_n.is_inference() and taken == ["sequence"]
    assert torch.equal(out, rnn(x)[0])


def test_results_may_be_changed_in_place():
    rnn = rnnfast.RNN(5, 7, backend="cpu")
    x = torch.randn(3, 2, 5)
    output, h_n = rnn(x)
    h_n.mul_(2)
    output.sum().backward()  # h_n is not what backward reads
    output, h_n = rnn(x)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_references_are_given_back(taken):
    rnn = rnnfast.RNN(5, 7, backend="cpu")
    x, hx, bad = torch.randn(3, 2, 5), torch.randn(1, 2, 7), torch.randn(3, 2, 6)
    held = [x, hx, bad, *rnn.parameters(), None, True, False, "cpu", "tanh", torch.float32, dispatch.find]

    def use():
        for _ in range(1000):
            rnn(x, hx)[0].sum().backward(retain_graph=False)
            rnn.zero_grad()
            with torch.no_grad():
                rnn(x)
                plain.sequence(bad, hx, *rnn.parameters(), "tanh", False, (5, 7), "cpu", False, False, 4, 1)

    use()
    before = [sys.getrefcount(thing) for thing in held]
    use()
    after = [sys.getrefcount(thing) for thing in held]
    assert all(abs(a - b) < 200 for a, b in zip(after, before, strict=True)), (before, after)
    assert "backward" in taken


def test_undisturbed_is_what_its_parts_say():
    assert context.undisturbed() and not context.watching() and not context.needs_composite()
    with torch.no_grad():
        assert context.undisturbed()
    for make in CONTEXTS.values():
        with make():
            assert not context.undisturbed()


MISSING = {
    "no table": "torch.Tensor.__dlpack_c_exchange_api__ = None",
    "another major version": """
import ctypes
table = (ctypes.c_uint32 * 64)(2, 0)
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
name = b"dlpack_exchange_api"
torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), name, None)
""",
}


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("why", MISSING)
def test_without_the_table_of_functions_everything_goes_the_general_way(why):
    code = f"""
import torch
{MISSING[why]}
import rnnfast
rnn, theirs = rnnfast.RNN(5, 7, backend="cpu"), torch.nn.RNN(5, 7)
theirs.load_state_dict(rnn.state_dict())
x = torch.randn(3, 2, 5)
torch.testing.assert_close(rnn(x), theirs(x))
print(rnnfast.plain.ready)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
