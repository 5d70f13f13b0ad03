"""The CUDA kernels' sources, run on the CPU, through everything above them, against float64.

What this proves and what it doesn't is said in tests/cuda_on_cpu/machine.h.
"""

import re
import zlib
from types import SimpleNamespace

import pytest
import torch

from rnnfast import dispatch
from rnnfast.backends import cuda
from rnnfast.backends.base import Problem
from rnnfast.backends.precision import tf32
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.layer import Recurrence, Sequences
from rnnfast.testing import NAMES, Case, backward, check, expected, make
from tests import cells, cuda_on_cpu
from tests.compare import compare_sequence, make_without_hn
from tests.cuda_on_cpu import backend as on_cpu
from tests.stacks import compare as compare_stack
from tests.stacks import make as make_stack

pytestmark = [
    pytest.mark.slow,  # building the sources for the CPU takes half a minute, once
    pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing())),
]

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
# The wider engines, and beyond: over all blocks.
WIDTHS = [65, 128, 131, 192, 200, 256, 259, 300]


@pytest.fixture(scope="module", autouse=True)
def on_the_machine():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a kernel is one thread, and torch's others would spin beside it
    with dispatch.replaced(on_cpu.CudaOnCpu()):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def order_of_threads(request):
    """One of several for each test, always the same."""
    on_cpu.configure(seed=zlib.crc32(request.node.name.encode()) % 4)


@pytest.fixture
def dtype(kind):
    """The type of a kind, and its rule for products."""
    dtype, rounded = KINDS[kind]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=rounded):
        yield dtype


def make_case(shape, dtype, nonlinearity="tanh", **options):
    """TF32's relu needs the care of 16-bit types: a rounding error must not decide a derivative."""
    rounded = dtype is torch.float32 and tf32()
    case = make(shape, torch.float16 if rounded else dtype, nonlinearity, **options).to(dtype)
    case.tf32 = rounded
    return case


def compare_step(case, nonlinearity):
    out, _, grads = expected(make_without_hn(case), nonlinearity)
    leaves = case.leaves()
    x, *rest = case.args
    actual = rnn_step(x[0], *rest, nonlinearity, backend=BACKEND)
    check("output", actual, out[0], case.tolerance())
    for name, a, e in zip(NAMES, torch.autograd.grad(actual, leaves, case.grad_out[0]), grads, strict=False):
        check(f"gradient of {name}", a, e, case.tolerance())


@each_kind
@each_nonlinearity
@each_direction
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense(shape, dtype, nonlinearity, reverse):
    compare_sequence(make_case(shape, dtype, nonlinearity), nonlinearity, reverse, BACKEND)


@each_kind
@each_nonlinearity
@each_direction
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed(lengths, dtype, nonlinearity, reverse):
    case = make_case((0, 0, 5, 19), dtype, nonlinearity, lengths=lengths)
    compare_sequence(case, nonlinearity, reverse, BACKEND)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("lengths", [None, [4, 3, 1]], ids=["dense", "packed"])
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 4, 9, 5, 20), (2, 1, 1, 2, 6, 33)], ids=str)
def test_stack(shape, h0, lengths, dtype):
    """Below the module: layers and directions as the base class of backends puts them together."""
    compare_stack(make_stack(shape, dtype, lengths, h0), BACKEND)


@each_kind
@each_direction
@pytest.mark.parametrize("hidden_size", WIDTHS)
def test_wide(hidden_size, dtype, reverse):
    nonlinearity = "relu" if hidden_size % 2 else "tanh"
    case = make_case((0, 0, 3, hidden_size), dtype, nonlinearity, lengths=[3, 2, 2])
    compare_sequence(case, nonlinearity, reverse, BACKEND)


@pytest.mark.parametrize("kind", ["float32"])
@each_direction
def test_one_block_for_every_sequence_or_two(dtype, reverse):
    """Exact float32 gives a block a second sequence where there are more of them than multiprocessors."""
    for multiprocessors in (4, 5):
        on_cpu.configure(multiprocessors=multiprocessors)
        compare_sequence(make_case((3, 5, 3, 40), dtype), "tanh", reverse, BACKEND)


