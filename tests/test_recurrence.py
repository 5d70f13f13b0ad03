"""The base of the GPU backends, its recurrence in torch on the CPU: what it hands on, without a GPU.

test_cuda_kernels.py and interpreted/ go the same way to kernels.
"""

import pytest
import torch

import rnnfast
from rnnfast import dispatch, testing
from rnnfast.backends.eager import EagerBackend
from rnnfast.backends.recurrence import RecurrenceBackend
from rnnfast.functional import rnn_sequence, rnn_step
from tests.pairs import assert_same, pair

NAME = "recurrence-on-cpu"


class OnCpu(RecurrenceBackend):
    """Counts its calls, and insists on dense tensors, as kernels do."""

    name = NAME

    def __init__(self):
        self.calls = []

    def unavailable(self):
        return None

    def refuses(self, problem):
        return None if problem.cell == "elman" and not problem.resets else "it knows no other cells"

    def called(self, name, *tensors):
        assert all(t is None or (t.is_contiguous() and not t.is_neg()) for t in tensors)
        assert all(t is None or type(t) in (torch.Tensor, torch.nn.Parameter) for t in tensors)
        self.calls.append(name)

    def step_forward(self, layer):
        self.called("step", *layer[:6])
        with torch.no_grad():
            return EagerBackend().step_forward(layer)

    def step_backward(self, layer, out, grad, needs):
        read = ((layer.x, needs.weight_ih), (layer.h0, needs.weight_hh))
        read += ((layer.weight_ih, needs.x), (layer.weight_hh, needs.h0))
        self.called("step backward", grad, out, *(tensor for tensor, is_read in read if is_read))
        return EagerBackend().step_backward(layer, out, grad, needs)

    def recurrence_forward(self, pre, h0, weight_hh, recurrence):
        self.called("layer", pre, h0, weight_hh)
        act, sequences = getattr(torch, recurrence.nonlinearity), recurrence.sequences
        state, out = h0.clone(), torch.empty_like(pre)
        with torch.no_grad():
            for rows, n in self.steps(sequences):
                out[rows] = state[:n] = act(pre[rows] + state[:n] @ weight_hh.t())
        return out, state, None

    def recurrence_backward(self, grad_out, grad_hn, out, weight_hh, recurrence, *unused):
        self.called("layer backward", grad_out, grad_hn, out, weight_hh)
        assert unused in ((), (None, False))
        dpre, sequences, tanh = torch.empty_like(out), recurrence.sequences, recurrence.nonlinearity == "tanh"
        with torch.no_grad():
            dh = out.new_zeros(sequences.batch, out.shape[1]) if grad_hn is None else grad_hn.clone()
            for rows, n in reversed(self.steps(sequences)):
                d = dh[:n] if grad_out is None else dh[:n] + grad_out[rows]
                dpre[rows] = d * (1 - out[rows] ** 2 if tanh else out[rows] > 0)
                dh[:n] = dpre[rows] @ weight_hh
        return dpre, dh, None

    def steps(self, sequences):
        """Of each step, in the order in which they are taken, its rows and their number."""
        sizes = [sequences.batch] * sequences.steps if sequences.sizes is None else sequences.sizes.tolist()
        starts = [sum(sizes[:t]) for t in range(sequences.steps)]
        assert sequences.offsets is None or sequences.offsets.tolist() == [*starts, sum(sizes)]
        found = [(slice(start, start + n), n) for start, n in zip(starts, sizes, strict=True)]
        return found[::-1] if sequences.reverse else found


@pytest.fixture
def calls():
    """What the backend has been called for."""
    backend = OnCpu()
    with dispatch.replaced(backend):
        yield backend.calls


