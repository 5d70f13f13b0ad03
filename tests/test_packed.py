"""Sequences of different lengths: PackedSequence, sorted or not."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
)

from rnnfast.testing import BACKENDS
from tests.pairs import assert_same, pair

pytestmark = pytest.mark.parametrize("backend", ["auto", *BACKENDS])

LENGTHS = [[1], [1, 1], [5, 5, 5], [6, 4, 4, 1], [9, 8, 7, 6, 5, 4, 3, 2, 1]]
STACKS = [
    {},
    {"nonlinearity": "relu", "bias": False},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def sequences(lengths, inputs=3, requires_grad=False):
    return [torch.randn(n, inputs, dtype=torch.float64, requires_grad=requires_grad) for n in lengths]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("stack", STACKS, ids=str)
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_sorted(lengths, stack, with_hx, enforce_sorted, backend):
    theirs, ours = pair(3, 5, backend=backend, **stack)
    packed = pack_sequence(sequences(lengths), enforce_sorted=enforce_sorted)
    packed.data.requires_grad_()
    layers = len(ours.all_weights)
    hx = torch.randn(layers, len(lengths), 5, dtype=torch.float64, requires_grad=True) if with_hx else None
    assert_same(theirs, ours, packed, hx)


@pytest.mark.parametrize("stack", STACKS, ids=str)
@pytest.mark.parametrize("with_hx", [False, True])
def test_unsorted(stack, with_hx, backend):
    theirs, ours = pair(3, 5, backend=backend, **stack)
    lengths = [3, 7, 1, 7, 2]
    packed = pack_sequence(sequences(lengths), enforce_sorted=False)
    packed.data.requires_grad_()
    layers = len(ours.all_weights)
    hx = torch.randn(layers, len(lengths), 5, dtype=torch.float64, requires_grad=True) if with_hx else None
    assert_same(theirs, ours, packed, hx)


@pytest.mark.parametrize("batch_first", [False, True])
def test_each_sequence_as_if_it_were_alone(batch_first, backend):
    """From a padded batch and back: what a user sees, sequence by sequence, in the user's order."""
    _, ours = pair(3, 5, num_layers=2, bidirectional=True, batch_first=batch_first, backend=backend)
    lengths = [3, 7, 1, 7, 2]
    singles = sequences(lengths)
    padded = pad_sequence(singles, batch_first=batch_first, padding_value=torch.nan)
    packed = pack_padded_sequence(padded, torch.tensor(lengths), batch_first, enforce_sorted=False)
    output, h_n = ours(packed)
    assert isinstance(output, PackedSequence)
    output, output_lengths = pad_packed_sequence(output, batch_first=batch_first)
    assert output_lengths.tolist() == lengths
    for b, (single, n) in enumerate(zip(singles, lengths, strict=True)):
        alone, last = ours(single)
        rows = output[b] if batch_first else output[:, b]
        torch.testing.assert_close(rows[:n], alone)
        assert (rows[n:] == 0).all()
        torch.testing.assert_close(h_n[:, b], last)


def test_equal_lengths_are_a_dense_batch(backend):
    _, ours = pair(3, 5, num_layers=2, bidirectional=True, backend=backend)
    batch = torch.stack(sequences([4] * 6), dim=1)
    packed = pack_padded_sequence(batch, torch.tensor([4] * 6))
    output, h_n = ours(packed)
    dense_output, dense_h_n = ours(batch)
    torch.testing.assert_close(output.data, dense_output.flatten(0, 1))
    torch.testing.assert_close(h_n, dense_h_n)


def test_gradients_reach_the_sequences(backend):
    theirs, ours = pair(3, 5, bidirectional=True, backend=backend)
    grads = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        singles = sequences([3, 7, 1], requires_grad=True)
        output, h_n = module(pack_sequence(singles, enforce_sorted=False))
        grads.append(torch.autograd.grad(output.data.sin().sum() + h_n.sum(), singles))
    torch.testing.assert_close(grads[1], grads[0])


def test_second_order_gradients(backend):
    _, ours = pair(2, 3, bidirectional=True, backend=backend)
    packed = pack_sequence(sequences([3, 1, 2], 2), enforce_sorted=False)

    def call(data, hx):
        output, h_n = ours(PackedSequence(data, *packed[1:]), hx)
        return output.data, h_n

    hx = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(call, (packed.data.requires_grad_(), hx))


@pytest.mark.sample(3)
@pytest.mark.slow
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_compile(with_hx, enforce_sorted, backend):
    """In one graph, which serves other lengths and other numbers of sequences too."""
    torch._dynamo.reset()
    _, ours = pair(3, 5, num_layers=2, bidirectional=True, backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    for lengths in ([5, 3, 1], [7, 7, 2, 1], [9, 8, 4, 4, 1], [3, 2]):
        packed = pack_sequence(sequences(lengths), enforce_sorted=enforce_sorted)
        hx = torch.randn(4, len(lengths), 5, dtype=torch.float64) if with_hx else None
        results = []
        for module in (ours, compiled):
            output, h_n = module(packed, hx)
            grads = torch.autograd.grad(output.data.sin().sum() + h_n.sum(), list(ours.parameters()))
            results.append([output.data, h_n, *grads])
        torch.testing.assert_close(results[1], results[0])
    assert counter.frame_count <= 2


def test_training_mode_dropout(backend):
    """Between packed layers the same rows are dropped as torch drops."""
    theirs, ours = pair(3, 5, num_layers=3, dropout=0.5, backend=backend)
    packed = pack_sequence(sequences([3, 7, 1]), enforce_sorted=False)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(5)
        output, h_n = module(packed)
        results.append((output.data, h_n))
    torch.testing.assert_close(results[1], results[0])
