"""Derivatives of every order and every mode, and the services that autograd offers around them."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS, make

pytestmark = pytest.mark.parametrize("backend", ["auto", *BACKENDS])

each_nonlinearity = pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def normal(*size, requires_grad=False):
    return torch.randn(size, dtype=torch.float64, requires_grad=requires_grad)


def sequence(case, nonlinearity, backend, reverse=False):
    return lambda *args: rnn_sequence(
        *args, nonlinearity, reverse=reverse, batch_sizes=case.batch_sizes, backend=backend
    )


@each_nonlinearity
@pytest.mark.parametrize("lengths", [None, [3, 2, 2]], ids=["dense", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_every_mode_of_gradcheck(nonlinearity, lengths, reverse, backend):
    case = make((3, 2, 3, 4), torch.float64, nonlinearity, lengths=lengths)
    assert torch.autograd.gradcheck(
        sequence(case, nonlinearity, backend, reverse),
        case.leaves(),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
        fast_mode=True,
    )


@each_nonlinearity
@pytest.mark.parametrize("lengths", [None, [3, 2, 2]], ids=["dense", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_every_mode_of_gradgradcheck(nonlinearity, lengths, reverse, backend):
    case = make((3, 2, 3, 4), torch.float64, nonlinearity, lengths=lengths)
    assert torch.autograd.gradgradcheck(
        sequence(case, nonlinearity, backend, reverse),
        case.leaves(),
        check_batched_grad=backend != "aten" or lengths is None,  # torch's packed operator can't
        check_fwd_over_rev=True,
        fast_mode=True,
    )


@each_nonlinearity
def test_step(nonlinearity, backend):
    case = make((1, 2, 3, 4), torch.float64, nonlinearity)
    case.inputs["x"] = case.inputs["x"][0]

    def step(*args):
        return rnn_step(*args, nonlinearity, backend=backend)

    leaves = case.leaves()
    assert torch.autograd.gradcheck(step, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(step, leaves, check_batched_grad=True, check_fwd_over_rev=True)


def test_third_derivative(backend):
    cell = rnnfast.RNNCell(2, 3, backend=backend).double()

    def penalty(x):
        (grad,) = torch.autograd.grad(cell(x).sin().sum(), x, create_graph=True)
        return grad

    assert torch.autograd.gradgradcheck(penalty, normal(2, 2, requires_grad=True))


def test_gradient_penalty_reaches_the_weights(backend):
    """The gradient of a gradient's norm, as Wasserstein GANs use it, against torch's own module."""
    theirs = torch.nn.RNN(3, 5, num_layers=2, bidirectional=True).double()
    ours = rnnfast.RNN(3, 5, num_layers=2, bidirectional=True, backend=backend).double()
    ours.load_state_dict(theirs.state_dict())
    x = normal(4, 2, 3, requires_grad=True)
    results = []
    for module in (theirs, ours):
        output, h_n = module(x)
        (grad,) = torch.autograd.grad(output.sum() + h_n.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.norm(), list(module.parameters()), allow_unused=True))
    torch.testing.assert_close(results[1], results[0])


def test_retain_graph(backend):
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    loss = rnn(normal(4, 2, 3))[0].sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in rnn.parameters()]
    loss.backward()
    torch.testing.assert_close([p.grad for p in rnn.parameters()], [2 * grad for grad in once])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_of_the_two_biases_share_no_memory(backend):
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    output, _ = rnn(normal(4, 2, 3))
    b_ih, b_hh = torch.autograd.grad(output.sum(), [rnn.bias_ih_l0, rnn.bias_hh_l0])
    torch.testing.assert_close(b_ih, b_hh)
    before = b_hh.clone()
    b_ih.zero_()
    torch.testing.assert_close(b_hh, before, rtol=0, atol=0)


@pytest.mark.parametrize("changed", ["input", "weight", "state"])
def test_modification_of_what_backward_needs_is_detected(changed, backend):
    cell = rnnfast.RNNCell(3, 5, backend=backend).double()
    x, h = normal(2, 3), normal(2, 5)
    loss = cell(x, h).sum()
    with torch.no_grad():
        {"input": x, "weight": cell.weight_hh, "state": h}[changed].add_(1)
    if changed == "weight":
        # A cell needs W_hh for the gradient of its state only.
        h.requires_grad_()
        loss = cell(x, h).sum()
        with torch.no_grad():
            cell.weight_hh.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_modification_of_the_weights_of_a_sequence_is_detected(backend):
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    loss = rnn(normal(4, 2, 3))[0].sum()
    with torch.no_grad():
        rnn.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_h_n_may_be_modified(backend):
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    x = normal(4, 2, 3, requires_grad=True)
    expected = torch.autograd.grad((2 * rnn(x)[1]).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(rnn(x)[1].mul_(2).sum(), x), expected)


def test_modification_of_the_output_is_detected(backend):
    """Backward needs the output, and nothing else; torch's CPU operator keeps a copy of its own instead."""
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    x = normal(4, 2, 3, requires_grad=True)
    output = rnn(x)[0].mul_(2)
    if rnnfast.explain(rnn, x).backend == "aten":
        expected = torch.autograd.grad((2 * rnn(x)[0]).sum(), x)
        torch.testing.assert_close(torch.autograd.grad(output.sum(), x), expected)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant, backend):
    rnn = rnnfast.RNN(3, 5, num_layers=2, dropout=0.5, backend=backend).double()
    x = normal(4, 2, 3, requires_grad=True)
    grads = []
    for run in (rnn, lambda x: checkpoint(rnn, x, use_reentrant=use_reentrant)):
        torch.manual_seed(1)
        output, h_n = run(x)
        x.grad = None
        (output.sum() + h_n.sum()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0])