@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_stacks(packed, layers, bidirectional, bias, nonlinearity, calls):
    """As torch.nn.RNN, with one call of the recurrence for each layer and direction."""
    options = {"bidirectional": bidirectional, "bias": bias, "nonlinearity": nonlinearity}
    theirs, ours = pair(5, 7, backend=NAME, num_layers=layers, **options)
    count = layers * (2 if bidirectional else 1)
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    if packed:
        x = torch.nn.utils.rnn.PackedSequence(x, torch.tensor([4, 3, 1, 1]))
    else:
        x = x.detach().view(3, 3, 5).requires_grad_()
    for hx in (None, torch.randn(count, 4 if packed else 3, 7, dtype=torch.float64, requires_grad=True)):
        calls.clear()
        assert_same(theirs, ours, x, hx)
        assert calls == count * ["layer"] + count * ["layer backward"]


@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("bias", [True, False])
def test_cells(bias, nonlinearity, calls):
    theirs, ours = pair(5, 7, backend=NAME, cell=True, bias=bias, nonlinearity=nonlinearity)
    x, hx = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    assert_same(theirs, ours, x, hx)
    assert calls == ["step", "step backward"]


class Tagged(torch.Tensor):
    pass


# What autograd may send, or a caller, that isn't a dense tensor of torch's own type.
LAYOUTS = {
    "expanded": lambda t: t[..., :1].expand_as(t),
    "strided": lambda t: torch.stack([t, -t], -1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT,
    "lazily negated": lambda t: torch._neg_view(-t),
    "subclass": lambda t: t.as_subclass(Tagged),
}


def arguments(step):
    case = testing.make((3, 2, 5, 7), torch.float64)
    x, *rest = case.args
    return [x[0].clone() if step else x, *rest], case.grad_out[0] if step else case.grad_out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_layouts_of_arguments_and_gradients(step, layout, calls):
    """Only dense tensors arrive; the numbers are those of the eager backend."""
    args, grad = arguments(step)
    change, function = LAYOUTS[layout], rnn_step if step else rnn_sequence
    for changed in range(7):
        given = [change(t) if i == changed and t.dim() > 1 else t for i, t in enumerate((*args, grad))]
        found = []
        for backend in (NAME, "eager"):
            leaves = [t.detach().requires_grad_() for t in given[:-1]]
            out = function(*leaves, backend=backend)
            out = out if step else out[0]
            grads = torch.autograd.grad(out, leaves, given[-1])
            found.append([t.detach().as_subclass(torch.Tensor) for t in (out, *grads)])
        torch.testing.assert_close(*found)
    assert calls == 7 * (["step", "step backward"] if step else ["layer", "layer backward"])


@pytest.mark.parametrize("wanted", range(6), ids=testing.NAMES)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_one_gradient_alone(step, wanted, calls):
    args, grad = arguments(step)
    args[wanted].requires_grad_()
    found = []
    for backend in (NAME, "eager"):
        out = (rnn_step if step else rnn_sequence)(*args, backend=backend)
        found.append(torch.autograd.grad(out if step else out[0], args[wanted], grad))
    torch.testing.assert_close(*found)
    assert len(calls) == 2


@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_higher_derivatives(step, calls):
    leaves = [t.requires_grad_() for t in arguments(step)[0]]

    def call(*args):
        return (rnn_step if step else rnn_sequence)(*args, backend=NAME)

    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_batched_grad=True)
    assert calls


def test_results_are_not_views(calls):
    """autograd would let nobody change them in place, and a caller may."""
    rnn = rnnfast.RNN(5, 7, backend=NAME)
    x = torch.randn(3, 2, 5)
    output, h_n = rnn(x)
    assert not output._is_view() and not h_n._is_view()
    h_n.mul_(2)
    output.sum().backward()  # h_n is not what backward reads
    output, h_n = rnn(x)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("index", range(6), ids=testing.NAMES)
def test_tensors_of_two_dtypes_or_shapes_are_not_handed_on(index, calls):
    args, _ = arguments(False)
    for change in (lambda t: t.float(), lambda t: t[..., :-1].contiguous(), lambda t: t.to("meta")):
        changed = [*args]
        changed[index] = change(args[index])
        with pytest.raises(RuntimeError):
            rnn_sequence(*changed, backend=NAME)
    assert calls == []
