"""The equations that the package rests on."""

import pytest
import torch

import rnnfast
from rnnfast import reference
from rnnfast.functional import rnn_step
from rnnfast.testing import BACKENDS

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def test_concatenated_product_equals_sum_of_products(backend):
    """[X, H] [W_xh; W_hh] = X W_xh + H W_hh, the product that the fused step is made of."""
    torch.manual_seed(0)
    x, w_xh = torch.randn(3, 1), torch.randn(1, 4)
    h, w_hh = torch.randn(3, 4), torch.randn(4, 4)
    summed = x @ w_xh + h @ w_hh
    concatenated = torch.cat((x, h), 1) @ torch.cat((w_xh, w_hh), 0)
    torch.testing.assert_close(concatenated, summed)
    fused = rnn_step(x, h, w_xh.T, w_hh.T, nonlinearity="relu", backend=backend)
    torch.testing.assert_close(fused, summed.relu())


def test_without_the_hidden_state_it_is_a_dense_layer(backend):
    """H = phi(X W_xh + b): a state of zeros, or weights of zeros on it, leave an ordinary layer."""
    torch.manual_seed(0)
    cell = rnnfast.RNNCell(5, 7, backend=backend).double()
    layer = torch.nn.Linear(5, 7).double()
    with torch.no_grad():
        layer.weight.copy_(cell.weight_ih)
        layer.bias.copy_(cell.bias_ih + cell.bias_hh)
        x, h = torch.randn(3, 5).double(), torch.randn(3, 7).double()
        torch.testing.assert_close(cell(x), layer(x).tanh())
        cell.weight_hh.zero_()
        torch.testing.assert_close(cell(x, h), layer(x).tanh())


def test_step_is_the_recurrence(backend):
    """H_t = phi(X_t W_xh + H_{t-1} W_hh + b_h): a sequence is its steps, one after the other."""
    torch.manual_seed(0)
    rnn = rnnfast.RNN(5, 7, backend=backend).double()
    cell = rnnfast.RNNCell(5, 7, backend=backend).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in rnn.state_dict().items()})
    x = torch.randn(6, 3, 5).double()
    h = torch.randn(3, 7).double()
    output, h_n = rnn(x, h.unsqueeze(0))
    for t in range(6):
        h = cell(x[t], h)
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(h_n[0], h)


def test_output_layer(backend):
    """O_t = H_t W_hq + b_q: the layer of the outputs reads every state, at once or step by step."""
    torch.manual_seed(0)
    rnn, head = rnnfast.RNN(5, 7, backend=backend).double(), torch.nn.Linear(7, 4).double()
    x = torch.randn(6, 3, 5).double()
    at_once = head(rnn(x)[0])
    assert at_once.shape == (6, 3, 4)
    states, _ = reference.rnn_sequence(x, torch.zeros(3, 7).double(), *rnn.parameters())
    for t in range(6):
        torch.testing.assert_close(at_once[t], states[t] @ head.weight.T + head.bias)


def test_parameters_do_not_grow_with_time(backend):
    """The same W_xh, W_hh and b_h serve every step: a longer input continues what a shorter one gives."""
    torch.manual_seed(0)
    rnn = rnnfast.RNN(5, 7, backend=backend).double()
    assert sum(p.numel() for p in rnn.parameters()) == 7 * 5 + 7 * 7 + 2 * 7
    x = torch.randn(1000, 2, 5).double()
    longest, _ = reference.rnn_sequence(x, torch.zeros(2, 7).double(), *rnn.parameters())
    for steps in (1, 10, 1000):
        torch.testing.assert_close(rnn(x[:steps])[0], longest[:steps])
