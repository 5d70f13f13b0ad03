"""Layers on layers, both directions, dropout between them, training and evaluation."""

import itertools

import pytest
import torch

import rnnfast
from rnnfast.testing import BACKENDS
from tests.pairs import assert_same, pair

pytestmark = pytest.mark.parametrize("backend", ["auto", *BACKENDS])


def normal(*size):
    return torch.randn(size, dtype=torch.float64)


@pytest.mark.parametrize("layers, bidirectional", [*itertools.product([1, 2, 5], [False, True])])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_stack(layers, bidirectional, batch_first, nonlinearity, backend):
    torch.manual_seed(0)
    theirs, ours = pair(
        3,
        5,
        num_layers=layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        nonlinearity=nonlinearity,
        backend=backend,
    )
    depth = layers * (2 if bidirectional else 1)
    assert_same(theirs, ours, normal(4, 4, 3).requires_grad_(), normal(depth, 4, 5).requires_grad_())
    assert_same(theirs, ours, normal(4, 3).requires_grad_(), normal(depth, 5).requires_grad_())


def outputs(module, x, seed=3):
    torch.manual_seed(seed)
    return module(x)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_torch_s_masks(bidirectional, batch_first, backend):
    theirs, ours = pair(
        3, 8, num_layers=3, dropout=0.5, bidirectional=bidirectional, batch_first=batch_first, backend=backend
    )
    x = normal(4, 6, 3)
    torch.testing.assert_close(outputs(ours, x), outputs(theirs, x))
    assert not torch.equal(outputs(ours, x, 3)[0], outputs(ours, x, 4)[0])


def test_dropout_is_for_training_and_not_after_the_last_layer(backend):
    theirs, ours = pair(3, 8, num_layers=2, dropout=0.9, backend=backend)
    x = normal(4, 2, 3)
    assert (outputs(ours, x)[0] != 0).all()
    ours.eval(), theirs.eval()
    torch.testing.assert_close(outputs(ours, x, 3), outputs(ours, x, 4), rtol=0, atol=0)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.train(), theirs.train()
    torch.testing.assert_close(outputs(ours, x), outputs(theirs, x))


def test_dropout_may_be_changed_later(backend):
    theirs, ours = pair(3, 8, num_layers=2, backend=backend)
    x = normal(4, 2, 3)
    for probability in (0.5, 1.0, 0.0):
        theirs.dropout = ours.dropout = probability
        torch.testing.assert_close(outputs(ours, x), outputs(theirs, x))


def test_dropout_drops_at_the_rate_asked_for(backend):
    """With the second layer an identity on the positive side, its zeros are the dropped elements."""
    ours = rnnfast.RNN(1, 64, num_layers=2, nonlinearity="relu", dropout=0.3, bias=False, backend=backend)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.zero_()
            if name == "weight_ih_l0":
                parameter.fill_(1)
            if name == "weight_ih_l1":
                parameter.copy_(torch.eye(64))
        torch.manual_seed(0)
        output, _ = ours(torch.ones(50, 20, 1))
    kept = output[output != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))
    rate, trials = 1 - len(kept) / output.numel(), output.numel()
    assert abs(rate - 0.3) < 5 * (0.3 * 0.7 / trials) ** 0.5


def test_training_flag_and_gradients_with_dropout(backend):
    theirs, ours = pair(3, 8, num_layers=3, dropout=0.5, bidirectional=True, backend=backend)
    x = normal(4, 2, 3)
    grads = []
    for module in (theirs, ours):
        output, h_n = outputs(module, x)
        grads.append(torch.autograd.grad(output.sin().sum() + h_n.sum(), list(module.parameters())))
    torch.testing.assert_close(grads[1], grads[0])


def test_backend_may_be_changed_later(backend):
    _, ours = pair(3, 5, num_layers=2, backend=backend)
    x = normal(4, 2, 3)
    expected = ours(x)
    for other in BACKENDS:
        ours.backend = other
        assert rnnfast.explain(ours, x).backend == other
        torch.testing.assert_close(ours(x), expected)
