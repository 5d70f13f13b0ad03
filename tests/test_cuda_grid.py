"""The recurrence over the whole device (csrc/cuda/grid.cuh): its source, executed on a CPU, against float64.

Several blocks run at the same time and exchange their states as they would on a device. What that proves and
what not is in cuda_on_cpu/machine.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import pytest
import torch
from torch import Tensor

from tests import cuda_on_cpu
from tests.cases import check

pytestmark = pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing()))

KINDS = {  # name: dtype, its number in the contract, bytes
    "bfloat16": (torch.bfloat16, 2),
    "float16": (torch.float16, 3),
    "float32": (torch.float32, 0),
    "tf32": (torch.float32, 0),
}
PATIENCE = 100_000  # far more looks than a block needs here
WITHHELD = -1  # kUnsupported


class Arguments(ctypes.Structure):
    """ForwardArgs and BackwardArgs of csrc/cuda/contract.h, whose layouts are the same but for the pointers' names."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("tf32", ctypes.c_bool),
        ("T", ctypes.c_int64),
        ("B", ctypes.c_int64),
        ("H", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("reverse", ctypes.c_bool),
        ("pointers", ctypes.c_void_p * 6),
    ]


class Exchange(ctypes.Structure):
    _fields_ = [("R", ctypes.c_int64), ("stride", ctypes.c_int64), ("fault", ctypes.c_void_p)]


@lru_cache
def library():
    sources = [cuda_on_cpu.HERE / "grid_small.cu"]
    sources += [cuda_on_cpu.KERNELS / name for name in ("grid_forward.cu", "grid_backward.cu")]
    loaded = ctypes.CDLL(str(cuda_on_cpu.build("grid", sources)))
    loaded.cuda_on_cpu_last_failure.restype = ctypes.c_char_p
    return loaded


