"""The native CPU kernels below the public functions: every instruction set, and bitwise reproducibility."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rnnfast import testing
from rnnfast.backends.cpu import CpuBackend
from rnnfast.call import Network
from rnnfast.native import native
from rnnfast.testing import NAMES

if native is None:
    pytest.skip(
        "the native CPU extension is not built, so only its absence is tested", allow_module_level=True
    )

CPU = CpuBackend()
INSTRUCTION_SETS = native.instruction_sets()


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


def run(case, nonlinearity="tanh", reverse=False):
    """All results of a layer, by name."""
    call = case.call(nonlinearity, reverse)
    out, h_n = CPU.forward(call)
    grads = testing.backward(CPU, call, (out, h_n), (case.grad_out, case.grad_hn))
    return {"out": out, "h_n": h_n, **dict(zip(NAMES, grads, strict=True))}


def assert_same_bits(left, right):
    for name in left:
        assert torch.equal(left[name], right[name]), f"{name} differs in its bits"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=str)
def test_dense(shape, dtype, nonlinearity, reverse, instruction_set):
    compare(testing.make(shape, dtype, nonlinearity), nonlinearity, reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("lengths", testing.LENGTHS, ids=str)
def test_packed(lengths, dtype, reverse, instruction_set):
    compare(testing.make((0, 0, 5, 37), dtype, lengths=lengths), "tanh", reverse)


def compare(case, nonlinearity, reverse):
    out, h_n, grads = testing.expected(case, nonlinearity, reverse)
    actual = run(case, nonlinearity, reverse)
    tolerance = case.tolerance()
    testing.check("out", actual["out"], out, tolerance)
    testing.check("h_n", actual["h_n"], h_n, tolerance)
    for name, grad in zip(NAMES, grads, strict=True):
        testing.check(f"gradient of {name}", actual[name], grad, tolerance)


# More rows than a chain of additions is long, in one slab of the gradients and in several.
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 47, 33, 65), (41, 9, 29, 45), (67, 31, 5, 50), (9, 43, 210, 211)], ids=str
)
def test_many_rows(shape, dtype, instruction_set):
    compare(testing.make(shape, dtype), "tanh", False)


# Rows that lie a multiple of 4 KiB apart in units, which are copied before they are multiplied.
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 13, 2048, 67), (2, 11, 70, 1024)], ids=str)
def test_rows_that_compete_for_the_cache(shape, dtype, instruction_set):
    compare(testing.make(shape, dtype), "tanh", False)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 28, 64), (5, 4, 9, 33)], ids=str)
def test_tensors_may_begin_anywhere(shape, dtype, instruction_set):
    """At any multiple of the size of an element, that is."""
    case = testing.make(shape, dtype)
    expected = run(case)
    for name, tensor in case.inputs.items():
        if tensor is not None:
            case.inputs[name] = torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    assert_same_bits(run(case), expected)


@pytest.mark.parametrize("shape", [(2, 3, 28, 40), (67, 31, 5, 50), (9, 43, 210, 211)], ids=str)
def test_bits_of_a_gradient_do_not_depend_on_which_are_wanted(shape):
    case = testing.make(shape, torch.float32)
    call = case.call()
    results = CPU.forward(call)

    def gradients(*wanted):
        needs = tuple(name in wanted for name in NAMES)
        return testing.backward(CPU, call, results, (case.grad_out, None), needs)

    everything = gradients(*NAMES)
    for i, name in enumerate(NAMES):
        only = gradients(name)
        assert torch.equal(only[i], everything[i]), name
        assert all(grad is None for grad in only[:i] + only[i + 1 :]), name


# Sizes at which the work is shared over the batch and over the columns, and at which it is not shared.
SHARED = [
    (5, 1, 64, 64),
    (12, 1, 300, 300),
    (6, 16, 100, 200),
    (5, 7, 33, 520),
    (20, 40, 28, 96),
    (5, 130, 40, 520),
]


@pytest.mark.threads
@pytest.mark.parametrize("lengths", [None, [9, 9, 8, 6, 6, 5, 3, 1]], ids=["dense", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHARED, ids=str)
def test_bits_do_not_depend_on_threads(shape, dtype, lengths, threads):
    case = testing.make(shape, dtype, lengths=lengths)
    threads(1)
    alone = run(case)
    for count in (1, 2, 3, 5):
        threads(count)
        assert_same_bits(run(case), alone)


@pytest.mark.threads
def test_bits_do_not_depend_on_how_a_long_walk_is_cut(threads):
    """The rows are taken in two passes: 12000 of them by the whole team, and the last one by one thread."""
    rows, input_size, hidden_size = 12001, 232, 200
    x, grad_out = torch.randn(rows, input_size), torch.randn(rows, hidden_size)
    weights = [torch.randn(hidden_size, size) / size**0.5 for size in (input_size, hidden_size)]
    bias = torch.randn(hidden_size)
    inputs = dict(zip(NAMES, (x, torch.randn(6000, hidden_size), *weights, bias, bias), strict=True))
    case = testing.Case(inputs, grad_out, torch.zeros(6000, hidden_size), torch.tensor([6000, 6000, 1]))

    def gradients(count):
        threads(count)
        return run(case, reverse=True)

    alone = gradients(1)
    for count in (2, 3, 5):
        assert_same_bits(gradients(count), alone)


PRINT_DIGEST = """
import hashlib, torch
from rnnfast import testing
from tests.test_cpu_kernels import run
torch.set_num_threads(3)
digest = hashlib.sha256()
for shape in [(20, 40, 28, 96), (12, 1, 300, 300), (300, 25, 9, 64)]:
    for tensor in run(testing.make(shape, torch.float32)).values():
        digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.threads
