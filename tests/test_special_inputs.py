"""Sizes of 0, infinities, NaN, layouts and what is no tensor at all: as torch does, and never a crash."""

import itertools

import numpy as np
import pytest
import torch

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS, make
from tests.pairs import flat, pair

each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])
each_nonlinearity = pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])


def in_torch(nonlinearity, x, h0, *weights):
    """torch's own operator, of a step or of a sequence."""
    if x.dim() == 2:
        return (getattr(torch, f"rnn_{nonlinearity}_cell")(x, h0, *weights),)
    layer = getattr(torch, f"rnn_{nonlinearity}")
    out, h_n = layer(x, h0[None], list(weights), True, 1, 0.0, True, False, False)
    return out, h_n[0]


def in_rnnfast(nonlinearity, x, h0, *weights, backend):
    if x.dim() == 2:
        return (rnn_step(x, h0, *weights, nonlinearity, backend=backend),)
    return rnn_sequence(x, h0, *weights, nonlinearity, backend=backend)


# ---- sizes of 0 --------------------------------------------------------------------------------------


@each_backend
@each_nonlinearity
@pytest.mark.parametrize("batch, inputs, hidden", list(itertools.product([0, 2], [0, 3], [0, 5])))
@pytest.mark.parametrize("steps", [None, 1, 6], ids=["step", "1 step", "6 steps"])
def test_sizes_of_0(steps, batch, inputs, hidden, nonlinearity, backend):
    shapes = [(batch, inputs), (batch, hidden), (hidden, inputs), (hidden, hidden), (hidden,), (hidden,)]
    if steps is not None:
        shapes[0] = (steps, *shapes[0])
    args = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    results = []
    for outputs in (in_torch(nonlinearity, *args), in_rnnfast(nonlinearity, *args, backend=backend)):
        grads = torch.autograd.grad(sum(o.sum() for o in outputs), args, allow_unused=True)
        zeros = [torch.zeros_like(a) if g is None else g for a, g in zip(args, grads, strict=True)]
        results.append((outputs, tuple(zeros)))
    torch.testing.assert_close(results[1], results[0])


@each_backend
def test_cell_without_hidden_units(backend):
    theirs, ours = pair(3, 0, cell=True, backend=backend)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for module in (theirs, ours):
        x.grad = None
        module(x).sum().backward()
        assert (x.grad == 0).all() and all(p.grad.shape == p.shape for p in module.parameters())


@each_backend
@pytest.mark.parametrize("inputs, hidden", [(0, 5), (3, 0), (0, 0)])
def test_packed_sizes_of_0(inputs, hidden, backend):
    shapes = [(6, inputs), (3, hidden), (hidden, inputs), (hidden, hidden), (hidden,), (hidden,)]
    args = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for reverse in (False, True):
        sizes = torch.tensor([3, 2, 1])
        results = rnn_sequence(*args, reverse=reverse, batch_sizes=sizes, backend=backend)
        expected = rnn_sequence(*args, reverse=reverse, batch_sizes=sizes, backend="eager")
        torch.testing.assert_close(results, expected)
        grads = [torch.autograd.grad(sum(o.sum() for o in r), args) for r in (results, expected)]
        torch.testing.assert_close(*grads)


# ---- infinities and NaN ------------------------------------------------------------------------------

SPECIAL = {"inf": torch.inf, "-inf": -torch.inf, "nan": torch.nan, "huge": 3e38, "-huge": -3e38}


def kinds(tensors):
    """Where tensors are NaN, and which are infinite with which sign."""
    return [torch.where(t.isfinite(), 0.0, t).nan_to_num(nan=7, posinf=1, neginf=-1) for t in tensors]


