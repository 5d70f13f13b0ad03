"""The native CPU kernels (csrc/cpu): vectorised, threaded, bitwise reproducible.

Every output element is one chain of multiply-adds in an order that depends neither on the batch nor on the
number of threads. Results are therefore the same bits from run to run, on any number of threads, and for a
sequence in any batch. There is one exception: dense sequences of up to `STEPWISE` steps read the weights in
place rather than packing them, which adds in another order. It does not apply to packed sequences, whose
number of steps is that of the longest, nor under `torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Optional

import torch
from torch import Tensor, are_deterministic_algorithms_enabled, get_num_threads

from .base import Backend, Grads, Needs, Problem

native: Any = None
MISSING: Optional[str] = None
try:
    native = import_module("rnnfast._cpu")
except ImportError as error:
    MISSING = f"the native extension is not built ({error}); install rnnfast where there is a C++ compiler"

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ACTIVATIONS = {"tanh": 0, "relu": 1}

# Up to this many steps a dense sequence runs as fused steps, which need no packed weights.
STEPWISE = 4


class CpuBackend(Backend):
    name = "cpu"

    def unavailable(self) -> Optional[str]:
        return MISSING

    def details(self) -> str:
        threads = "OpenMP" if native.openmp() else "one thread"
        return f"{native.instruction_set()} (of {', '.join(native.instruction_sets())}), {threads}"

    def refuses(self, problem: Problem) -> Optional[str]:
        if problem.device != "cpu":
            return f"it runs on the CPU, the tensors are on {problem.device}"
        if problem.dtype not in {str(dtype).removeprefix("torch.") for dtype in DTYPES}:
            return f"dtype {problem.dtype} is not one of float64, float32, bfloat16, float16"
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
        native.step(
            DTYPES[x.dtype],
            ACTIVATIONS[nonlinearity],
            h.shape[0],
            x.shape[1],
            h.shape[1],
            x.data_ptr(),
            h.data_ptr(),
            weight_ih.data_ptr(),
            weight_hh.data_ptr(),
            _address(bias_ih),
            _address(bias_hh),
            out.data_ptr(),
            get_num_threads(),
        )
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
        return self.sequence_backward(
            grad, None, x, h, weight_ih, weight_hh, out, nonlinearity, None, False, needs
        )

    def sequence_forward(
        self,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Optional[Tensor],
        bias_hh: Optional[Tensor],
        nonlinearity: str,
        batch_sizes: Optional[Tensor],
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        rows, input_size = x.shape
        batch, hidden_size = h0.shape
        steps = _steps(rows, batch, batch_sizes)
        out = x.new_empty(rows, hidden_size)
        h_n = torch.empty_like(h0)
        native.sequence(
            DTYPES[x.dtype],
            ACTIVATIONS[nonlinearity],
            steps,
            batch,
            input_size,
            hidden_size,
            _address(batch_sizes),
            reverse,
            batch_sizes is None and steps <= STEPWISE and not are_deterministic_algorithms_enabled(),
            x.data_ptr(),
            h0.data_ptr(),
            weight_ih.data_ptr(),
            weight_hh.data_ptr(),
            _address(bias_ih),
            _address(bias_hh),
            out.data_ptr(),
            h_n.data_ptr(),
            get_num_threads(),
        )
        return out, h_n

    def sequence_backward(
        self,
        grad_out: Optional[Tensor],
        grad_hn: Optional[Tensor],
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        out: Tensor,
        nonlinearity: str,
        batch_sizes: Optional[Tensor],
        reverse: bool,
        needs: Needs,
    ) -> Grads:
        rows, input_size = x.shape
        batch, hidden_size = h0.shape
        grads = Grads(
            x=torch.empty_like(x) if needs.x else None,
            h0=torch.empty_like(h0) if needs.h0 else None,
            weight_ih=torch.empty_like(weight_ih) if needs.weight_ih else None,
            weight_hh=torch.empty_like(weight_hh) if needs.weight_hh else None,
            bias=x.new_empty(hidden_size) if needs.bias else None,
        )
        native.sequence_backward(
            DTYPES[x.dtype],
            ACTIVATIONS[nonlinearity],
            _steps(rows, batch, batch_sizes),
            batch,
            input_size,
            hidden_size,
            _address(batch_sizes),
            reverse,
            _address(grad_out),
            _address(grad_hn),
            x.data_ptr(),
            h0.data_ptr(),
            weight_ih.data_ptr(),
            weight_hh.data_ptr(),
            out.data_ptr(),
            _address(grads.x),
            _address(grads.h0),
            _address(grads.weight_ih),
            _address(grads.weight_hh),
            _address(grads.bias),
            get_num_threads(),
        )
        return grads

    def recurrence_forward(
        self,
        pre: Tensor,  # [R, H]; becomes out
        h0: Tensor,  # [B, H]
        weight_hh: Tensor,  # [H, H]
        nonlinearity: str,
        batch_sizes: Optional[Tensor] = None,  # [T]
        reverse: bool = False,
    ) -> Tensor:  # h_n [B, H]
        """The recurrence alone, in place, for benchmarks: ``h_t = act(pre_t + h_{t-1} W_hh^T)``."""
        batch, hidden_size = h0.shape
        h_n = torch.empty_like(h0)
        native.recurrence(
            DTYPES[pre.dtype],
            ACTIVATIONS[nonlinearity],
            _steps(pre.shape[0], batch, batch_sizes),
            batch,
            hidden_size,
            _address(batch_sizes),
            reverse,
            h0.data_ptr(),
            weight_hh.data_ptr(),
            pre.data_ptr(),
            h_n.data_ptr(),
            get_num_threads(),
        )
        return h_n


def _steps(rows: int, batch: int, batch_sizes: Optional[Tensor]) -> int:
    if batch_sizes is not None:
        return batch_sizes.shape[0]
    return rows // batch if batch else 0


def _address(tensor: Optional[Tensor]) -> int:
    return 0 if tensor is None else tensor.data_ptr()
