"""torch.func: transforms of our modules and functions."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS

pytestmark = pytest.mark.parametrize("backend", ["auto", *BACKENDS])

MODULES = {
    "rnn": lambda **kw: rnnfast.RNN(3, 4, **kw),
    "deep": lambda **kw: rnnfast.RNN(3, 4, num_layers=2, bidirectional=True, **kw),
    "relu": lambda **kw: rnnfast.RNN(3, 4, nonlinearity="relu", bias=False, **kw),
}


@pytest.fixture(params=MODULES)
def rnn(request, backend):
    torch.manual_seed(0)
    return MODULES[request.param](backend=backend).double()


def normal(*size):
    return torch.randn(size, dtype=torch.float64)


def loss(rnn, parameters, x):
    output, h_n = functional_call(rnn, parameters, (x,))
    return output.sin().sum() + h_n.square().sum()


def parameters_of(module):
    return {name: p.detach() for name, p in module.named_parameters()}


def plain_gradients(rnn, x):
    parameters = {name: p.detach().requires_grad_() for name, p in rnn.named_parameters()}
    grads = torch.autograd.grad(loss(rnn, parameters, x), list(parameters.values()))
    return dict(zip(parameters, grads, strict=True))


def test_grad(rnn):
    x = normal(5, 2, 3)
    actual = grad(lambda p: loss(rnn, p, x))(parameters_of(rnn))
    torch.testing.assert_close(actual, plain_gradients(rnn, x))


def test_functional_call_uses_the_given_parameters(rnn):
    x = normal(5, 2, 3)
    doubled = {name: 2 * p for name, p in parameters_of(rnn).items()}
    expected, _ = functional_call(rnn, doubled, (x,))
    rnn.load_state_dict(doubled)
    torch.testing.assert_close(rnn(x)[0], expected)


def test_per_sample_gradients(rnn):
    """What torch.nn.RNN can't: one gradient for each sequence, in one vectorised call."""
    x = normal(7, 5, 3)  # samples, steps, features
    per_sample = vmap(grad(lambda p, x: loss(rnn, p, x)), in_dims=(None, 0))(parameters_of(rnn), x)
    for i in range(len(x)):
        for name, expected in plain_gradients(rnn, x[i]).items():
            torch.testing.assert_close(per_sample[name][i], expected)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_vmap_over_inputs(rnn, in_dim):
    x = normal(5, 6, 2, 3)
    actual = vmap(rnn, in_dims=in_dim, out_dims=in_dim)(x)
    expected = [torch.stack(outs, in_dim) for outs in zip(*[rnn(xi) for xi in x.unbind(in_dim)], strict=True)]
    torch.testing.assert_close(list(actual), expected)


def test_vmap_over_models(backend):
    """An ensemble: many models on one input."""
    torch.manual_seed(0)
    models = [rnnfast.RNN(3, 4, backend=backend).double() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    x = normal(5, 2, 3)
    actual, _ = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(actual, torch.stack([model(x)[0] for model in models]))


def test_jvp_is_the_transpose_of_vjp(rnn):
    x, tangent, cotangent = normal(5, 2, 3), normal(5, 2, 3), normal(5, 2, rnn(normal(5, 2, 3))[0].shape[-1])
    out, pushed = jvp(lambda x: rnn(x)[0], (x,), (tangent,))
    torch.testing.assert_close(out, rnn(x)[0])
    _, pull = vjp(lambda x: rnn(x)[0], x)
    torch.testing.assert_close((pushed * cotangent).sum(), (tangent * pull(cotangent)[0]).sum())


def test_forward_ad_with_dual_numbers(rnn):
    x, tangent = normal(5, 2, 3), normal(5, 2, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = rnn(torch.autograd.forward_ad.make_dual(x, tangent))[0]
        actual = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(actual, jvp(lambda x: rnn(x)[0], (x,), (tangent,))[1])


def test_jacobians(rnn):
    x = normal(3, 1, 3)
    expected = torch.autograd.functional.jacobian(lambda x: rnn(x)[0], x)
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(lambda x: rnn(x)[0])(x), expected)
    vectorized = torch.autograd.functional.jacobian(lambda x: rnn(x)[0], x, vectorize=True)
    torch.testing.assert_close(vectorized, expected)


def test_hessian(rnn):
    x = normal(2, 1, 3)
    expected = torch.autograd.functional.hessian(lambda x: rnn(x)[0].sum(), x)
    torch.testing.assert_close(hessian(lambda x: rnn(x)[0].sum())(x), expected)


def test_gradient_inside_a_transform_of_a_gradient(rnn):
    x = normal(3, 2, 3)

    def penalty(p):
        inner = grad(lambda x: loss(rnn, p, x))(x)
        return inner.square().sum()

    parameters = {name: p.detach().requires_grad_() for name, p in rnn.named_parameters()}
    leaf = x.clone().requires_grad_()
    (inner,) = torch.autograd.grad(loss(rnn, parameters, leaf), leaf, create_graph=True)
    expected = torch.autograd.grad(inner.square().sum(), list(parameters.values()), allow_unused=True)
    actual = grad(penalty)(parameters_of(rnn))
    for value, name in zip(expected, actual, strict=True):
        torch.testing.assert_close(actual[name], torch.zeros_like(actual[name]) if value is None else value)


def test_cell_and_functions(backend):
    torch.manual_seed(0)
    cell = rnnfast.RNNCell(3, 4, backend=backend).double()
    x, h = normal(6, 2, 3), normal(6, 2, 4)
    torch.testing.assert_close(vmap(cell)(x, h), torch.stack([cell(a, b) for a, b in zip(x, h, strict=True)]))
    weights = [p.detach() for p in cell.parameters()]
    torch.testing.assert_close(
        vmap(lambda x, h: rnn_step(x, h, *weights, backend=backend))(x, h), vmap(cell)(x, h)
    )
    steps = normal(6, 5, 2, 3)
    out, h_n = vmap(lambda x, h: rnn_sequence(x, h, *weights, backend=backend))(steps, h)
    for i in range(6):
        torch.testing.assert_close((out[i], h_n[i]), rnn_sequence(steps[i], h[i], *weights, backend=backend))


def test_dropout_in_a_transform_obeys_the_randomness_that_is_asked_for(backend):
    rnn = rnnfast.RNN(3, 4, num_layers=2, dropout=0.5, backend=backend)
    x = torch.ones(2, 5, 1, 3)
    out = vmap(lambda x: rnn(x)[0], randomness="different")(x)
    assert not torch.equal(out[0], out[1])
    out = vmap(lambda x: rnn(x)[0], randomness="same")(x)
    torch.testing.assert_close(out[0], out[1])
