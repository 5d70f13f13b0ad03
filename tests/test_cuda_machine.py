"""The machine that the CUDA kernels are tested on: it runs what is right and finds what is wrong."""

import ctypes
import re
from functools import lru_cache

import pytest
import torch

from tests import cuda_on_cpu

pytestmark = pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing()))

THREADS, ROUNDS = 64, 4
FAULTS = {
    name: i
    for i, name in enumerate(
        re.findall(
            r"^  (k\w+),", (cuda_on_cpu.HERE / "broken.cu").read_text().split("enum Fault")[1], re.MULTILINE
        )
    )
}


@lru_cache
def library(*flags):
    loaded = ctypes.CDLL(str(cuda_on_cpu.build("broken", [cuda_on_cpu.HERE / "broken.cu"], flags)))
    loaded.cuda_on_cpu_last_failure.restype = ctypes.c_char_p
    return loaded


def run(fault, seed=0, blocks=3, cooperative=False, multiprocessors=16, flags=()):
    data = torch.full((blocks, THREADS), -1, dtype=torch.int32)
    flag = torch.zeros(2, dtype=torch.int32)
    native = library(*flags)
    native.cuda_on_cpu_configure(seed, multiprocessors, ctypes.c_int64(1000), ctypes.c_uint64(1000))
    result = native.run_faulty(
        FAULTS[fault], blocks, cooperative, ctypes.c_void_p(data.data_ptr()), ctypes.c_void_p(flag.data_ptr())
    )
    return result, native.cuda_on_cpu_last_failure().decode(), data


def expected(blocks=3):
    data = 1 + torch.arange(THREADS) + 100 * torch.arange(blocks)[:, None]
    for _ in range(ROUNDS):
        data = data + data.roll(-1, 1)
    return data.int()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cooperative", [False, True])
def test_correct_kernel(seed, cooperative):
    result, message, data = run("kNone", seed, cooperative=cooperative)
    assert (result, message) == (0, "")
    torch.testing.assert_close(data, expected())


@pytest.mark.slow
def test_fibers_of_other_processors():
    result, message, data = run("kNone", cooperative=True, flags=("-DCUDA_ON_CPU_UCONTEXT",))
    assert (result, message) == (0, "")
    torch.testing.assert_close(data, expected())


@pytest.mark.parametrize("fault", ["kNoBarrier", "kOneBufferTooFew", "kCopyNotAwaited"])
def test_race_changes_the_result_in_some_order(fault):
    results = [run(fault, seed) for seed in range(5)]
    assert any(result != 0 or not torch.equal(data, expected()) for result, _, data in results)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kLonelyBarrier", r"deadlock: block \d: 32 threads at a barrier"),
        ("kDivergentWarp", "while other lanes of the warp are at"),
        ("kPollForNothing", r"deadlock, nothing but polling: block \d: 64 threads at a poll"),
        ("kWaitForNextBlock", r"deadlock, nothing but polling: block 0"),
        ("kPastTheEnd", r"block \d wrote past its shared memory of 1536 bytes"),
        ("kMisaligned", "ldmatrix: address .* is not a multiple of 16"),
    ],
)
def test_fault_is_named(fault, message):
    result, actual, _ = run(fault)
    assert result == 719
    assert re.search(message, actual), actual


def test_cooperative_blocks_run_at_the_same_time():
    result, message, data = run("kWaitForNextBlock", cooperative=True)
    assert (result, message) == (0, "")
    torch.testing.assert_close(data, expected())


def test_relaxed_stores_arrive_in_any_order_but_for_a_fence():
    def results(fault):
        return [torch.equal(run(fault, seed, cooperative=True)[2], expected()) for seed in range(10)]

    assert not all(results("kFlagAlone"))
    assert all(results("kFlagAfterFence"))


def test_cooperative_grid_that_does_not_fit():
    assert run("kNone", blocks=5, cooperative=True, multiprocessors=4)[0] == 720
