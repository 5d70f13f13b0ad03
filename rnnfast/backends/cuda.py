"""The CUDA C++ kernels (csrc/cuda): the fused step, and whole sequences with W_hh resident in registers.

Two designs run a sequence. Where W_hh fits into the registers of one block (`resident`), blocks share the
batch and never wait for each other. Beyond (`grid`), all blocks of the device share W_hh and exchange the
state at every step.

Float32 products follow `torch.backends.cudnn.allow_tf32`, as torch.nn.RNN's do (see `precision`). No kernel
uses atomics or splits a sum by the batch: results do not depend on the run nor, for a sequence, on the batch
it is in.

Nothing here waits for the device, and memory comes from torch's allocator, so that calls can be captured in a
CUDA graph. Packed sequences are an exception (see `recurrence`).

Python limits small layers. On an H200 a call of 32 steps with H of 64 or 128 outside bfloat16 takes 74 to 182
us forward and 640 to 1100 us in training whatever it computes, cuDNN's 62 to 148 and 490 to 980. A training
call is nine launches; the gradients of the biases and the second product of W_hh's gradient could be spared.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Optional

import torch
from torch import Tensor
from torch.cuda import current_device

from ..call import extras
from ..layer import Grads, Layer, Needs, Recurrence, Sequences
from ..native import DTYPES as native_dtypes
from .base import Problem
from .precision import products_as_cudnn, tf32, unrecorded
from .recurrence import RecurrenceBackend

native: Any = None
MISSING: Optional[str] = None
try:
    native = import_module("rnnfast._cuda")
except ImportError as error:
    MISSING = f"the CUDA extension is not built ({error}); install rnnfast where there is nvcc"

DTYPES = {dtype: number for number, dtype in enumerate(native_dtypes)}  # as csrc/common.h numbers them
ACTIVATIONS = {"tanh": 0, "relu": 1}
# Compute capabilities, 10 * major + minor.
OLDEST = 80  # mma of bfloat16, cp.async
MEASURED = 90  # H100


class CudaBackend(RecurrenceBackend):
    name = "cuda"
    device = "cuda"  # the type of device whose tensors it takes

    def __init__(self, native: Any = native) -> None:
        self.native = native  # rnnfast._cuda or what takes its place
        self._faults: dict[torch.device, Tensor] = {}  # see _fault

    def unavailable(self) -> Optional[str]:
        if self.native is None:
            return MISSING
        if not torch.cuda.is_available() or self.native.device_count() == 0:
            return "no CUDA device"
        capability = self.native.current_device()[0]
        if capability < OLDEST:
            return f"the GPU has compute capability {_dotted(capability)}, the kernels need {_dotted(OLDEST)}"
        return None

    def measured(self) -> bool:
        return self.native.current_device()[0] == MEASURED

    def details(self) -> str:
        capability, multiprocessors, _ = self.native.current_device()
        return f"compute capability {_dotted(capability)}, {multiprocessors} multiprocessors"

    def refuses(self, problem: Problem) -> Optional[str]:
        if problem.device != self.device:
            return f"it takes tensors on {self.device}, these are on {problem.device}"
        dtype = getattr(torch, problem.dtype)
        if dtype not in DTYPES:
            return f"dtype {problem.dtype} is not one of float64, float32, bfloat16, float16"
        if problem.kind == "sequence":
            number, rounded = DTYPES[dtype], dtype is torch.float32 and problem.tf32
            limit = max(self.native.resident_limit(number), self.native.grid_limit(number, rounded))
            if limit == 0:
                return f"there is no kernel for sequences of {problem.dtype}, only for steps"
            if problem.hidden_size > limit:
                return (
                    f"hidden_size {problem.hidden_size} is over {limit}, up to which W_hh of"
                    f" {problem.dtype} fits into the registers of the device"
                )
        # An elman cell's noise is added to the input product, before any kernel.
        found = extras(problem.nonlinearity, problem.cell, False, problem.resets)
        return f"it has no kernel with {found}" if found else None

    def step_forward(self, layer: Layer) -> Tensor:
        out = torch.empty_like(layer.h0)
        self._launch_step("step", layer, (*layer[:6], out))
        return out

    def step_backward(self, layer: Layer, out: Tensor, grad: Optional[Tensor], needs: Needs) -> Grads:
        x, h = layer.x, layer.h0
        grad = torch.zeros_like(out) if grad is None else grad
        dpre = torch.empty_like(out)
        dx = out.new_empty(x.shape) if needs.x else None
        dh = out.new_empty(h.shape) if needs.h0 else None
        self._launch_step("step_backward", layer, (grad, out, layer.weight_ih, layer.weight_hh, dpre, dx, dh))
        # The sums over the batch are plain products, which torch computes.
        with unrecorded(), products_as_cudnn(x.dtype):
            columns = dpre.t()
            return Grads(
                x=dx,
                h0=dh,
                weight_ih=columns @ x if needs.weight_ih else None,
                weight_hh=columns @ h if needs.weight_hh else None,
                bias=dpre.sum(0) if needs.bias else None,
            )

    def _launch_step(self, kernel: str, layer: Layer, tensors: tuple[Optional[Tensor], ...]) -> None:
        sizes = {"B": layer.h0.shape[0], "I": layer.x.shape[1], "H": layer.h0.shape[1]}
        self._launch(kernel, layer.h0, layer.nonlinearity, sizes, tuple(sizes.values()), tensors)

    def recurrence_forward(
        self, pre: Tensor, h0: Tensor, weight_hh: Tensor, recurrence: Recurrence
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        nonlinearity, sequences = recurrence.nonlinearity, recurrence.sequences
        h_n = torch.empty_like(h0)
        if self._resident(h0):
            out = _aligned(_padded(pre, _row(pre)))
            tensors = (out, h0, _aligned(weight_hh), out, h_n)
            self._launch_recurrence("resident_forward", h0, nonlinearity, sequences, (out.shape[1],), tensors)
            return _narrow(out, h0.shape[1]), h_n, None
        out = _with_padded_rows(pre)
        exchange = (*out.shape, self._fault(h0.device))
        tensors = (pre, _aligned(_padded(h0, out.shape[1])), weight_hh, out, h_n)
        self._launch_recurrence("grid_forward", h0, nonlinearity, sequences, exchange, tensors)
        return _narrow(out, h0.shape[1]), h_n, None

    def recurrence_backward(
        self,
        grad_out: Optional[Tensor],
        grad_hn: Optional[Tensor],
        value: Tensor,
        weight_hh: Tensor,
        recurrence: Recurrence,
        grad_inner: Optional[Tensor] = None,
        states: bool = False,
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        out, nonlinearity, sequences = value, recurrence.nonlinearity, recurrence.sequences
        hidden_size = out.shape[1]
        dh0 = out.new_empty(sequences.batch, hidden_size)
        if self._resident(dh0):
            row = _row(out)
            out = _aligned(_padded(out, row))
            grad_out = None if grad_out is None else _aligned(_padded(grad_out, row))
            dpre = torch.empty_like(out)
            tensors = (grad_out, grad_hn, out, _aligned(weight_hh), dpre, dh0)
            self._launch_recurrence("resident_backward", dh0, nonlinearity, sequences, (row,), tensors)
            return _narrow(dpre, hidden_size), dh0, None
        dpre = _with_padded_rows(out)
        exchange = (*dpre.shape, self._fault(out.device))
        tensors = (grad_out, grad_hn, out, weight_hh, dpre, dh0)
        self._launch_recurrence("grid_backward", dh0, nonlinearity, sequences, exchange, tensors)
        return _narrow(dpre, hidden_size), dh0, None

    def _resident(self, state: Tensor) -> bool:
        """Whether W_hh fits into one block's registers, for a state [B, H]."""
        return state.shape[1] <= self.native.resident_limit(DTYPES[state.dtype])

    def _launch_recurrence(
        self,
        kernel: str,
        state: Tensor,
        nonlinearity: str,
        sequences: Sequences,
        layout: tuple[int, ...],
        tensors: tuple[Optional[Tensor], ...],
    ) -> None:
        sizes = {"T": sequences.steps, "B": sequences.batch, "H": state.shape[1]}
        arguments = (*sizes.values(), _address(sequences.offsets), sequences.reverse, *layout)
        self._launch(kernel, state, nonlinearity, sizes, arguments, tensors)

    def check(self) -> None:
        """Raises what a grid kernel that has finished has reported and no later call has raised yet.

        Nothing else looks after a captured CUDA graph was replayed: synchronise, then call this.

        Raises:
            RuntimeError: a block waited in vain for another's result; device and step are named.
        """
        for device in self._faults:
            self._fault(device)

    def _fault(self, device: torch.device) -> int:
        """The address of a word in which grid kernels on `device` report that they waited in vain.

        Nothing waits for these kernels, so this finds, and raises, the fault of an earlier call.
        """
        if device not in self._faults:
            self._faults[device] = self._pinned_word()
        word = self._faults[device]
        step = int(word)
        if step:
            word.zero_()
            raise RuntimeError(
                f"an earlier CUDA grid kernel on {device} waited in vain for another block's result, at step"
                f" {step - 1} of its walk; its results contain NaN"
            )
        return word.data_ptr()

    def _pinned_word(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int32, pin_memory=True)

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
        with self._on(like):
            result = getattr(self.native, kernel)(
                DTYPES[like.dtype],
                ACTIVATIONS[nonlinearity],
                _tf32(like.dtype),
                *arguments,
                *map(_address, tensors),
                self._stream(like),
            )
        if result != 0:
            shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise RuntimeError(
                f"CUDA kernel {kernel} failed for {like.dtype}, {shape}: {self.native.message(result)}"
            )

    def _on(self, tensor: Tensor) -> AbstractContextManager[object]:
        """Makes the tensor's device current. Comparing takes less time than setting the same one."""
        return nullcontext() if tensor.get_device() == current_device() else torch.cuda.device(tensor.device)

    def _stream(self, tensor: Tensor) -> int:
        """The current stream of the tensor's device."""
        return _raw_stream(tensor.get_device())


def _current_stream(device: int) -> int:
    return torch.cuda.current_stream(device).cuda_stream


# The stream without a Python object around it, which would take half of a launch's time. Triton uses it, too.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)


def _tf32(dtype: torch.dtype) -> bool:
    return dtype is torch.float32 and tf32()


def _address(tensor: Optional[Tensor]) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _row(like: Tensor) -> int:
    """Elements from row to row of a matrix that kernels copy or exchange in vectors of 16 bytes."""
    elements = 16 // like.itemsize
    return -(-like.shape[1] // elements) * elements


def _with_padded_rows(like: Tensor) -> Tensor:
    return like.new_empty(like.shape[0], _row(like))


def _padded(tensor: Tensor, row: int) -> Tensor:
    missing = row - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _narrow(tensor: Tensor, hidden_size: int) -> Tensor:
    return tensor if tensor.shape[1] == hidden_size else tensor[:, :hidden_size].contiguous()


def _aligned(tensor: Tensor) -> Tensor:
    """Several elements are loaded at once, from multiples of 16 bytes."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
