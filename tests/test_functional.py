"""Every backend, dtype and shape: outputs and every gradient against the reference in float64."""

import pytest
import torch

from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS, DTYPES, LENGTHS, NAMES, NONLINEARITIES, SHAPES, check, expected, make
from tests.compare import compare_sequence, make_without_hn

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)


@each_shape
@each_dtype
@each_nonlinearity
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_dense(shape, dtype, nonlinearity, reverse, backend):
    compare_sequence(make(shape, dtype, nonlinearity), nonlinearity, reverse, backend)


@each_dtype
@each_nonlinearity
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_packed(lengths, dtype, nonlinearity, reverse, backend):
    case = make((0, 0, 5, 19), dtype, nonlinearity, lengths=lengths)
    compare_sequence(case, nonlinearity, reverse, backend)


@each_dtype
def test_without_bias(dtype, backend):
    compare_sequence(make((4, 3, 5, 18), dtype, bias=False), "tanh", False, backend)


@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_with_one_bias(missing, backend):
    case = make((4, 3, 5, 18), torch.float64)
    case.inputs[missing] = None
    compare_sequence(case, "tanh", False, backend)


@each_shape
@each_dtype
@each_nonlinearity
def test_step(shape, dtype, nonlinearity, backend):
    case = make((1, *shape[1:]), dtype, nonlinearity)
    out, _, grads = expected(make_without_hn(case), nonlinearity)
    leaves = case.leaves()
    x, *rest = case.args
    actual = rnn_step(x[0], *rest, nonlinearity, backend=backend)
    check("output", actual, out[0], case.tolerance())
    for name, a, e in zip(NAMES, torch.autograd.grad(actual, leaves, case.grad_out[0]), grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())


@pytest.mark.parametrize("used", ["output", "h_n"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [None, [5, 3, 3, 1]], ids=["dense", "packed"])
def test_one_output_used(used, reverse, lengths, backend):
    """The gradient of an output that is not used is never made, and counts as zero."""
    case = make((4, 3, 5, 18), torch.float64, lengths=lengths)
    (case.grad_hn if used == "output" else case.grad_out).zero_()
    grads = expected(case, "tanh", reverse)[2]
    leaves = case.leaves()
    results = rnn_sequence(*case.args, reverse=reverse, batch_sizes=case.batch_sizes, backend=backend)
    which, grad = (0, case.grad_out) if used == "output" else (1, case.grad_hn)
    for name, a, e in zip(NAMES, torch.autograd.grad(results[which], leaves, grad), grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())


@pytest.mark.parametrize("needed", range(6), ids=NAMES)
def test_one_gradient_needed(needed, backend):
    """Exactly what requires a gradient gets one."""
    case = make((4, 3, 5, 18), torch.float64)
    grads = expected(case, "tanh")[2]
    for i, leaf in enumerate(case.leaves()):
        leaf.requires_grad_(i == needed)
    torch.autograd.backward(rnn_sequence(*case.args, backend=backend), [case.grad_out, case.grad_hn])
    for i, name in enumerate(NAMES):
        assert (case.inputs[name].grad is not None) == (i == needed), name
    check(NAMES[needed], case.inputs[NAMES[needed]].grad, grads[needed], case.tolerance())


def test_strided_arguments(backend):
    """Transposed, expanded, sliced and misaligned tensors, gradients included."""
    case = make((4, 3, 5, 18), torch.float32)
    x = case.inputs["x"]
    case.inputs["x"] = torch.cat([x, x], dim=2).transpose(0, 1).contiguous().transpose(0, 1)[..., :5]
    case.inputs["h0"] = case.inputs["h0"][:1].expand(3, -1)
    case.inputs["weight_hh"] = case.inputs["weight_hh"].t().contiguous().t()
    case.inputs["bias_ih"] = torch.cat([case.inputs["bias_ih"], torch.ones(1)]).roll(1)[1:]
    case.grad_out = torch.ones(()).expand(4, 3, 18)
    out, h_n, grads = expected(case, "tanh")
    args = [t.detach().requires_grad_() for t in case.args]
    results = rnn_sequence(*args, backend=backend)
    check("output", results[0], out, case.tolerance())
    check("h_n", results[1], h_n, case.tolerance())
    actual = torch.autograd.grad(results, args, [case.grad_out, case.grad_hn])
    for name, a, e in zip(NAMES, actual, grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())


@pytest.mark.parametrize("lengths", [None, [5, 3, 3, 1]], ids=["dense", "packed"])
def test_uninitialised_memory_is_never_read(lengths, backend):
    """Deterministic mode fills new memory with NaN, which would show in any result that it reached."""
    torch.use_deterministic_algorithms(True)
    try:
        for reverse in (False, True):
            compare_sequence(make((5, 3, 5, 35), torch.float32, lengths=lengths), "tanh", reverse, backend)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("lengths", [None, [3, 2, 2]], ids=["dense", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@each_nonlinearity
def test_gradcheck(lengths, reverse, nonlinearity, backend):
    case = make((3, 2, 4, 5), torch.float64, nonlinearity, lengths=lengths)

    def layer(*args):
        return rnn_sequence(
            *args, nonlinearity, reverse=reverse, batch_sizes=case.batch_sizes, backend=backend
        )

    assert torch.autograd.gradcheck(layer, case.leaves())


@each_nonlinearity
def test_gradcheck_step(nonlinearity, backend):
    case = make((1, 2, 4, 5), torch.float64, nonlinearity)
    case.inputs["x"] = case.inputs["x"][0]
    assert torch.autograd.gradcheck(
        lambda *args: rnn_step(*args, nonlinearity, backend=backend), case.leaves()
    )
