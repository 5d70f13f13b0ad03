"""dtypes, conversions after construction, and autocast."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast.testing import BACKENDS, DTYPES
from tests.pairs import flat, pair

pytestmark = pytest.mark.parametrize("backend", ["auto", *BACKENDS])

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def tolerances(dtype):
    """A few roundings; the two sides may round in different places."""
    return {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}


@each_dtype
def test_constructed_in_a_dtype(dtype, backend):
    theirs, ours = pair(3, 5, num_layers=2, bidirectional=True, dtype=dtype, backend=backend)
    x = torch.randn(4, 2, 3).to(dtype)
    output, h_n = ours(x)
    assert output.dtype == h_n.dtype == dtype
    torch.testing.assert_close((output, h_n), theirs(x), **tolerances(dtype))
    output.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in ours.parameters())


@each_dtype
def test_converted_after_construction(dtype, backend):
    for cell in (False, True):
        theirs, ours = pair(3, 5, cell=cell, dtype=torch.float32, backend=backend)
        x = torch.randn(2, 3) if cell else torch.randn(4, 2, 3)
        flat(ours(x))[0].sum().backward()
        assert ours.to(dtype) is ours
        expected = flat(theirs.to(dtype)(x.to(dtype)))
        actual = flat(ours(x.to(dtype)))
        assert all(tensor.dtype == dtype for tensor in actual)
        torch.testing.assert_close(actual, expected, **tolerances(dtype))


def test_half_double_float_bfloat16_methods(backend):
    ours = rnnfast.RNN(3, 5, backend=backend)
    for method in ("half", "double", "bfloat16", "float"):
        dtype = next(getattr(ours, method)().parameters()).dtype
        assert ours(torch.zeros(4, 2, 3, dtype=dtype))[0].dtype == dtype


def test_default_dtype(backend):
    torch.set_default_dtype(torch.float64)
    try:
        ours = rnnfast.RNN(3, 5, backend=backend)
        output, _ = ours(torch.randn(4, 2, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert output.dtype == torch.float64


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("kind", ["dense", "packed", "cell"])
def test_autocast_gives_torch_s_dtype(autocast_dtype, dtype, with_hx, kind, backend):
    theirs, ours = pair(3, 5, cell=kind == "cell", dtype=dtype, backend=backend)
    x = torch.randn(4, 2, 3).to(dtype)
    if kind == "packed":
        x = pack_sequence([x[:, 0], x[:2, 1]])
    elif kind == "cell":
        x = x[0]
    hx = torch.randn(2, 5).to(dtype) if with_hx else None
    if hx is not None and kind != "cell":
        hx = hx.unsqueeze(0)
    with torch.autocast("cpu", autocast_dtype):
        expected, actual = flat(theirs(x, hx)), flat(ours(x, hx))
    assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in expected]
    torch.testing.assert_close(actual, expected, **tolerances(actual[0].dtype))


def test_autocast_gradients_keep_the_dtype_of_the_parameters(backend):
    theirs, ours = pair(3, 5, num_layers=2, dtype=torch.float32, backend=backend)
    x = torch.randn(4, 2, 3, requires_grad=True)
    grads = []
    for module in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = module(x)
        grads.append(torch.autograd.grad(output.float().sin().sum(), [x, *module.parameters()]))
    for (name, _), expected, actual in zip([("x", x), *ours.named_parameters()], *grads, strict=True):
        assert actual.dtype == torch.float32, name
        scale = expected.abs().max()
        torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=0.05)


def test_autocast_takes_an_input_of_another_dtype(backend):
    """As after a linear layer under autocast, whose output is narrower than the RNN's weights."""
    theirs, ours = pair(3, 5, dtype=torch.float32, backend=backend)
    x = torch.randn(4, 2, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x), **tolerances(torch.bfloat16))


def test_autocast_switched_off(backend):
    theirs, ours = pair(3, 5, dtype=torch.float32, backend=backend)
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        output, h_n = ours(x)
    assert output.dtype == torch.float32
    torch.testing.assert_close((output, h_n), theirs(x))


def test_autocast_of_another_device_changes_nothing(backend):
    ours = rnnfast.RNN(3, 5, backend=backend)
    with torch.autocast("cuda", torch.float16, enabled=torch.cuda.is_available()):
        assert ours(torch.zeros(4, 2, 3))[0].dtype == torch.float32


def test_complex(backend):
    """torch's own operators take complex numbers and ours don't: auto leaves them to torch, a name raises."""
    theirs, ours = pair(3, 5, dtype=torch.complex128, backend=backend)
    cell, our_cell = pair(3, 5, cell=True, dtype=torch.complex128, backend=backend)
    x = torch.randn(4, 2, 3, dtype=torch.complex128)
    for reference, module, input in ((theirs, ours, x), (cell, our_cell, x[0])):
        if backend in ("auto", "aten"):
            torch.testing.assert_close(module(input), reference(input))
        else:
            with pytest.raises(RuntimeError, match=rf"backend '{backend}'.*complex128"):
                module(input)
