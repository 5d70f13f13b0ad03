"""The cuda backend, kernels and all, on CPU tensors."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnfast.backends.cuda import CudaBackend
from tests.cuda_on_cpu import KERNELS, build


def library() -> Path:
    """The file that `native` loads, built if need be."""
    return build("_cuda", [*sorted(KERNELS.rglob("*.cu")), KERNELS / "bindings.cpp"])


@lru_cache
def native() -> Any:
    """What rnnfast._cuda is, built for the CPU: the same bindings, launchers and kernels."""
    path = str(library())
    spec = spec_from_file_location("_cuda", path, loader=ExtensionFileLoader("_cuda", path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configure(seed: int = 0, multiprocessors: int = 20, idle_rounds: int = 100_000, tick: int = 1000) -> None:
    """Sets the machine's options (machine.h)."""
    ctypes.CDLL(native().__file__).cuda_on_cpu_configure(
        seed, multiprocessors, ctypes.c_int64(idle_rounds), ctypes.c_uint64(tick)
    )


class CudaOnCpu(CudaBackend):
    name = "cuda-on-cpu"
    device = "cpu"

    def __init__(self) -> None:
        super().__init__(native())

    def unavailable(self) -> None:
        return None

    def _pinned_word(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int32)

    def _on(self, tensor: Tensor) -> AbstractContextManager[object]:
        return nullcontext()

    def _stream(self, tensor: Tensor) -> int:
        return 0