@pytest.mark.parametrize("kind", [*KINDS, "float64"])
@each_nonlinearity
@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 28, 33), (1, 33, 40, 72), (1, 9, 64, 128)], ids=str)
def test_step(kind, shape, nonlinearity, request):
    dtype = torch.float64 if kind == "float64" else request.getfixturevalue("dtype")
    compare_step(make_case((1, *shape[1:]), dtype, nonlinearity), nonlinearity)


@each_kind
def test_step_without_bias(dtype):
    compare_step(make_case((1, 3, 5, 18), dtype, bias=False), "tanh")


@each_kind
@pytest.mark.parametrize("needed", range(6), ids=NAMES)
def test_step_with_one_gradient_needed(dtype, needed):
    """dpre is made also where neither dx nor dh is."""
    case = make_case((1, 9, 5, 40), dtype)
    grads = expected(make_without_hn(case), "tanh")[2]
    x, *rest = [t.requires_grad_(i == needed) for i, t in enumerate(case.args)]
    rnn_step(x[0], *rest, backend=BACKEND).backward(case.grad_out[0])
    check(NAMES[needed], case.inputs[NAMES[needed]].grad, grads[needed], case.tolerance())


@each_kind
@pytest.mark.parametrize("used", ["output", "h_n"])
@each_direction
@pytest.mark.parametrize("hidden_size", [20, 260])
def test_one_output_used(dtype, used, reverse, hidden_size):
    """The gradient of an output that is not used is a null pointer, and counts as zero."""
    case = make_case((0, 0, 3, hidden_size), dtype, lengths=[3, 2, 1])
    (case.grad_hn if used == "output" else case.grad_out).zero_()
    grads = expected(case, "tanh", reverse)[2]
    leaves = case.leaves()
    results = rnn_sequence(*case.args, reverse=reverse, batch_sizes=case.batch_sizes, backend=BACKEND)
    which, grad = (0, case.grad_out) if used == "output" else (1, case.grad_hn)
    for name, a, e in zip(NAMES, torch.autograd.grad(results[which], leaves, grad), grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())


def run(case, nonlinearity="tanh", reverse=False):
    """Outputs and gradients."""
    leaves = case.leaves()
    results = rnn_sequence(
        *case.args, nonlinearity, reverse=reverse, batch_sizes=case.batch_sizes, backend=BACKEND
    )
    return *results, *torch.autograd.grad(results, leaves, [case.grad_out, case.grad_hn])


@pytest.mark.sample(6)
@each_kind
@pytest.mark.parametrize("hidden_size", [33, 64, 260])
def test_bits_do_not_depend_on_the_order_of_threads(dtype, hidden_size):
    """Where a barrier is missing, or too late, they do."""
    results = []
    for seed in range(4):
        on_cpu.configure(seed=seed)
        results.append(run(make_case((0, 0, 3, hidden_size), dtype, lengths=[4, 4, 3, 3, 3, 2, 2, 2, 1])))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.sample(4)
@each_kind
@pytest.mark.parametrize("hidden_size", [33, 260])
def test_bits_do_not_depend_on_the_batch(dtype, hidden_size):
    """A sequence gives the same alone, at the head of a batch, and among its last."""
    case, solver = make_case((3, 18, 5, hidden_size), dtype), dispatch.get(BACKEND)
    pre, h0, weight, grad = case.grad_out, case.inputs["h0"], case.inputs["weight_hh"], case.grad_hn

    def forward_and_backward(b):
        recurrence = Recurrence("tanh", Sequences(3, h0[b].shape[0], None, None, False))
        rows = pre[:, b].reshape(-1, hidden_size)
        out, h_n, _ = solver.recurrence_forward(rows.clone(), h0[b], weight, recurrence)
        dpre, dh0, _ = solver.recurrence_backward(rows.clone(), grad[b], out, weight, recurrence)
        return out.view(3, -1, hidden_size)[-1], h_n, dpre.view(3, -1, hidden_size)[0], dh0

    def step(b):
        inputs = {**case.inputs, "x": case.inputs["x"][:, b], "h0": h0[b]}
        call = Case(inputs, pre[:, b], grad[b]).call(step=True)
        (out,) = results = solver.forward(call)
        return out, *backward(solver, call, results, (grad[b], None))[:2]

    for function in (forward_and_backward, step):
        together = function(slice(None))
        for b in (0, 8, 17):
            for alone, row in zip(function(slice(b, b + 1)), together, strict=True):
                assert torch.equal(alone[0], row[b])


