"""When something fails on the way: the error is clear, nothing is left behind, and the next call is right."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import rnnfast
from rnnfast.backends.cpu import native

pytestmark = pytest.mark.skipif(native is None, reason="needs the native extension")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
COMPILER = shutil.which(os.environ.get("CC", "cc").split()[0])

# Refuses the n-th allocation that the extension asks for, counted from refuse(n) on.
REFUSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

static int left, asked;
void refuse(int n) { asked = 0; left = n; }
int requests(void) { return asked; }

static int refused(void* caller) {
  Dl_info info;
  if (!left || !dladdr(caller, &info) || !strstr(info.dli_fname, "_cpu")) return 0;
  return __atomic_add_fetch(&asked, 1, __ATOMIC_RELAXED) == left;
}
#define REAL(name) __typeof__(name)* real = (__typeof__(name)*)dlsym(RTLD_NEXT, #name)
int posix_memalign(void** to, size_t alignment, size_t bytes) {
  if (refused(__builtin_return_address(0))) return ENOMEM;
  REAL(posix_memalign);
  return real(to, alignment, bytes);
}
void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (refused(__builtin_return_address(0))) return MAP_FAILED;
  REAL(mmap);
  return real(at, bytes, protection, flags, file, offset);
}
extern void* __libc_calloc(size_t, size_t);
void* calloc(size_t count, size_t bytes) {
  return refused(__builtin_return_address(0)) ? NULL : __libc_calloc(count, bytes);
}
"""

# T, B, I, H: in steps, in one walk, over two threads' rows, over two threads' columns, in several passes.
SHAPES = [(1, 3, 5, 7), (6, 3, 5, 40), (4, 32, 16, 64), (4, 1, 30, 400), (60, 70, 3, 20)]


def train(shape, dtype, packed=False, seed=0):
    """Output, h_n and all gradients of one training call, in a list."""
    steps, batch, inputs, hidden = shape
    torch.manual_seed(seed)
    rnn = rnnfast.RNN(inputs, hidden, backend="cpu", dtype=dtype)
    x = torch.randn(steps, batch, inputs).to(dtype)
    if packed:
        lengths = torch.arange(batch) % steps + 1
        sequences = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, h_n = rnn(sequences)
        output = output.data
    else:
        output, h_n = rnn(x)
    (output.double().square().sum() + h_n.double().sum()).backward()
    return [output.detach(), h_n.detach(), *(p.grad for p in rnn.parameters())]


def identical(first, second):
    return all(map(torch.equal, first, second))


def in_a_new_thread(function):
    """Its result, or the exception that it raised; the thread begins without scratch memory in reserve."""
    result = []

    def run():
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def refuse_each_in_turn(library):
    """Every allocation of every problem refused once; prints how many. Runs in a process of its own."""
    shim = ctypes.CDLL(library)
    count = 0
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            for dtype, packed in ((torch.float32, False), (torch.bfloat16, True)):
                expected = train(shape, dtype, packed)
                for n in range(1, 1000):
                    shim.refuse(n)
                    got = in_a_new_thread(lambda: train(shape, dtype, packed))  # noqa: B023
                    requests = shim.requests()
                    shim.refuse(0)
                    if requests < n:  # all have been refused by now
                        assert identical(got, expected)
                        break
                    count += 1
                    assert isinstance(got, MemoryError), (threads, shape, dtype, packed, n, got)
                    assert identical(train(shape, dtype, packed), expected)
                assert n > 1, "no allocation was seen"
    print(count)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs a C compiler and LD_PRELOAD")
def test_every_allocation_refused_in_turn(tmp_path):
    source, library = tmp_path / "refuse.c", tmp_path / "refuse.so"
    source.write_text(REFUSING)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"], check=True)
    code = f"from tests.test_faults import refuse_each_in_turn; refuse_each_in_turn({str(library)!r})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "LD_PRELOAD": str(library),
            "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100


class Stop(Exception):
    pass


def stop(*args, **kwargs):
    raise stop.error


