"""Every kind of input that torch's modules take."""

import itertools

import pytest
import torch

from rnnfast.testing import BACKENDS
from tests.pairs import assert_same, pair

pytestmark = pytest.mark.parametrize("backend", ["auto", *BACKENDS])


def normal(*size):
    return torch.randn(size, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_batched_and_unbatched(batch_first, with_hx, nonlinearity, bias, backend):
    theirs, ours = pair(3, 5, batch_first=batch_first, nonlinearity=nonlinearity, bias=bias, backend=backend)
    batch = 7 if not batch_first else 4
    assert_same(theirs, ours, normal(4, 7, 3), normal(1, batch, 5) if with_hx else None)
    assert_same(theirs, ours, normal(4, 3), normal(1, 5) if with_hx else None)


@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_cell(with_hx, nonlinearity, bias, backend):
    theirs, ours = pair(3, 5, cell=True, nonlinearity=nonlinearity, bias=bias, backend=backend)
    assert_same(theirs, ours, normal(4, 3), normal(4, 5) if with_hx else None)
    assert_same(theirs, ours, normal(3), normal(5) if with_hx else None)


@pytest.mark.parametrize(
    "steps, batch, inputs, hidden", [*itertools.product([1, 2], [0, 1, 2], [1, 3], [1, 4])]
)
def test_smallest_sizes(steps, batch, inputs, hidden, backend):
    theirs, ours = pair(inputs, hidden, backend=backend)
    assert_same(theirs, ours, normal(steps, batch, inputs).requires_grad_(), normal(1, batch, hidden))
    theirs, ours = pair(inputs, hidden, num_layers=2, bidirectional=True, backend=backend)
    assert_same(theirs, ours, normal(steps, batch, inputs), normal(4, batch, hidden).requires_grad_())
    theirs, ours = pair(inputs, hidden, cell=True, backend=backend)
    assert_same(theirs, ours, normal(batch, inputs).requires_grad_(), normal(batch, hidden).requires_grad_())


def test_cell_without_input_features(backend):
    """torch.nn.RNNCell takes input_size 0, which leaves h' = act(h W_hh^T + b); torch.nn.RNN does not."""
    theirs, ours = pair(0, 5, cell=True, backend=backend)
    assert_same(theirs, ours, normal(4, 0), normal(4, 5).requires_grad_())


def views(*size):
    """Tensors of the same shape, laid out in every way but the plain one."""
    yield "transposed", normal(*reversed(size)).permute(*reversed(range(len(size))))
    yield "sliced", normal(*size[:-1], 2 * size[-1])[..., ::2]
    yield "misaligned", normal(torch.Size(size).numel() + 1)[1:].view(size)
    yield "expanded", normal(*size[:-2], 1, size[-1]).expand(size)
    yield "one number", normal(*[1] * len(size)).expand(size)
    yield "reversed", normal(*size).flip(0)


@pytest.mark.parametrize("batch_first", [False, True])
def test_strided(batch_first, backend):
    theirs, ours = pair(3, 5, batch_first=batch_first, backend=backend)
    for (_, input), (_, hx) in zip(views(4, 4, 3), views(1, 4, 5), strict=True):
        assert_same(theirs, ours, input.requires_grad_(), hx.requires_grad_())
    theirs, ours = pair(3, 5, cell=True, backend=backend)
    for (_, input), (_, hx) in zip(views(4, 3), views(4, 5), strict=True):
        assert_same(theirs, ours, input.requires_grad_(), hx.requires_grad_())


@pytest.mark.parametrize("input_grad, hx_grad", [*itertools.product([False, True], repeat=2)])
def test_requires_grad_in_every_combination(input_grad, hx_grad, backend):
    for theirs, ours, sizes in (
        (*pair(3, 5, backend=backend), ((4, 2, 3), (1, 2, 5))),
        (*pair(3, 5, cell=True, backend=backend), ((2, 3), (2, 5))),
    ):
        input, hx = (normal(*size) for size in sizes)
        input.requires_grad_(input_grad)
        hx.requires_grad_(hx_grad)
        for frozen in itertools.product([False, True], repeat=4):
            for module in (theirs, ours):
                for parameter, is_frozen in zip(module.parameters(), frozen, strict=True):
                    parameter.requires_grad_(not is_frozen)
            assert_same(theirs, ours, input, hx)


def test_no_grad_and_inference_mode(backend):
    theirs, ours = pair(3, 5, num_layers=2, backend=backend)
    input = normal(4, 2, 3)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            output, h_n = ours(input)
        assert not output.requires_grad and not h_n.requires_grad
        torch.testing.assert_close((output, h_n), theirs(input))


def test_inputs_are_left_alone(backend):
    _, ours = pair(3, 5, backend=backend)
    input, hx = normal(4, 2, 3), normal(1, 2, 5)
    before = input.clone(), hx.clone()
    output, h_n = ours(input, hx)
    with torch.no_grad():
        output.zero_()
        h_n.zero_()
    torch.testing.assert_close((input, hx), before, rtol=0, atol=0)


def test_h_n_is_the_last_output_but_a_tensor_of_its_own(backend):
    _, ours = pair(3, 5, backend=backend)
    with torch.no_grad():
        output, h_n = ours(normal(4, 2, 3))
        torch.testing.assert_close(h_n[0], output[-1])
        h_n.zero_()
        assert output[-1].abs().min() > 0


def test_long_sequence_carries_its_state(backend):
    """Cutting a sequence in two and handing on h_n changes nothing, gradients included."""
    _, ours = pair(3, 5, num_layers=2, backend=backend)
    input = normal(20, 2, 3).requires_grad_()
    whole, last = ours(input)
    first, h_n = ours(input[:13])
    second, h_n = ours(input[13:], h_n)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(h_n, last)
    expected = torch.autograd.grad(whole.square().sum() + last.sum(), [input, *ours.parameters()])
    actual = torch.autograd.grad(
        first.square().sum() + second.square().sum() + h_n.sum(), [input, *ours.parameters()]
    )
    torch.testing.assert_close(actual, expected)
