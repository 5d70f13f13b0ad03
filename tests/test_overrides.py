"""`__torch_function__` of arguments and modes: what it sees of a call, and that it can't harm one."""

from typing import ClassVar

import pytest
import torch
from torch.overrides import TorchFunctionMode

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS, make
from tests.pairs import flat, pair

each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])


class Record(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", [True, False], ids=["cell", "rnn"])
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu"}, {"bias": False}], ids=str)
def test_a_mode_sees_what_it_sees_of_torch(cell, options):
    seen, results = [], []
    for module in pair(3, 5, cell=cell, **options):
        x = torch.randn(2, 3).double() if cell else torch.ones(4, 2, 3).double()
        with Record() as record:
            results.append(flat(module(torch.ones_like(x))))
        seen.append([name for name in record.seen if name != "ones_like"])
    assert seen[0] == seen[1] and any(name.startswith("rnn_") for name in seen[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mode_sees_the_function_where_a_backend_is_asked_for(backend):
    x, *rest = make((4, 3, 5, 7), torch.float32).args
    with Record() as record:
        out, _ = rnn_sequence(x, *rest, backend=backend)
        step = rnn_step(x[0], *rest, backend=backend)
    names = ("rnn_tanh", "rnn_tanh_cell") if backend == "aten" else ("rnn_sequence", "rnn_step")
    assert [name for name in record.seen if name in names] == list(names)
    torch.testing.assert_close(out[0], step)
    rnn = rnnfast.RNN(5, 7, 2, backend=backend)
    with Record() as record:
        rnn(x)
    assert record.seen.count("rnn_tanh" if backend == "aten" else "rnn_stack") == 1


class Duck:
    """Not a tensor, but takes the place of one."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, tensor):
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map(
            lambda a: a.tensor if isinstance(a, cls) else a, (args, kwargs or {})
        )
        return function.__name__, function(*plain[0], **plain[1])

    def dim(self):
        return self.tensor.dim()

    def size(self, *args):
        return self.tensor.size(*args)


@each_backend
def test_ducks(backend):
    x, h0, *weights = make((4, 3, 5, 7), torch.float32).args
    name, out = rnn_step(Duck(x[0]), h0, *weights, backend=backend)
    assert name == "rnn_tanh_cell"
    torch.testing.assert_close(out, rnn_step(x[0], h0, *weights))
    for i in range(6):
        args = [x[0], h0, *weights]
        args[i] = Duck(args[i])
        assert rnn_step(*args, backend=backend)[0] == "rnn_tanh_cell"
    rnn, cell = rnnfast.RNN(5, 7, backend=backend), rnnfast.RNNCell(5, 7, backend=backend)
    name, results = rnn(Duck(x), h0[None])
    assert name == "rnn_tanh"
    torch.testing.assert_close(results, rnn(x, h0[None]))
    assert cell(Duck(x[0]), h0)[0] == "rnn_tanh_cell"


class Counting(torch.Tensor):
    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs)


def test_a_subclass_sees_what_it_sees_of_torch():
    seen = []
    for module in pair(3, 5, dtype=torch.float32):
        Counting.seen.clear()
        output, _ = module(torch.ones(4, 2, 3).as_subclass(Counting))
        assert isinstance(output, Counting)
        seen.append([name for name in Counting.seen if name != "as_subclass"])
    assert "rnn_tanh" in seen[0] and seen[0] == seen[1]


class Changing(TorchFunctionMode):
    """What torch makes new is of another kind than asked for."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        names = ("new_empty", "empty_like", "empty", "contiguous", "new_zeros", "resolve_neg")
        return self.change(result) if getattr(function, "__name__", "") in names else result


@each_backend
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.half(),
        lambda t: t.double(),
        lambda t: t[:0],
        lambda t: t.to("meta"),
        lambda t: torch.cat([t, t]),
    ],
    ids=["half", "double", "empty", "meta", "twice"],
)
def test_a_mode_can_t_change_where_a_kernel_writes(change, backend):
    """Neither in the forward pass nor in the backward."""
    _, rnn = pair(3, 5, dtype=torch.float32, backend=backend)
    _, cell = pair(3, 5, cell=True, dtype=torch.float32, backend=backend)
    for module, x in ((rnn, torch.randn(4, 2, 3)), (cell, torch.randn(2, 3))):
        x.requires_grad_()
        hx = torch.zeros(2, 5) if x.dim() == 2 else torch.zeros(1, 2, 5)
        leaves = [x, *module.parameters()]
        expected = flat(module(x, hx))
        grads = torch.autograd.grad(expected[0].sum(), leaves)
        with Changing(change):
            actual = flat(module(x, hx))
            torch.testing.assert_close(torch.autograd.grad(actual[0].sum(), leaves), grads)
        torch.testing.assert_close(actual, expected)


@each_backend
def test_a_default_device_changes_nothing(backend):
    """`torch.set_default_device` is a function mode, too, but no reason to leave the kernels."""
    _, rnn = pair(3, 5, dtype=torch.float32, backend=backend)
    x, sizes = torch.randn(6, 3), torch.tensor([3, 2, 1])
    packed = torch.nn.utils.rnn.PackedSequence(x, sizes)
    expected = rnn(packed)[0].data, rnn(x)[0]
    weights = list(rnn.parameters())
    reverse = rnn_sequence(x, torch.zeros(3, 5), *weights, reverse=True, batch_sizes=sizes, backend=backend)
    grads = torch.autograd.grad(reverse[0].sum(), weights)
    with torch.device("meta"):
        torch.testing.assert_close((rnn(packed)[0].data, rnn(x)[0]), expected)
        h0 = torch.zeros(3, 5, device="cpu")
        again = rnn_sequence(x, h0, *weights, reverse=True, batch_sizes=sizes, backend=backend)
        torch.testing.assert_close(again, reverse)
        torch.testing.assert_close(torch.autograd.grad(again[0].sum(), weights), grads)