@each_backend
@each_nonlinearity
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("where", range(8), ids=["x", "h0", "w_ih", "w_hh", "b_ih", "b_hh", "d_out", "d_hn"])
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_special_values(step, where, value, nonlinearity, backend):
    """One such number in one argument or gradient: NaN and infinities are where torch has them."""
    case = make((9, 3, 5, 18), torch.float32, nonlinearity)
    x, *rest = case.args
    args = [t.clone() for t in (x[0] if step else x, *rest)]
    grads = [case.grad_out[0].clone()] if step else [case.grad_out.clone(), case.grad_hn.clone()]
    if where >= 6 + len(grads):
        return
    [*args, *grads][where].flatten()[-2:] = SPECIAL[value]
    found = []
    for function in (in_torch, lambda *a: in_rnnfast(*a, backend=backend)):
        leaves = [a.clone().requires_grad_() for a in args]
        outputs = function(nonlinearity, *leaves)
        found.append([o.detach() for o in outputs])
        # Sums of what relu has let grow overflow, or not, by the order in which they are added up.
        if step or nonlinearity == "tanh" or "huge" not in value:
            found[-1] += torch.autograd.grad(outputs, leaves, grads)
    torch.testing.assert_close(kinds(found[1]), kinds(found[0]), rtol=0, atol=0)