@dataclass
class Case:
    """One layer's recurrence in one dtype; `expected` is computed from the same numbers in float64."""

    kind: str
    T: int
    H: int
    lengths: list[int]  # of the sequences, longest first
    nonlinearity: str = "tanh"
    reverse: bool = False
    seed: int = 0

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*size):
            return torch.randn(size, generator=generator, dtype=torch.float64).to(self.dtype)

        B = len(self.lengths)
        self.sizes = [sum(n > t for n in self.lengths) for t in range(self.T)]
        self.offsets = torch.tensor([sum(self.sizes[:t]) for t in range(self.T + 1)])
        R = sum(self.sizes)
        weight = torch.randn(self.H, self.H, generator=generator, dtype=torch.float64)
        self.weight = (weight * 0.5 / torch.linalg.matrix_norm(weight, 2)).to(self.dtype)
        self.pre, self.h0 = normal(R, self.H), normal(B, self.H).tanh()
        self.grad_out: Optional[Tensor] = normal(R, self.H)
        self.grad_hn: Optional[Tensor] = normal(B, self.H)

    @property
    def dtype(self):
        return KINDS[self.kind][0]

    @property
    def packed(self):
        return len(set(self.lengths)) > 1

    def tolerance(self) -> float:
        """A rounding to the stored type at each step, which the state's contraction forgets; the sum's own roundings;
        and for TF32 those of its operands (half of 2^-10 each, of products whose squares add up to less than 1/4)."""
        operands = 2**-10 if self.kind == "tf32" else 0.0
        return 4 * torch.finfo(self.dtype).eps + operands + 2 * torch.finfo(torch.float32).eps * self.H**0.5

    def steps(self):
        return range(self.T - 1, -1, -1) if self.reverse else range(self.T)

    def forward(self) -> tuple[Tensor, Tensor]:
        weight, pre, h = self.weight.double(), self.pre.double(), self.h0.double().clone()
        act = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        out = torch.empty_like(pre)
        for t in self.steps():
            n, row = self.sizes[t], int(self.offsets[t])
            h[:n] = act(pre[row : row + n] + h[:n] @ weight.T)
            out[row : row + n] = h[:n]
        return out, h

    def backward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        weight, out = self.weight.double(), out.double()
        dh = torch.zeros_like(self.h0).double() if self.grad_hn is None else self.grad_hn.double()
        derivative = 1 - out**2 if self.nonlinearity == "tanh" else (out > 0).double()
        dpre = torch.zeros_like(out) if self.grad_out is None else self.grad_out.double()
        for t in reversed(self.steps()):
            rows = slice(int(self.offsets[t]), int(self.offsets[t + 1]))
            n = self.sizes[t]
            dpre[rows] = (dpre[rows] + dh[:n]) * derivative[rows]
            dh[:n] = dpre[rows] @ weight
        return dpre, dh

    # ---- the kernels ----

    def run(
        self,
        direction: str,
        first: Tensor,
        *pointers: Optional[Tensor],
        seed=0,
        groups=1,
        missing=0,
        patience=PATIENCE,
        multiprocessors=64,
    ) -> tuple[int, int]:
        """The launcher's result, and the step at which a block lost its patience, or 0."""
        fault = torch.zeros(1, dtype=torch.int32)
        addresses = [0 if p is None else p.data_ptr() for p in pointers]
        arguments = Arguments(
            KINDS[self.kind][1],
            int(self.nonlinearity == "relu"),
            self.kind == "tf32",
            self.T,
            len(self.lengths),
            self.H,
            self.offsets.data_ptr() if self.packed else None,
            self.reverse,
            (ctypes.c_void_p * 6)(*addresses),
        )
        exchange = Exchange(int(self.offsets[-1]), first.shape[1], fault.data_ptr())
        native = library()
        native.cuda_on_cpu_configure(seed, multiprocessors, ctypes.c_int64(100_000), ctypes.c_uint64(1000))
        result = getattr(native, f"run_grid_{direction}")(
            ctypes.byref(arguments),
            ctypes.byref(exchange),
            ctypes.c_int64(groups),
            ctypes.c_int64(missing),
            ctypes.c_uint32(patience),
        )
        if result > 0:
            pytest.fail(native.cuda_on_cpu_last_failure().decode())
        return result, int(fault)

    def padded(self, matrix: Tensor) -> Tensor:
        """With rows that are multiples of 16 bytes."""
        return torch.nn.functional.pad(matrix, (0, -self.H % (16 // self.dtype.itemsize))).contiguous()

    def run_forward(self, **options):
        y, h_n = self.padded(poisoned(self.pre)), poisoned(self.h0)
        status = self.run("forward", y, self.pre, self.padded(self.h0), self.weight, y, h_n, **options)
        assert y[:, self.H :].eq(0).all()
        return y[:, : self.H], h_n, status

    def run_backward(self, out: Tensor, **options):
        y, dh0 = self.padded(poisoned(self.pre)), poisoned(self.h0)
        status = self.run("backward", y, self.grad_out, self.grad_hn, out, self.weight, y, dh0, **options)
        assert y[:, self.H :].eq(0).all()
        return y[:, : self.H], dh0, status

    def check(self, **options):
        """Both directions against float64, bit for bit the same however the threads are scheduled."""
        out, h_n = self.forward()
        y, last, status = self.run_forward(**options)
        assert status == (0, 0)
        check("out", y, out, self.tolerance())
        check("h_n", last, h_n, self.tolerance())
        rounded = out.to(self.dtype)
        dpre, dh0 = self.backward(rounded)
        g, g0, status = self.run_backward(rounded, **options)
        assert status == (0, 0)
        check("dpre", g, dpre, self.tolerance())
        check("dh0", g0, dh0, self.tolerance())
        return y, last, g, g0


def poisoned(like: Tensor) -> Tensor:
    return torch.full_like(like, float("nan"))


DENSE = {"one": (1, 1), "two tiles": (3, 11), "full tile": (5, 8)}  # T, B


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("H", [5, 32, 47, 64])
@pytest.mark.parametrize("size", DENSE)
def test_dense(kind, nonlinearity, H, size):
    T, B = DENSE[size]
    Case(kind, T, H, [T] * B, nonlinearity, reverse=H == 47).check(groups=1 + (B > 8 and H == 32))
