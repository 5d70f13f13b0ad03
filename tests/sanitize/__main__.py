"""`python -m tests.sanitize [--short] [--only PART]`: the native code under sanitizers.

Parts:
    kernels: the CPU extension with AddressSanitizer and UndefinedBehaviorSanitizer, under the kernels' tests
        and then under problems of tests/fuzz.
    team: the kernels' threads and barriers under ThreadSanitizer, by the harness team.cpp.
    cuda: the CUDA kernels on the machine of tests/cuda_on_cpu, with the sanitizers of `kernels`.

The short form builds one instruction set, and runs a part of each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rnnfast.backends.cpu import native

from . import build

PYTEST = [sys.executable, "-m", "pytest", "-q", "-x"]
PYTEST.append("--capture=sys")  # the sanitizers' reports are let through
KERNELS = [
    "tests/test_cpu_kernels.py",
    "tests/test_cpu_stacks.py",
    "tests/test_cpu_cells.py",
    "tests/test_call.py",
    "tests/test_call_backward.py",
    "tests/test_functional.py",
    "tests/test_inputs.py",
]
SHORT_KERNELS = [*KERNELS[:-1], "--tier", "check"]
# A thread that copies nothing forms an address beyond the ring of tiles and doesn't use it (Copier in
# csrc/cuda/resident/rows.cuh); keeping it inside costs registers: 24 bytes of stack where 16 are allowed.
CUDA_FLAGS = " ".join([*build.ADDRESS, "-fno-sanitize=bounds"])
CUDA = ["tests/test_cuda_kernels.py", "tests/test_cuda_grid.py"]
SHORT_CUDA = ["tests/test_cuda_kernels.py", "--tier", "test", "-k", "test_dense or test_packed"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sanitize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", choices=list(PARTS))
    options = parser.parse_args()
    failed = []
    parts = {name: part for name, part in PARTS.items() if options.only in (None, name)}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: BUILDS[name](options.short), parts))
    for name, part in parts.items():
        begun = time.monotonic()
        status = part(options.short)
        print(
            f"sanitize {name}: {'clean' if status == 0 else 'FAILED'}, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        failed += [name] * (status != 0)
    return 1 if failed else 0


def _sets(short: bool) -> list[str]:
    known = native.instruction_sets() if native is not None else ["baseline"]
    sets = [name for name in known if name in build.SETS]
    return sets[1:2] or sets if short else sets


def _teams(short: bool) -> list[str]:
    """The sets that stand alone: the threads are the same in all."""
    return [name for name in _sets(short) if name != "avx512bf16"]


def _run(command: Sequence[str], **environment: str) -> int:
    print("+", " ".join(command), flush=True)
    return subprocess.run(command, cwd=build.ROOT, env={**os.environ, **environment}, check=False).returncode


def _with_address_sanitizer() -> dict[str, str]:
    """The environment of a Python in which some libraries have the sanitizer, and Python itself has not."""
    libraries = ("libasan.so", "libubsan.so", "libstdc++.so")  # the last so that exceptions are seen
    return {
        "LD_PRELOAD": " ".join(map(build.runtime, libraries)),
        # Python keeps memory to its end; the tests ask for more memory than there is.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


# A recurrence that is told of 64 units writes behind the 4 bytes that there are for them.
OVERFLOW = """
import torch
import tests.sanitize.plugin
from rnnfast.backends.cpu import native
x, out = torch.ones(64 * 64), torch.empty(1)
h_n = torch.empty(64)
native.recurrence(0, 0, 1, 1, 64, *[t.data_ptr() for t in (x, x, out, h_n)], 1)
"""


def _found(command: Sequence[str], what: str, **environment: str) -> bool:
    """Whether the sanitizer ends a program that is known to be wrong, so that its silence means something."""
    result = subprocess.run(
        command,
        cwd=build.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0 and what in result.stderr:
        return True
    print(f"{' '.join(command)}: no {what} was found\n{result.stderr[-2000:]}")
    return False


def kernels(short: bool) -> int:
    extension = str(build.cpu_extension(_sets(short)))
    environment = {**_with_address_sanitizer(), "RNNFAST_FUZZ_EXTENSION": extension}
    if not _found([sys.executable, "-c", OVERFLOW], "heap-buffer-overflow", **environment):
        return 1
    pytest = [*PYTEST, "-p", "tests.sanitize.plugin"]
    fuzz = [sys.executable, "-m", "tests.fuzz", "--extension", extension, "--seed", "1"]
    return _run([*pytest, *(SHORT_KERNELS if short else KERNELS)], **environment) or _run(
        [*fuzz, "--problems", "300" if short else "10000"], **environment
    )


def team(short: bool) -> int:
    status = 0
    for name in _teams(short):
        harness = str(build.team(name))
        if not _found([harness, "race"], "data race", TSAN_OPTIONS="halt_on_error=1"):
            return 1
        status |= _run([harness, *(["4"] if short else [])], TSAN_OPTIONS="halt_on_error=1")
    return status


def cuda(short: bool) -> int:
    tests = SHORT_CUDA if short else CUDA
    return _run([*PYTEST, *tests], CUDA_ON_CPU_FLAGS=CUDA_FLAGS, **_with_address_sanitizer())


def _build_cuda(short: bool) -> None:
    """Outside of a Python with the sanitizer, where compilers would have it, too."""
    code = "from tests.cuda_on_cpu.backend import library; library()"
    if _run([sys.executable, "-c", code], CUDA_ON_CPU_FLAGS=CUDA_FLAGS):
        raise RuntimeError("the CUDA kernels could not be built")


BUILDS = {
    "kernels": lambda short: build.cpu_extension(_sets(short)),
    "team": lambda short: [build.team(name) for name in _teams(short)],
    "cuda": _build_cuda,
}
PARTS = {"kernels": kernels, "team": team, "cuda": cuda}

if __name__ == "__main__":
    sys.exit(main())