GUARD = 64  # elements on either side of a tensor, NaN


class Guarded:
    """Tensors in memory whose surroundings are NaN, beginning at odd elements if asked to."""

    def __init__(self):
        self.buffers = []

    def copy(self, tensor, shift):
        buffer = torch.full((tensor.numel() + 2 * GUARD + shift,), float("nan"), dtype=tensor.dtype)
        begin = GUARD + shift
        self.buffers.append((buffer, begin, begin + tensor.numel()))
        return buffer[begin : begin + tensor.numel()].view(tensor.shape).copy_(tensor)

    def check(self):
        for buffer, begin, end in self.buffers:
            assert buffer[:begin].isnan().all()
            assert buffer[end:].isnan().all()


@each_kind
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("lengths", [None, [4, 2, 1]], ids=["dense", "packed"])
@pytest.mark.parametrize("hidden_size", [20, 33, 64, 260])
def test_nothing_beyond_a_tensor_is_touched(dtype, shift, lengths, hidden_size, monkeypatch):
    """Reading there would make results NaN, writing shows there. Shifted, addresses are odd."""
    guarded = Guarded()
    monkeypatch.setattr(
        torch, "empty_like", lambda like: guarded.copy(torch.full_like(like, float("nan")), 0)
    )
    case = make_case((4, 9, 7, hidden_size), dtype, lengths=lengths)
    for name in NAMES:
        case.inputs[name] = guarded.copy(case.inputs[name], shift)
    case.grad_out, case.grad_hn = guarded.copy(case.grad_out, shift), guarded.copy(case.grad_hn, shift)
    compare_sequence(case, "tanh", False, BACKEND)
    if lengths is None:
        case.inputs["x"], case.grad_out = case.inputs["x"][:1].detach(), case.grad_out[:1]
        compare_step(case, "tanh")
    guarded.check()


@each_kind
@pytest.mark.parametrize("hidden_size", [33, 260])
def test_nan_and_infinity_stay_in_their_sequence(dtype, hidden_size):
    """And make no more of themselves than the formula does: padding meets them with zeros."""
    # An even number of inputs. Where a CPU multiplies pairs of bfloat16, torch's product of an odd one
    # multiplies the first value of the next row by zero.
    case = make_case((3, 9, 6, hidden_size), dtype, "relu")
    case.inputs["weight_hh"].abs_()  # so that an infinity stays one
    case.inputs["x"][1, 4, 0] = float("nan")
    case.inputs["h0"][2, 0] = float("inf")
    out, h_n, _ = expected(case, "relu")
    actual, actual_hn = rnn_sequence(*case.args, "relu", backend=BACKEND)
    for a, e in ((actual, out), (actual_hn, h_n)):
        assert torch.equal(a.isnan(), e.isnan())
        assert torch.equal(a.isinf(), e.isinf())
        finite = e.isfinite()
        check("finite", a[finite], e[finite], case.tolerance())


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@each_nonlinearity
@pytest.mark.parametrize("shape", [(4, 3, 5, 20), (2, 2, 3, 260)], ids=str)
def test_noise(shape, nonlinearity, dtype):
    cells.make(shape, dtype, "elman", nonlinearity).check(BACKEND)


@each_kind
def test_empty_batch(dtype):
    case = make_case((3, 1, 5, 18), dtype)
    x, h0, *weights = case.args
    out, h_n = rnn_sequence(x[:, :0], h0[:0], *weights, backend=BACKEND)
    assert (out.shape, h_n.shape) == ((3, 0, 18), (0, 18))
    assert rnn_step(x[0, :0], h0[:0], *weights, backend=BACKEND).shape == (0, 18)