def test_saved_tensor_hooks(backend):
    """Activations can be moved away and brought back, as save_on_cpu does."""
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    x = normal(4, 2, 3, requires_grad=True)
    expected = torch.autograd.grad(rnn(x)[0].sum(), x)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t.clone(), lambda t: t):
        output, _ = rnn(x)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), x), expected)
    assert packed


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
def test_anomaly_mode(backend):
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    with torch.autograd.detect_anomaly(check_nan=True):
        rnn(normal(4, 2, 3))[0].sum().backward()
        loss = rnn(torch.full((4, 2, 3), torch.nan).double())[0].sum()
        with pytest.raises(RuntimeError, match="returned nan values"):
            loss.backward()


def test_hooks(backend):
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    seen = []
    rnn.register_forward_pre_hook(lambda module, args: seen.append("forward pre") or (2 * args[0],))
    rnn.register_forward_hook(lambda module, args, out: seen.append("forward"))
    rnn.register_full_backward_pre_hook(lambda module, grads: seen.append("backward pre"))
    rnn.register_full_backward_hook(lambda module, grads_in, grads_out: seen.append("backward"))
    rnn.weight_hh_l0.register_hook(lambda grad: seen.append("gradient") or 3 * grad)
    x = normal(4, 2, 3, requires_grad=True)
    rnn(x)[0].sum().backward()
    assert set(seen) == {"forward pre", "forward", "backward pre", "backward", "gradient"}
    tripled = rnn.weight_hh_l0.grad.clone()
    plain = rnnfast.RNN(3, 5, backend=backend).double()
    plain.load_state_dict(rnn.state_dict())
    plain(2 * x)[0].sum().backward()
    torch.testing.assert_close(tripled, 3 * plain.weight_hh_l0.grad)


def test_backward_of_a_detached_state(backend):
    """Truncated backpropagation: a detached state is a value, and no gradient crosses it."""
    rnn = rnnfast.RNN(3, 5, backend=backend).double()
    x = normal(6, 2, 3, requires_grad=True)
    _, h = rnn(x[:3])
    output, _ = rnn(x[3:], h.detach())
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert (grad[:3] == 0).all() and (grad[3:] != 0).all()
