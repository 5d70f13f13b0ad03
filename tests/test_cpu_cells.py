"""The native CPU kernels of cells: every instruction set, activations, threads and bits.

Values through the public functions are in test_cells.py.
"""

from __future__ import annotations

import pytest
import torch

from rnnfast import dispatch, testing
from rnnfast.backends.cpu import CpuBackend
from rnnfast.call import CELLS, NONLINEARITIES, Network
from rnnfast.native import native
from tests import cells, stacks

if native is None:
    pytest.skip(
        "the native CPU extension is not built, so only its absence is tested", allow_module_level=True
    )

CPU = CpuBackend()
INSTRUCTION_SETS = native.instruction_sets()

# L, D, T, B, I, H
STACKS = [(1, 1, 9, 7, 5, 33), (3, 1, 11, 2, 4, 17), (2, 2, 6, 5, 3, 40), (1, 1, 60, 20, 7, 65)]
KINDS = [
    {"cell": "leaky", "noise": True},
    {"cell": "ctrnn", "resets": True, "nonlinearity": "sigmoid"},
    {"cell": "ctrnn", "noise": True},
    {"noise": True, "resets": True, "nonlinearity": "softplus"},
]


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    before = native.instruction_set()
    native.use(request.param)
    yield request.param
    native.use(before)


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def packed_weights():
    """Without fused steps, which a plain Elman cell of few steps takes and others do not."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 5, 3, 7), (6, 3, 1, 17), (7, 1, 33, 33), (4, 12, 64, 65)], ids=str
)
def test_every_instruction_set(shape, dtype, cell, nonlinearity, reverse, instruction_set):
    cells.make(shape, dtype, cell, nonlinearity, resets="some", reverse=reverse).check("cpu")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [[3, 2, 1], [9, 7, 7, 3, 3, 1, 1]], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_on_every_instruction_set(reverse, lengths, dtype, cell, instruction_set):
    cells.make((1, 1, 5, 17), dtype, cell, lengths=lengths, reverse=reverse).check("cpu")


@pytest.mark.parametrize("cell", ["leaky", "ctrnn"])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_more_rows_than_the_gradient_of_alpha_takes_at_once(dtype, cell):
    cells.make((41, 9, 5, 21), dtype, cell, resets="some").check("cpu")


@pytest.mark.parametrize("nonlinearity", ["sigmoid", "softplus", "identity"])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_activation_over_its_whole_range(dtype, nonlinearity, instruction_set):
    """A 1 x 1 layer of one step is the activation itself; its gradient is the derivative.

    To three eps of the value, as far as the numbers that are stored have full precision.
    """
    x = torch.cat(
        [torch.linspace(-12, 12, 4001), torch.linspace(-200, 200, 801), torch.logspace(-30, 2, 200)]
    )
    x = torch.cat([x, torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan")])]).to(dtype)
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    h0 = zero.expand(1, len(x), 1).contiguous()
    network = Network(nonlinearity, biases=False, module=True)
    call = testing.call_of(network, x.view(1, -1, 1), h0, (one, zero))
    results = CPU.forward(call)
    out = results[0].flatten()
    wide = x.double()
    exact = {
        "sigmoid": torch.sigmoid(wide),
        "softplus": torch.logaddexp(wide, torch.zeros_like(wide)),
        "identity": wide,
    }[nonlinearity]
    needs = (True, False, False, False)
    dx = testing.backward(CPU, call, results, (torch.ones_like(results[0]), None), needs)[0].flatten()
    value = out.double()  # the derivative is that of the value as it was stored
    derivative = {
        "sigmoid": value * (1 - value),
        "softplus": -torch.expm1(-value),
        "identity": torch.ones_like(value),
    }[nonlinearity]
    info = torch.finfo(dtype)
    for name, result, right in (("value", out, exact), ("derivative", dx, derivative)):
        right = right.to(dtype).double()  # beyond the largest number of the dtype it is infinite
        assert torch.equal(result.isnan(), right.isnan()), name
        known = ~right.isnan() & ~right.isinf()
        assert torch.equal(result.double()[right.isinf()], right[right.isinf()]), name
        error = (result.double() - right)[known].abs()
        bound = 3 * info.eps * right[known].abs() + info.smallest_normal
        assert (error <= bound).all(), f"{name}: {(error / bound).max():.2f}"


def everything(stack):
    results = stack.forward(CPU)
    return results | {f"gradient of {n}": g for n, g in stack.backward(CPU, results).items()}


def assert_same_bits(left, right):
    for name in left:
        assert torch.equal(left[name], right[name]), f"{name} differs in its bits"


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", STACKS, ids=str)
def test_stacks(shape, kind, instruction_set):
    stack = stacks.make(shape, torch.float64, **kind)
    eager = dispatch.get("eager")
    results = stack.forward(eager)
    torch.testing.assert_close(stack.forward(CPU), results, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        stack.backward(CPU, results), stack.backward(eager, results), rtol=1e-10, atol=1e-10
    )


# Shared over the batch, over the columns, over layers in a pipeline, over directions, and not shared.
SHARED = [
    (1, 1, 20, 40, 28, 96),
    (1, 1, 12, 1, 30, 300),
    (3, 1, 60, 1, 20, 64),
    (2, 2, 30, 5, 20, 64),
    *STACKS[:2],
]


@pytest.mark.threads
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHARED, ids=str)
def test_bits_do_not_depend_on_threads(shape, dtype, kind, threads):
    stack = stacks.make(shape, dtype, **kind)
    threads(1)
    alone = everything(stack)
    for count in (2, 3, 4):
        threads(count)
        assert_same_bits(everything(stack), alone)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_bits_do_not_depend_on_the_batch(dtype, cell):
    problem = cells.make((9, 17, 28, 64), dtype, cell, "sigmoid", resets="some")
    whole = problem.run("cpu")
    for b in (0, 7, 16):
        one = problem.to(dtype)
        for name in ("x", "noise"):
            one.tensors[name] = one.tensors[name][:, b : b + 1].contiguous()
        one.tensors["h0"] = one.tensors["h0"][b : b + 1]
        one.grads = one.grads[0][:, b : b + 1].contiguous(), one.grads[1][b : b + 1]
        one.resets = problem.resets[:, b : b + 1].contiguous()
        alone = one.run("cpu")
        for name in ("output", "gradient of x", "gradient of noise"):
            assert torch.equal(alone[name], whole[name][:, b : b + 1]), name
        for name in ("h_n", "gradient of h0"):
            assert torch.equal(alone[name], whole[name][b : b + 1]), name


@pytest.mark.parametrize("cell", ["leaky", "ctrnn"])
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 5, 17), (4, 2, 8, 33), (12, 4, 28, 200)], ids=str)
def test_alpha_of_ones_has_the_bits_of_elman(
    shape, dtype, nonlinearity, cell, instruction_set, packed_weights
):
    """A tensor of ones, whose values nobody looks at, and all results."""
    problem = cells.make(shape, dtype, cell, nonlinearity, alpha=1.0, noise=False)
    elman = problem.without_extras()
    elman.tensors["h0"] = torch.zeros_like(elman.tensors["h0"])
    problem.tensors["h0"] = elman.tensors["h0"]
    problem.grads = elman.grads = (problem.grads[0], torch.zeros_like(problem.grads[1]))  # of v, not of r
    right, ours = elman.run("cpu"), problem.run("cpu")
    for name in right:
        if cell == "leaky" or name not in ("h_n", "gradient of h0"):
            assert torch.equal(ours[name], right[name]), name


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 3, 2, 4, 0), (1, 2, 3, 0, 4, 5), (1, 1, 2, 3, 0, 7)], ids=str)
def test_nothing(shape, kind):
    """H, B or I of 0."""
    stack = stacks.make(shape, torch.float32, **kind)
    results = stack.forward(CPU)
    torch.testing.assert_close(results, stack.forward(dispatch.get("eager")))
    for name, grad in stack.backward(CPU, results).items():
        assert torch.equal(grad, grad) and grad.isfinite().all(), name


def test_what_a_backward_pass_lacks_is_an_error():
    stack = stacks.make((1, 1, 3, 2, 4, 5), torch.float32, cell="ctrnn", resets=True)
    out, h_n, inner = stack.forward(CPU).values()
    call, needs = stack.call, (True,) * (2 + len(stack.call.weights))
    assert None not in call.backward(out, None, out, h_n, needs, 1, inner, inner)
    lacks = pytest.raises(RuntimeError, match="a tensor that this backward pass reads is missing")
    with lacks:
        call.backward(out, None, out, h_n, needs, 1, None, None)
    for given in (
        (call.x, call.h0, call.weights, None, None),  # no resets
        (None, call.h0, call.weights, None, call.resets),  # from which a_t would be computed
        (call.x, call.h0, (*call.weights[:4], None), None, call.resets),
        (call.x, call.h0, (*call.weights[:2], None, *call.weights[3:]), None, call.resets),
    ):
        with lacks:
            call.bare().having(*given).backward(out, None, out, h_n, needs, 1, inner, None)
    with pytest.raises(RuntimeError, match="inner is not what the forward pass of this call had"):
        call.backward(out, None, out, h_n, needs, 1, inner[..., :4], None)
    for wrong in (
        call.resets[:5],
        call.resets.long(),
        call.resets.view(3, 2),
        call.resets.repeat_interleave(2)[::2],
    ):
        with pytest.raises(RuntimeError, match="resets are not those"):
            call.bare().having(call.x, call.h0, call.weights, None, wrong)
    leaky = stacks.make((1, 1, 3, 2, 4, 5), torch.float32, cell="leaky")
    out, h_n, inner = leaky.forward(CPU).values()
    with pytest.raises(RuntimeError, match="the inner values of this cell have no gradient here"):
        leaky.call.backward(out, None, out, h_n, (True,) * 7, 1, inner, inner)


def test_inference_leaves_out_what_only_a_backward_pass_reads():
    stack = stacks.make((2, 1, 3, 2, 4, 5), torch.float32, cell="leaky", noise=True)
    results = CPU.forward(stack.call)
    assert len(results) == 4
    less = CPU.infer(stack.call)
    assert len(less) == 3
    for left, right in zip(less, results, strict=False):
        assert torch.equal(left, right)
