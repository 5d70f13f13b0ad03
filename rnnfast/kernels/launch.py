"""A kernel with everything that a launch of it needs: to run it, or to compile it where there is no GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError

from .table import Tiles

_TYPES = {
    torch.bool: "i1",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
}


@dataclass
class Launch:
    """`arguments` are tensors, integers and None; the tensors may be on the meta device if only compiled."""

    kernel: Any  # the jitted function
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.kernel.__name__.removesuffix("_kernel")

    def options(self) -> dict[str, Any]:
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        if torch.version.hip is None:
            # A thread may use all registers that there are. By itself the assembler spills a little to fit
            # more programs on a multiprocessor (8 bytes in two kernels for sm_90), which gains nothing here.
            options["maxnreg"] = min(255, 65536 // (32 * self.warps))
        return options

    def run(self, **changed: Any) -> None:
        """Launches on the current stream; `changed` replaces some of the arguments.

        Raises:
            RuntimeError: the device refused; the message names the kernel and the sizes.
        """
        arguments = {**self.arguments, **changed}
        try:
            self.kernel[self.grid](
                **arguments,
                **self.constants,
                **self.options(),
            )
        except (RuntimeError, TritonError) as error:
            sizes = ", ".join(f"{k}={v}" for k, v in arguments.items() if isinstance(v, int))
            raise RuntimeError(f"Triton kernel {self.name} ({sizes}): {error}") from error

    def compile(self, arch: int) -> Any:
        """Compiles for NVIDIA's architecture `arch` (80, 90, ...), without a GPU.

        The specialisation that Triton derives from the arguments of a real launch is given explicitly:
        integers of value 1 are constants; pointers and integers are marked if they are multiples of 16.
        """
        varying = {p.name for p in self.kernel.params if p.do_not_specialize}
        signature, constants, attributes = {}, {}, {}
        for position, name in enumerate(self.kernel.arg_names):
            if name in self.constants:
                signature[name], constants[(position,)] = "constexpr", self.constants[name]
                continue
            value = self.arguments[name]
            if value is None or (isinstance(value, int) and value == 1 and name not in varying):
                signature[name], constants[(position,)] = "constexpr", value
                continue
            if isinstance(value, Tensor):
                signature[name] = "*" + _TYPES[value.dtype]
                divisible = True
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                divisible = value % 16 == 0 and name not in varying
            if divisible:
                attributes[(position,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=self.options())


def cover(length: int, tile: int) -> int:
    """The number of tiles that cover a length."""
    return -(-length // tile)


def tile_constants(tiles: Tiles) -> dict[str, int]:
    return {"BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k}


def strides(**matrices: Tensor) -> dict[str, int]:
    """The arguments NAME_row and NAME_col for each matrix.

    Raises:
        ValueError: a stride is so large that offsets within a tile would not fit 32 bits.
    """
    for name, matrix in matrices.items():
        if max(matrix.stride()) >= 2**24:
            raise ValueError(f"{name}: strides {matrix.stride()} must be less than 2^24 elements")
    return {
        f"{name}_{axis}": matrix.stride(i)
        for name, matrix in matrices.items()
        for i, axis in enumerate(("row", "col"))
    }
