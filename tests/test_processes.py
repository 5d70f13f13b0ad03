"""What belongs to a process or a thread rather than to a call: forks, floating-point modes, OpenMP."""

import ctypes
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

import rnnfast
from rnnfast import config
from rnnfast.backends import cpu

pytestmark = [
    pytest.mark.threads,
    pytest.mark.skipif(
        cpu.native is None or not cpu.native.openmp(), reason="needs the native extension and OpenMP"
    ),
]

FORK = """
import ctypes, os, signal, sys, traceback
import torch
import rnnfast
from rnnfast.backends import cpu

torch.set_num_threads(2)
torch.manual_seed(0)
rnn = rnnfast.RNN(64, 128, backend="cpu")
x = torch.randn(50, 64, 64)

def threads():
    return len(os.listdir("/proc/self/task"))

def assert_computes_in_parallel():
    # There may be other threads than OpenMP's, which a fork ends; so what counts is that some are added.
    before = threads()
    results = compute()
    assert threads() > before
    return results

def compute():
    output, h_n = rnn(x)
    (output.sum() + h_n.sum()).backward()
    return [output.detach(), rnn.weight_hh_l0.grad]

def in_child(check):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang ends the child, and the test with it
        status = 1
        try:
            check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
"""

PROGRAMS = {
    "a parent that has computed nothing": """
        def check():
            assert_computes_in_parallel()
            assert not cpu.native.team_lost() and "OpenMP: lib" in rnnfast.show_config()

        in_child(check)
        """,
    "a parent that has computed in parallel": """
        expected = assert_computes_in_parallel()

        def check():
            rnn.zero_grad()
            for actual, value in zip(assert_computes_in_parallel(), expected):
                assert torch.equal(actual, value)
            torch.randn(1_000_000).exp()  # torch's own parallel regions work, too
            assert not cpu.native.team_lost()
            in_child(assert_computes_in_parallel)

        in_child(check)
        rnn.zero_grad()
        for actual, value in zip(assert_computes_in_parallel(), expected):  # the parent goes on as before
            assert torch.equal(actual, value)
        """,
    "a parent that has computed in torch alone": """
        before = threads()
        torch.randn(1_000_000).exp()
        assert threads() > before
        in_child(assert_computes_in_parallel)
        """,
    "a fork from inside a parallel region": """
        expected = compute()
        rnn.zero_grad()
        gomp = ctypes.CDLL(cpu.native.openmp())

        def check():
            for actual, value in zip(compute(), expected):
                assert torch.equal(actual, value)
            assert cpu.native.team_lost()
            config = rnnfast.show_config()
            assert "forked from inside a parallel region" in config and "one thread" in config

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def region(_):
            if gomp.omp_get_thread_num() == 0:
                in_child(check)

        gomp.GOMP_parallel(region, None, 2, 0)
        assert not cpu.native.team_lost()
        """,
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux lists them")
@pytest.mark.parametrize("parent", PROGRAMS)
def test_fork(parent):
    """The child has as many threads as any process, gives the same bits, and never hangs."""
    code = FORK + textwrap.dedent(PROGRAMS[parent])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr


def end_threads():
    """Ends OpenMP's threads, as those of the next region begin in the floating-point mode of their maker."""
    ctypes.CDLL(cpu.native.openmp()).omp_pause_resource_all(2)


def subnormals(tensors):
    tiny = torch.finfo(torch.float32).tiny
    return sum(int(((t != 0) & (t.abs() < tiny)).sum()) for t in tensors)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU can't flush subnormal numbers")
@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("pool_flushes", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_subnormal_numbers_on_any_number_of_threads(flush, pool_flushes, packed):
    """All threads of a call take them as the calling thread does, whatever mode the threads were made in."""
    steps, batch, size = 5, 64, 256
    before = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rnn = rnnfast.RNN(size, size, backend="cpu")
    with torch.no_grad():
        for parameter in rnn.parameters():
            if parameter.dim() == 1:
                parameter.mul_(1e-38)
    x = (torch.randn(steps, batch, size) * 1e-38).requires_grad_()
    grad = torch.randn(steps, batch, size) * 1e-38
    input, lengths = x, [steps] * (batch // 2) + [2] * (batch // 2)
    results = []
    try:
        end_threads()
        torch.set_num_threads(3)
        torch.set_flush_denormal(pool_flushes)
        rnn(torch.randn(steps, batch, size))
        for threads in (1, 2, 3):
            torch.set_num_threads(1)  # torch's own threads keep the mode that they began with
            torch.set_flush_denormal(flush)
            if packed:
                input = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths))
            torch.set_num_threads(threads)
            output, h_n = rnn(input)
            output = output.data if packed else output
            grad_output = grad.view(-1, size)[: output.numel() // size].view_as(output)
            grads = torch.autograd.grad(output, [x, *rnn.parameters()], grad_output)
            torch.set_num_threads(1)
            torch.set_flush_denormal(False)
            results.append([output.detach(), h_n.detach(), *grads])
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
        end_threads()
    assert (subnormals(results[0]) == 0) == flush
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


def test_the_openmp_runtime_is_torch_s():
    ours, theirs = cpu.native.openmp(), cpu.native.openmp("libtorch_cpu.so")
    assert ours == theirs and cpu.native.openmp("no such library") == ""
    lines = rnnfast.show_config().splitlines()
    assert any(line.startswith("OpenMP: lib") and "WARNING" not in line for line in lines)


@pytest.mark.parametrize(
    "ours, lost, text",
    [
        ("/lib/libomp.so.5", False, "libomp.so.5 (/lib/libomp.so.5), WARNING: torch has /torch/libgomp.so.1"),
        ("/torch/libgomp.so.1", False, "libgomp.so.1"),
        ("/torch/libgomp.so.1", True, "none: the process was forked"),
        ("", False, "none; each call takes one thread"),
    ],
)
def test_what_show_config_says_of_threads(monkeypatch, ours, lost, text):
    native = SimpleNamespace(
        team_lost=lambda: lost, openmp=lambda library=None: ours if library is None else "/torch/libgomp.so.1"
    )
    monkeypatch.setattr(config, "native", native)
    assert config._openmp().startswith(text)


TEAM = """
import os
import torch, rnnfast

torch.set_num_threads(5)
# Layers that all threads share, that few of them share, and that need one.
shapes = [(3, 1, 16), (20, 1, 160), (40, 3, 96), (10, 64, 200), (5, 1, 600)]
modules = [(rnnfast.RNN(H, H, 2, backend="cpu"), torch.randn(T, B, H)) for T, B, H in shapes]

def compute():
    for module, x in modules:
        module(x)[0].sum().backward()
    return set(os.listdir("/proc/self/task"))

compute()
assert compute() == compute() == compute()
print("the same threads")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads from /proc")
def test_calls_of_different_sizes_keep_their_threads():
    done = subprocess.run([sys.executable, "-c", TEAM], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "the same threads", done.stderr


SCRATCH = """
import torch, rnnfast

torch.set_num_threads(2)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

rnn, x = rnnfast.RNN(16, 2000, backend="cpu"), torch.randn(60, 16, 16)
with torch.no_grad():
    want = rnn(x)[0]
    kept = resident()
    rnnfast.release_scratch()
    freed = kept - resident()
    assert torch.equal(rnn(x)[0], want)
print(freed)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_scratch_is_given_back():
    """The packed weight [2000, 2000] is 15 MiB."""
    done = subprocess.run([sys.executable, "-c", SCRATCH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12