# ---- what is refused, and what fails ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cuda"}, "it takes tensors on cpu, these are on cuda"),
        ({"dtype": "complex64"}, "dtype complex64 is not one of"),
        ({"dtype": "float64"}, "there is no kernel for sequences of float64, only for steps"),
        ({"cell": "leaky", "noise": True}, "it has no kernel with cell 'leaky'"),
        ({"nonlinearity": "sigmoid", "resets": True}, "no kernel with nonlinearity 'sigmoid', resets"),
        ({"hidden_size": 4000}, r"hidden_size 4000 is over \d+, up to which W_hh of float32 fits"),
    ],
)
def test_refusals(changes, reason):
    problem = {"kind": "sequence", "device": "cpu", "dtype": "float32", "input_size": 4, "hidden_size": 8}
    problem |= {"batch": 2, "steps": 3}
    assert dispatch.why_not(BACKEND, Problem(**problem)) is None
    assert re.search(reason, dispatch.why_not(BACKEND, Problem(**(problem | changes))))


@pytest.mark.parametrize(
    ("seen_by_torch", "count", "capability", "reason"),
    [
        (False, 1, 90, "no CUDA device"),
        (True, 0, 0, "no CUDA device"),
        (True, 1, 75, "the GPU has compute capability 7.5, the kernels need 8.0"),
        (True, 1, 80, None),
    ],
)
def test_devices(seen_by_torch, count, capability, reason, monkeypatch):
    native = SimpleNamespace(device_count=lambda: count, current_device=lambda: (capability, 100, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen_by_torch)
    backend = cuda.CudaBackend(native)
    assert backend.unavailable() == reason
    if reason is None:
        assert backend.details() == "compute capability 8.0, 100 multiprocessors"
        assert not backend.measured()


def test_auto_takes_what_was_measured_on_the_device_that_it_was_measured_on(monkeypatch):
    problem = Problem("sequence", "cuda", "bfloat16", input_size=64, hidden_size=128, batch=16, steps=100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, chosen in ((90, "cuda"), (80, "aten")):
        native = SimpleNamespace(
            device_count=lambda: 1,
            current_device=lambda c=capability: (c, 100, 0),
            resident_limit=lambda dtype: 256,
            grid_limit=lambda dtype, tf32: 2048,
        )
        with dispatch.replaced(cuda.CudaBackend(native)):
            assert dispatch.choose(problem) == chosen


class Failing:
    """A native module whose launches fail."""

    def __init__(self, result):
        self.result = result

    def __getattr__(self, name):
        if name in ("message", "resident_limit", "grid_limit"):
            return getattr(on_cpu.native(), name)
        return lambda *args: self.result


@pytest.mark.parametrize("result", [-1, -2, -3, 1, 719])
def test_failed_launch_names_kernel_and_sizes(result, monkeypatch):
    monkeypatch.setattr(dispatch.get(BACKEND), "native", Failing(result))
    case = make_case((3, 2, 5, 18), torch.float32)
    words = on_cpu.native().message(result)
    with pytest.raises(
        RuntimeError, match=rf"CUDA kernel resident_forward.*float32, T=3, B=2, H=18: {words}"
    ):
        rnn_sequence(*case.args, backend=BACKEND)
    x, *rest = case.args
    with pytest.raises(
        RuntimeError, match=rf"CUDA kernel step failed for torch.float32, B=2, I=5, H=18: {words}"
    ):
        rnn_step(x[0], *rest, backend=BACKEND)


def test_fault_of_an_earlier_grid_kernel_is_raised_once():
    case = make_case((2, 2, 5, 260), torch.bfloat16)
    rnn_sequence(*case.args, backend=BACKEND)
    solver = dispatch.get(BACKEND)
    solver._faults[torch.device("cpu")].fill_(3)
    with pytest.raises(
        RuntimeError, match="waited in vain for another block's result, at step 2 of its walk"
    ):
        rnn_sequence(*case.args, backend=BACKEND)
    rnn_sequence(*case.args, backend=BACKEND)