def test_bits_do_not_depend_on_how_many_threads_openmp_grants():
    """Fewer than it was asked for: then one does the work of all."""
    digests = set()
    for limit in ("1", "64"):
        environment = {**os.environ, "OMP_THREAD_LIMIT": limit}
        done = subprocess.run(
            [sys.executable, "-c", PRINT_DIGEST], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 17, 28, 64), (4, 17, 28, 64), (9, 17, 28, 200)], ids=str)
def test_bits_do_not_depend_on_the_batch(shape, dtype):
    case = testing.make(shape, dtype)
    whole = run(case)
    for b in (0, 7, 16):
        one = case.to(dtype)
        one.inputs = {**case.inputs, "x": case.inputs["x"][:, b : b + 1], "h0": case.inputs["h0"][b : b + 1]}
        one.inputs["x"] = one.inputs["x"].contiguous()
        one.grad_out = case.grad_out[:, b : b + 1].contiguous()
        one.grad_hn = case.grad_hn[b : b + 1]
        alone = run(one)
        assert torch.equal(alone["out"], whole["out"][:, b : b + 1])
        assert torch.equal(alone["h_n"], whole["h_n"][b : b + 1])
        assert torch.equal(alone["x"], whole["x"][:, b : b + 1])
        assert torch.equal(alone["h0"], whole["h0"][b : b + 1])


# Hidden sizes whose weights end with a whole vector or panel, and within one.
@pytest.mark.parametrize("hidden_size", [3, 16, 64, 130, 257])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_bits_do_not_depend_on_how_a_weight_is_read(hidden_size, dtype, instruction_set):
    """A weight that is used often is packed, one that is used a few times is read in place."""
    native.use(instruction_set)
    torch.use_deterministic_algorithms(True)  # no fused steps, which add in another order
    try:
        for batch, few in itertools.product((1, 2, 3, 4, 5, 14), (1, 3)):
            case = testing.make((150, batch, 37, hidden_size), dtype)
            whole = run(case)
            first, last = case.to(dtype), case.to(dtype)
            first.inputs = {**case.inputs, "x": case.inputs["x"][:few]}
            first.grad_out = case.grad_out[:few]
            assert torch.equal(run(first)["out"], whole["out"][:few])
            last.inputs = {**case.inputs, "x": case.inputs["x"][-few:], "h0": whole["out"][-few - 1]}
            last.grad_out = case.grad_out[-few:]
            alone = run(last)
            assert torch.equal(alone["out"], whole["out"][-few:])
            assert torch.equal(alone["x"], whole["x"][-few:])
    finally:
        torch.use_deterministic_algorithms(False)
        native.use(INSTRUCTION_SETS[-1])


def test_bits_of_a_packed_sequence_are_those_of_the_sequence_alone():
    lengths = [9, 7, 4, 2, 1]
    case = testing.make((0, 0, 28, 64), torch.float32, lengths=lengths)
    whole = run(case)["out"].split(case.batch_sizes.tolist())
    torch.use_deterministic_algorithms(True)
    try:
        for b, length in enumerate(lengths):
            x = torch.stack([step[b] for step in case.inputs["x"].split(case.batch_sizes.tolist())[:length]])
            inputs = {**case.inputs, "x": x[:, None], "h0": case.inputs["h0"][b : b + 1]}
            alone, _ = CPU.forward(testing.Case(inputs, case.grad_out, case.grad_hn).call())
            assert torch.equal(alone[:, 0], torch.stack([step[b] for step in whole[:length]]))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(
    not {"avx2", "avx512"} <= set(INSTRUCTION_SETS), reason="this machine has only one set with fused FMA"
)
def test_bits_of_a_product_chain_do_not_depend_on_the_width_of_vectors():
    """relu, whose arithmetic is the same at any width: each output is one chain of FMAs in a fixed order."""
    case = testing.make((6, 5, 70, 150), torch.float32, "relu")
    results = []
    for name in ("avx2", "avx512"):
        native.use(name)
        results.append(run(case, "relu"))
    native.use(INSTRUCTION_SETS[-1])
    assert_same_bits(*results)