@each_backend
@pytest.mark.parametrize("rows", [1, 4, 40, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_infinite_sums(rows, dtype, backend):
    """The gradients of the biases of all-positive numbers: infinite, where a compensated sum would be NaN."""
    theirs, ours = pair(2, 3, cell=True, nonlinearity="relu", dtype=dtype, backend=backend)
    scale = torch.finfo(dtype).max / 2
    for sign in (1, -1):
        for module in (theirs, ours):
            module.zero_grad()
            with torch.no_grad():
                for p in module.parameters():
                    p.abs_().add_(0.1)
            out = module(torch.ones(rows, 2, dtype=dtype), torch.ones(rows, 3, dtype=dtype))
            out.backward(torch.full_like(out, sign * scale))
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(kinds([q.grad]), kinds([p.grad]), rtol=0, atol=0)
        assert rows < 4 or ours.bias_ih.grad.isinf().all()


# ---- layouts -----------------------------------------------------------------------------------------

LAYOUTS = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
    "mkldnn": torch.Tensor.to_mkldnn,
    "nested": lambda t: torch.nested.nested_tensor([*t]),
    "jagged": lambda t: torch.nested.nested_tensor([*t], layout=torch.jagged),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
}


def numbers(tensor):
    if tensor.is_nested:
        return [t.detach() for t in tensor.unbind()]
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def result_or_error(module, x, hx):
    """Results with their gradients, or the type of what is raised."""
    module.zero_grad()
    given = [t for t in (x, hx) if t is not None and t.requires_grad]
    try:
        result = flat(module(x, hx))
        if result[0].requires_grad:
            sum(r.sum() for r in result).backward()
        return [*result, *(t.grad for t in (*given, *module.parameters()))]
    except Exception as error:
        return type(error)
    finally:
        for t in given:
            t.grad = None


@pytest.mark.filterwarnings(
    "ignore:.*torch.quantize_per_tensor", "ignore:Sparse", "ignore:The PyTorch API of"
)
@pytest.mark.parametrize("mode", ["train", "frozen", "no_grad", "inference"])
@pytest.mark.parametrize("which", ["input", "hx", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", [True, False], ids=["cell", "rnn"])
def test_layouts(cell, layout, which, mode):
    """What isn't strided is torch's to take or to reject, the layouts of results and gradients included."""
    theirs, ours = pair(3, 5, cell=cell, dtype=torch.float32)
    if mode == "frozen":
        theirs.requires_grad_(False)
        ours.requires_grad_(False)
    x, hx = (torch.randn(4, 3), torch.randn(4, 5)) if cell else (torch.randn(2, 4, 3), torch.randn(1, 4, 5))
    try:
        x = x if which == "hx" else LAYOUTS[layout](x)
        hx = hx if which == "input" else LAYOUTS[layout](hx)
        if mode == "frozen":
            x.requires_grad_()
    except Exception:
        return  # torch has no such tensor
    contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
    with contexts.get(mode, torch.enable_grad)():
        expected, actual = result_or_error(theirs, x, hx), result_or_error(ours, x, hx)
    if isinstance(expected, type):
        assert actual is expected
        return
    for e, a in zip(expected, actual, strict=True):
        assert (e is None) == (a is None)
        if e is not None:
            assert a.layout == e.layout and a.is_nested == e.is_nested
            torch.testing.assert_close(numbers(a), numbers(e))


@pytest.mark.parametrize("index", [2, 3, 4, 5], ids=["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings(
    "ignore:.*torch.quantize_per_tensor", "ignore:Sparse", "ignore:The PyTorch API of"
)
def test_layouts_of_weights(layout, index):
    x, *rest = make((4, 3, 5, 7), torch.float32).args
    for args in ([x, *rest], [x[0].clone(), *rest]):
        try:
            args[index] = LAYOUTS[layout](args[index])
        except (RuntimeError, IndexError):  # torch has no such tensor
            continue
        outcomes = []
        for function in (in_torch, lambda *a: in_rnnfast(*a, backend="auto")):
            try:
                outcomes.append(function("tanh", *args))
            except Exception as error:
                outcomes.append(type(error))
        if isinstance(outcomes[0], type):
            assert outcomes[1] is outcomes[0]
        else:
            torch.testing.assert_close(outcomes[1], outcomes[0])


@each_backend
@pytest.mark.filterwarnings("ignore:Sparse")
def test_layouts_of_gradients(backend):
    """Zeros without memory arrive where derivatives are nested; sparse ones torch itself mostly rejects."""
    for module, x in (
        (rnnfast.RNN(3, 5, backend=backend), torch.randn(4, 2, 3)),
        (rnnfast.RNNCell(3, 5, backend=backend), torch.randn(2, 3)),
    ):
        out = module(x) if x.dim() == 2 else module(x)[0]
        parameters, ones = list(module.parameters()), torch.ones_like(out)
        for grad, dense in ((torch._efficientzerotensor(out.shape), 0 * ones), (ones.to_sparse(), ones)):
            if grad.is_sparse and rnnfast.explain(module, x).backend == "aten":
                continue
            actual, expected = (
                torch.autograd.grad(out, parameters, g, retain_graph=True) for g in (grad, dense)
            )
            torch.testing.assert_close(actual, expected)


# ---- no tensors --------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize(
    "value", [None, [1.0], 3, "3", np.zeros((3, 5)), {}, object()], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("index", range(6), ids=["x", "h", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_no_tensors(index, value, backend):
    """TypeError, as torch's operator raises it."""
    if value is None and index > 3:
        return
    x, *rest = make((4, 3, 5, 7), torch.float32).args
    for function, args in ((rnn_sequence, [x, *rest]), (rnn_step, [x[0].clone(), *rest])):
        args[index] = value
        with pytest.raises(TypeError):
            function(*args, backend=backend)
        if function is rnn_sequence:
            with pytest.raises(TypeError):
                function(*args, reverse=True, backend=backend)


@each_backend
def test_other_arguments(backend):
    x, *rest = make((4, 3, 5, 7), torch.float32).args
    for reverse in (1, None, "True"):
        with pytest.raises(TypeError, match="reverse"):
            rnn_sequence(x, *rest, reverse=reverse, backend=backend)
    for nonlinearity in (None, 3, "TANH"):
        for function, args in ((rnn_sequence, (x, *rest)), (rnn_step, (x[0], *rest))):
            with pytest.raises(ValueError, match="Unknown nonlinearity"):
                function(*args, nonlinearity, backend=backend)
    for name in (None, 3, ["cpu"]):
        with pytest.raises(TypeError, match="backend"):
            rnn_step(x[0], *rest, backend=name)
