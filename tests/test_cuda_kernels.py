"""The CUDA kernels' sources, run on the CPU (tests/cuda_on_cpu), through everything above them, against float64.

What this proves and what it doesn't is said in tests/cuda_on_cpu/machine.h.
"""

import pytest
import torch

from rnnfast import dispatch
from rnnfast.backends import cuda, precision
from rnnfast.functional import rnn_step
from tests import cuda_on_cpu
from tests.cases import NAMES, check, expected, make
from tests.cuda_on_cpu import backend as on_cpu
from tests.test_functional import compare_sequence, make_without_hn

pytestmark = pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing()))

BACKEND = on_cpu.CudaOnCpu.name
# TF32 is a way to multiply rather than a type.
KINDS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_nonlinearity = pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
each_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])

# T, B, I, H: H below, at and beside the widths of the kernels' engines, B beside their tiles.
SHAPES = [(1, 1, 2, 1), (2, 9, 3, 16), (5, 3, 5, 20), (3, 20, 4, 33), (4, 8, 7, 64)]
LENGTHS = [[1], [3, 2, 1], [5, 5, 1], [4, 4, 4, 4, 3, 3, 2, 2, 2, 1, 1]]


@pytest.fixture(scope="module", autouse=True)
def registered():
    before = dict(dispatch._registry), cuda.native
    cuda.native = on_cpu.native()
    dispatch.register(on_cpu.CudaOnCpu())
    on_cpu.configure()
    yield
    dispatch._registry, cuda.native = before
    dispatch.find.cache_clear()


@pytest.fixture
def dtype(kind, monkeypatch):
    """The type of a kind, and its rule for products; cases know nothing of TF32, so its eps stands in."""
    dtype, tf32 = KINDS[kind]
    monkeypatch.setattr(cuda, "tf32", lambda: tf32)
    if tf32:
        monkeypatch.setattr("tests.cases.Case.tolerance", lambda case: tf32_tolerance(case))
    return dtype


def tf32_tolerance(case):
    """Operands of products are rounded to 11 bits, 2^-11 relative at most, and the errors add up like a random walk
    over a sum whose absolute value is about 1."""
    return 8 * 2.0**-11


@each_kind
@each_nonlinearity
@each_direction
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense(shape, dtype, nonlinearity, reverse):
    compare_sequence(make(shape, dtype, nonlinearity), nonlinearity, reverse, BACKEND)


@each_kind
@each_nonlinearity
@each_direction
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed(lengths, dtype, nonlinearity, reverse):
    compare_sequence(
        make((0, 0, 5, 19), dtype, nonlinearity, lengths=lengths), nonlinearity, reverse, BACKEND
    )


@each_kind
@each_nonlinearity
@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 28, 33), (1, 33, 40, 72), (1, 9, 64, 128)], ids=str)
def test_step(shape, dtype, nonlinearity):
    case = make((1, *shape[1:]), dtype, nonlinearity)
    out, _, grads = expected(make_without_hn(case), nonlinearity)
    leaves = case.leaves()
    x, *rest = case.args
    actual = rnn_step(x[0], *rest, nonlinearity, backend=BACKEND)
    check("output", actual, out[0], case.tolerance())
    for name, a, e in zip(NAMES, torch.autograd.grad(actual, leaves, case.grad_out[0]), grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())
