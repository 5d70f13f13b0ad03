"""The CUDA C++ kernels (csrc/cuda): the fused step, and whole sequences with W_hh resident in registers.

Float32 products follow `torch.backends.cudnn.allow_tf32`, as torch.nn.RNN's do (see `precision`). No kernel
uses atomics or splits a sum by the batch: results do not depend on the run nor, for a sequence, on the batch
it is in.

Nothing here waits for the device, and memory comes from torch's allocator, so that calls can be captured in a
CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Optional

import torch
from torch import Tensor

from .base import Grads, Needs, Problem
from .precision import products_as_cudnn, tf32
from .recurrence import RecurrenceBackend, Walk

native: Any = None
MISSING: Optional[str] = None
try:
    native = import_module("rnnfast._cuda")
except ImportError as error:
    MISSING = f"the CUDA extension is not built ({error}); install rnnfast where there is nvcc"

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ACTIVATIONS = {"tanh": 0, "relu": 1}
OLDEST = 80  # compute capability, 10 * major + minor: mma of bfloat16, cp.async


class CudaBackend(RecurrenceBackend):
    name = "cuda"
    device = "cuda"  # the type of device whose tensors it takes

    def unavailable(self) -> Optional[str]:
        if native is None:
            return MISSING
        if not torch.cuda.is_available():
            return "no CUDA device"
        capability = native.current_device()[0]
        if capability < OLDEST:
            return f"the GPU has compute capability {_dotted(capability)}, the kernels need {_dotted(OLDEST)}"
        return None

    def details(self) -> str:
        capability, multiprocessors, _ = native.current_device()
        return f"compute capability {_dotted(capability)}, {multiprocessors} multiprocessors"

    def refuses(self, problem: Problem) -> Optional[str]:
        if problem.device != self.device:
            return f"it takes tensors on {self.device}, these are on {problem.device}"
        dtype = getattr(torch, problem.dtype)
        if dtype not in DTYPES:
            return f"dtype {problem.dtype} is not one of float64, float32, bfloat16, float16"
        if problem.kind == "sequence":
            limit = native.resident_limit(DTYPES[dtype], _tf32(dtype))
            if limit == 0:
                return f"there is no kernel for sequences of {problem.dtype}, only for steps"
            if problem.hidden_size > limit:
                return (
                    f"hidden_size {problem.hidden_size} is over {limit}, up to which W_hh of"
                    f" {problem.dtype} fits into registers"
                )
        return None

    def step_forward(
        self,
        x: Tensor,
        h: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Optional[Tensor],
        bias_hh: Optional[Tensor],
        nonlinearity: str,
    ) -> Tensor:
        out = torch.empty_like(h)
        sizes = (h.shape[0], x.shape[1], h.shape[1])
        tensors = (x, h, weight_ih, weight_hh, bias_ih, bias_hh, out)
        self._launch("step", h, nonlinearity, dict(zip("BIH", sizes, strict=True)), sizes, tensors)
        return out

    def step_backward(
        self,
        grad: Tensor,
        x: Tensor,
        h: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        out: Tensor,
        nonlinearity: str,
        needs: Needs,
    ) -> Grads:
        dpre = torch.empty_like(out)
        dx = torch.empty_like(x) if needs.x else None
        dh = torch.empty_like(h) if needs.h0 else None
        sizes = (h.shape[0], x.shape[1], h.shape[1])
        tensors = (grad, out, weight_ih, weight_hh, dpre, dx, dh)
        self._launch("step_backward", h, nonlinearity, dict(zip("BIH", sizes, strict=True)), sizes, tensors)
        # Sums over the batch are plain products, and large enough to pay only where torch's are good at them.
        with torch.no_grad(), products_as_cudnn():
            return Grads(
                x=dx,
                h0=dh,
                weight_ih=dpre.t() @ x if needs.weight_ih else None,
                weight_hh=dpre.t() @ h if needs.weight_hh else None,
                bias=dpre.sum(0) if needs.bias else None,
            )

    def recurrence_forward(
        self, pre: Tensor, h0: Tensor, weight_hh: Tensor, nonlinearity: str, walk: Walk
    ) -> tuple[Tensor, Tensor]:
        h_n = torch.empty_like(h0)
        tensors = (pre, _aligned(h0), _aligned(weight_hh), pre, h_n)
        self._launch_recurrence("resident_forward", h0, nonlinearity, walk, tensors)
        return pre, h_n

    def recurrence_backward(
        self,
        grad_out: Optional[Tensor],
        grad_hn: Optional[Tensor],
        out: Tensor,
        weight_hh: Tensor,
        nonlinearity: str,
        walk: Walk,
    ) -> tuple[Tensor, Tensor]:
        dpre, dh0 = torch.empty_like(out), out.new_empty(walk.batch, out.shape[1])
        tensors = (*map(_aligned, (grad_out, grad_hn, out, weight_hh)), dpre, dh0)
        self._launch_recurrence("resident_backward", dh0, nonlinearity, walk, tensors)
        return dpre, dh0

    def _launch_recurrence(
        self, kernel: str, state: Tensor, nonlinearity: str, walk: Walk, tensors: tuple[Optional[Tensor], ...]
    ) -> None:
        sizes = {"T": walk.steps, "B": walk.batch, "H": state.shape[1]}
        walk_arguments = (*sizes.values(), _address(walk.offsets), walk.reverse)
        self._launch(kernel, state, nonlinearity, sizes, walk_arguments, tensors)

    def _launch(
        self,
        kernel: str,
        like: Tensor,
        nonlinearity: str,
        sizes: dict[str, int],
        arguments: tuple[int, ...],
        tensors: tuple[Optional[Tensor], ...],
    ) -> None:
        """Calls a launcher of csrc/cuda/bindings.cpp on the device and the current stream of `like`.

        Raises:
            RuntimeError: the launch failed; kernel and sizes are named.
        """
        with self._on(like) as stream:
            result = getattr(native, kernel)(
                DTYPES[like.dtype],
                ACTIVATIONS[nonlinearity],
                _tf32(like.dtype),
                *arguments,
                *map(_address, tensors),
                stream,
            )
        if result != 0:
            shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise RuntimeError(
                f"CUDA kernel {kernel} failed for {like.dtype}, {shape}: {native.message(result)}"
            )

    @contextmanager
    def _on(self, tensor: Tensor) -> Iterator[int]:
        """Makes the tensor's device current, and gives its current stream."""
        with torch.cuda.device(tensor.device):
            yield torch.cuda.current_stream().cuda_stream


def _tf32(dtype: torch.dtype) -> bool:
    return dtype is torch.float32 and tf32()


def _address(tensor: Optional[Tensor]) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _aligned(tensor: Optional[Tensor]) -> Optional[Tensor]:
    """The kernels of the recurrence load pairs of 16-bit elements, which a view's first may not begin."""
    return tensor if tensor is None or tensor.data_ptr() % 16 == 0 else tensor.clone()


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
