"""Builds a GPU rung and calls it: on the GPU where there is one, else on the CPU machine of the tests.

The machine (tests/cuda_on_cpu) runs the same source, compiled by g++. It finds missing barriers and waits
that never end, and says nothing about time.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from bench.machine.gpu_latency import KERNELS, nvcc

FOLDER = Path(__file__).parent
CACHE = FOLDER.parents[1] / "build" / "study"
FLAGS = ("-std=c++17", "-O3", "-Werror", "all-warnings", "-I", str(KERNELS))
MULTIPROCESSORS = 40  # of the machine: blocks that run at the same time
Run = Callable[[Tensor, Tensor, Tensor], Tensor]  # pre [T, B, H], w_hh [H, H], h0 [B, H] -> out [T, B, H]


class Missing(Exception):
    """What a rung needs and this machine lacks."""


def where() -> str:
    """ "cuda" or "cpu": where a rung runs here."""
    return "cuda" if torch.cuda.is_available() and nvcc() is not None else "cpu"


@lru_cache
def on_machine(file: Path, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library of a .cu file, built for the CPU machine of the tests. Raises Missing."""
    try:
        from tests.cuda_on_cpu import build, missing
    except ImportError:
        raise Missing("the machine for CUDA kernels without a GPU is in tests/, which is not here") from None
    if missing() is not None:
        raise Missing(str(missing()))
    loaded = ctypes.CDLL(str(build(file.stem, [file], [f"-D{name}" for name in defines])))
    loaded.cuda_on_cpu_last_failure.restype = ctypes.c_char_p
    return loaded


def cubin(file: Path, architecture: int) -> Path:
    """The machine code of a .cu file for sm_`architecture`. Raises Missing without nvcc."""
    return _compile(file, [f"-arch=sm_{architecture}", "-cubin"], f"sm_{architecture}.cubin")


@lru_cache
def on_gpu(file: Path) -> ctypes.CDLL:
    """The library of a .cu file for the GPU at hand."""
    major, minor = torch.cuda.get_device_capability()
    flags = [f"-arch=sm_{major}{minor}", "-shared", "-cudart", "static", "-Xcompiler", "-fPIC"]
    return ctypes.CDLL(str(_compile(file, flags, f"sm_{major}{minor}.so")))


def _compile(file: Path, flags: Sequence[str], ending: str) -> Path:
    compiler = nvcc()
    if compiler is None:
        raise Missing("there is no nvcc in $CUDA_HOME, on the PATH or in /usr/local/cuda")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr((version, FLAGS, flags)).encode() + file.read_bytes())
    for header in sorted([*KERNELS.glob("*.cuh"), *KERNELS.glob("*.h"), *KERNELS.parent.glob("*.h")]):
        digest.update(header.read_bytes())
    target = CACHE / f"{file.stem}-{digest.hexdigest()[:16]}.{ending}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        command = [compiler, *FLAGS, *flags, str(file), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"{file.name} doesn't compile:\n{(done.stdout + done.stderr)[-2000:]}")
        partial.rename(target)  # at once, so that an interrupted build leaves no half of it
    return target


def configure(library: ctypes.CDLL, seed: int = 0, multiprocessors: int = MULTIPROCESSORS) -> None:
    """The order in which the machine's threads run, and how many blocks it holds."""
    library.cuda_on_cpu_configure(seed, multiprocessors, ctypes.c_int64(1000), ctypes.c_uint64(1000))


def call(library: ctypes.CDLL, pre: Tensor, w_hh: Tensor, h0: Tensor) -> Tensor:
    """out [T, B, H] of dense float32 tensors on the device of the library. `pre` may be any NaN or infinity.

    Raises:
        ValueError: a tensor is not dense float32, or the sizes don't fit each other.
        RuntimeError: the launch failed; the message has the reason.
    """
    steps, batch, hidden = pre.shape
    if w_hh.shape != (hidden, hidden) or h0.shape != (batch, hidden):
        raise ValueError(f"pre {tuple(pre.shape)}, w_hh {tuple(w_hh.shape)}, h0 {tuple(h0.shape)} don't fit")
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in (pre, w_hh, h0)):
        raise ValueError("a rung takes contiguous tensors of float32")
    out = torch.full_like(pre, torch.nan)
    scratch = torch.full((1,), -1, dtype=torch.int32, device=pre.device)
    stream = torch.cuda.current_stream().cuda_stream if pre.is_cuda else 0
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (pre, w_hh, h0, out, scratch)]
    error = library.rung(*pointers, steps, batch, hidden, ctypes.c_size_t(stream))
    if error:
        reason = "" if pre.is_cuda else library.cuda_on_cpu_last_failure().decode()
        raise RuntimeError(f"cudaError {error}{f': {reason}' if reason else ''}")
    return out


def launches(library: ctypes.CDLL) -> int:
    """How many kernels the library has launched since it was loaded."""
    return ctypes.c_int.in_dll(library, "launches").value


def native(file: Path) -> Run:
    """What runs a .cu rung here. Raises Missing."""
    library = on_gpu(file) if where() == "cuda" else on_machine(file)
    if where() == "cpu":
        configure(library)
    return lambda pre, w_hh, h0: call(library, pre, w_hh, h0)


@lru_cache
def triton_module(file: Path) -> Any:
    """The module of a Triton rung. Raises Missing."""
    if importlib.util.find_spec("triton") is None:
        raise Missing("the package triton is not installed")
    spec = importlib.util.spec_from_file_location(f"study_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interpreted() -> Optional[str]:
    """Why Triton can run nothing here, or None."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "there is no CUDA device; TRITON_INTERPRET=1 runs it on the CPU"


def triton(file: Path) -> Run:
    """What runs a Triton rung here. Raises Missing."""
    reason = interpreted()
    if reason is not None:
        raise Missing(reason)
    module = triton_module(file)

    def run(pre: Tensor, w_hh: Tensor, h0: Tensor) -> Tensor:
        out = torch.full_like(pre, torch.nan)
        module.launch(pre, w_hh, h0, out)
        return out

    return run