@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("shape", [(1000, 1, 64, 64), (1000, 4, 28, 128), (100, 2, 512, 512)], ids=str)
def test_error_is_at_most_twice_that_of_torch(shape, nonlinearity):
    """RMS errors against float64, output and every gradient."""
    _, _, inputs, hidden = shape
    case = testing.make(shape, torch.float32, nonlinearity)
    out, _, grads = testing.expected(case, nonlinearity)
    theirs = torch.nn.RNN(inputs, hidden, nonlinearity=nonlinearity)
    x, h0, *weights = case.args
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    their_out, their_hn = theirs(x, h0[None])
    torch.autograd.backward([their_out, their_hn[0]], [case.grad_out, case.grad_hn])
    ours = run(case, nonlinearity)
    pairs = [("out", ours["out"], their_out.detach(), out)]
    their_grads = [x.grad, h0.grad, *(p.grad for p in theirs.parameters())]
    for name, their, exact in zip(NAMES, their_grads, grads, strict=True):
        pairs.append((f"gradient of {name}", ours[name], their, exact))
    for name, our, their, exact in pairs:
        our_error = (our.double() - exact).norm()
        their_error = (their.double() - exact).norm()
        assert our_error <= 2 * their_error, f"{name}: {our_error:.2e}, torch's {their_error:.2e}"


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_activation_over_its_whole_range(dtype, instruction_set):
    """A 1 x 1 layer without recurrence is the activation itself."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.logspace(-30, 2, 200), torch.tensor([0.0, -0.0])])
    x = torch.cat([x, torch.tensor([float("inf"), float("-inf"), float("nan")])]).to(dtype)[:, None]
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    h = zero.expand(len(x), 1).contiguous()
    for nonlinearity, exact in (("tanh", torch.tanh(x.double())), ("relu", torch.relu(x.double()))):
        (out,) = CPU.forward(
            testing.call_of(Network(nonlinearity, biases=False, step=True), x, h, (one, zero))
        )
        assert torch.equal(out.isnan(), exact.isnan())
        finite = ~exact.isnan()
        error = (out[finite].double() - exact[finite]).abs()
        infinite = exact[finite].isinf()
        assert torch.equal(out[finite].double()[infinite], exact[finite][infinite])
        bound = 3 * torch.finfo(dtype).eps * exact[finite].abs() + torch.finfo(dtype).smallest_normal
        assert (error <= bound)[~infinite].all(), f"{nonlinearity}: {(error / bound)[~infinite].max():.2f}"
        assert nonlinearity == "relu" or (out[finite].abs() <= 1).all()


@pytest.mark.threads
def test_forked_child_does_not_hang():
    """OpenMP's threads do not survive a fork; the child must do without them."""
    case = testing.make((50, 64, 64, 64), torch.float32)
    expected = run(case)["out"].numpy().tobytes()  # torch's own comparison would hang in the child
    child = os.fork()
    if child == 0:
        os._exit(0 if run(case)["out"].numpy().tobytes() == expected else 1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def test_the_recurrence_alone():
    """What benchmarks time: in place, and of nothing but what the kernel takes."""
    case = testing.make((5, 3, 4, 37), torch.float32)
    x, h0, weight_ih, weight_hh, bias_ih, bias_hh = case.args
    out, h_n = CPU.forward(case.call())
    pre = torch.nn.functional.linear(x, weight_ih, bias_ih + bias_hh).view(15, 37)
    last = CPU.recurrence_forward(rows := pre.clone(), h0, weight_hh, "tanh")
    testing.check("out", rows.view_as(out), out.double(), case.tolerance())
    testing.check("h_n", last, h_n.double(), case.tolerance())
    for wrong in (
        (pre[:14], h0, weight_hh),
        (pre, h0[:0], weight_hh),
        (pre, h0, weight_hh[:, :36]),
        (pre, h0.double(), weight_hh),
        (pre.t().contiguous().t(), h0, weight_hh),
        (torch._neg_view(pre), h0, weight_hh),
    ):
        with pytest.raises(RuntimeError, match="a kernel takes"):
            CPU.recurrence_forward(*wrong, "tanh")


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="instruction set 'avx9000' cannot run on this machine"):
        native.use("avx9000")


def test_probes_measure_something():
    for dtype in range(4):
        assert 0 < native.fma_peak(1, 0.01, dtype) < math.inf
    assert 0 < native.read_bandwidth(1 << 20, 1, 0.01) < math.inf


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory that can be addressed from RLIMIT_AS")
def test_memory_that_is_not_there_is_an_error():
    code = (
        "import resource, torch, rnnfast.functional as f\n"
        "x, w = torch.zeros(1, 1, 4), torch.zeros(24000, 24000)\n"
        "w_ih, h = torch.zeros(24000, 4), torch.zeros(16, 24000)\n"  # so many rows that the weight is packed
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
        "try: f.rnn_sequence(x.expand(9, 16, 4), h, w_ih, w, backend='cpu')\n"
        "except MemoryError: print('MemoryError')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "MemoryError", done.stderr