PLACES = [
    "pre-hook",
    "hook",
    "backward pre-hook",
    "backward hook",
    "gradient hook",
    "pack",
    "unpack",
    "accumulated",
]


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt()], ids=["exception", "interrupt"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("build", ["RNN", "deep", "RNNCell"])
def test_hook_that_raises(build, place, error):
    torch.manual_seed(0)
    module = {
        "RNN": lambda: rnnfast.RNN(5, 7),
        "deep": lambda: rnnfast.RNN(5, 7, 2, bidirectional=True),
        "RNNCell": lambda: rnnfast.RNNCell(5, 7),
    }[build]()
    x = torch.randn(*([4] if build != "RNNCell" else []), 3, 5, requires_grad=True)

    def call(watch=False):
        module.zero_grad()
        x.grad = None
        output = module(x)
        output = output if build == "RNNCell" else output[0]
        if watch:
            output.register_hook(stop)
        output.square().sum().backward()
        return [output.detach(), x.grad, *(p.grad for p in module.parameters())]

    expected = call()
    stop.error = error
    with pytest.raises(type(error)):
        if place == "gradient hook":
            call(watch=True)
        elif place in ("pack", "unpack"):
            hooks = (stop, lambda t: t) if place == "pack" else (lambda t: t, stop)
            with torch.autograd.graph.saved_tensors_hooks(*hooks):
                call()
        else:
            register = {
                "pre-hook": module.register_forward_pre_hook,
                "hook": module.register_forward_hook,
                "backward pre-hook": module.register_full_backward_pre_hook,
                "backward hook": module.register_full_backward_hook,
                "accumulated": next(module.parameters()).register_post_accumulate_grad_hook,
            }[place]
            handle = register(stop)
            try:
                call()
            finally:
                handle.remove()
    assert torch.is_grad_enabled()
    assert identical(call(), expected)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_interrupts_while_kernels_run():
    shape, dtype = (30, 16, 40, 96), torch.float32
    expected = train(shape, dtype)
    interrupts = 0

    def interrupt(*args):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        end = time.monotonic() + 60.0
        delay = random.Random(0)
        while interrupts < 20 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, delay.uniform(1e-4, 3e-3))
                train(shape, dtype)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
                # Off where the no_grad of torch in the making of a module was cut short.
                torch.set_grad_enabled(True)
            assert identical(train(shape, dtype), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts == 20


def _train_in_child(queue, shape):
    queue.put([t.numpy().tobytes() for t in train(shape, torch.float32)])


@pytest.mark.threads
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_with_a_parallel_region_behind_it():
    # Large enough for two threads of ours; torch itself hangs in a child where it computes on several.
    shape, before = (8, 30, 64, 96), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = train(shape, torch.float32)  # on two threads
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            queue = context.Queue()
            child = context.Process(target=_train_in_child, args=(queue, shape))
            child.start()
            got = queue.get(timeout=60)
            child.join(60)
            assert child.exitcode == 0
            assert got == [t.numpy().tobytes() for t in expected]
            assert identical(train(shape, torch.float32), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.threads
def test_threads_that_grow_and_shrink():
    before, numbers = torch.get_num_threads(), random.Random(0)
    try:
        torch.set_num_threads(1)
        expected = [train(shape, torch.float32) for shape in SHAPES]
        for _ in range(60):
            torch.set_num_threads(numbers.randint(1, 5))
            i = numbers.randrange(len(SHAPES))
            assert identical(train(SHAPES[i], torch.float32), expected[i])
    finally:
        torch.set_num_threads(before)


def keep_calling(calls):
    """Prints by how many KiB resident memory grows over calls; for a process of its own."""
    numbers = random.Random(0)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    def call(shapes):
        for _ in range(shapes):
            size = [numbers.choice(sizes) for sizes in ((1, 2, 4, 7), (1, 3, 5), (1, 6), (1, 4, 9, 17, 40))]
            train(
                size, numbers.choice((torch.float32, torch.float64, torch.bfloat16)), numbers.random() < 0.3
            )

    call(2000)  # until dispatch and the allocator have seen them all
    first = resident()
    call(calls)
    print(resident() - first)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("calls", [1_000, pytest.param(10_000, marks=pytest.mark.thorough)])
def test_memory_stays_flat(calls):
    """A leak of one small tensor in each of 10,000 calls would be 5 MiB; allocators vary by less."""
    result = subprocess.run(
        [sys.executable, "-c", f"from tests.test_faults import keep_calling; keep_calling({calls})"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 4096
