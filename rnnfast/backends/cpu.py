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
        threads = "OpenMP" if native.openmp() and not native.team_lost() else "one thread"
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
        (batch, inputs), hidden, dtype = x.shape, h.shape[1], x.dtype
        out = torch.empty_like(h)
        native.step(
            DTYPES[dtype],
            ACTIVATIONS[nonlinearity],
            batch,
            inputs,
            hidden,
            _address(x, dtype, batch, inputs),
            _address(h, dtype, batch, hidden),
            _address(weight_ih, dtype, hidden, inputs),
            _address(weight_hh, dtype, hidden, hidden),
            _address(bias_ih, dtype, hidden),
            _address(bias_hh, dtype, hidden),
            _address(out, dtype, batch, hidden),
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
        (rows, inputs), (batch, hidden), dtype = x.shape, h0.shape, x.dtype
        steps = _steps(rows, batch, batch_sizes)
        out = x.new_empty(rows, hidden)
        h_n = torch.empty_like(h0)
        native.sequence(
            DTYPES[dtype],
            ACTIVATIONS[nonlinearity],
            steps,
            batch,
            inputs,
            hidden,
            _address(batch_sizes, torch.int64, steps),
            reverse,
            batch_sizes is None and steps <= STEPWISE and not are_deterministic_algorithms_enabled(),
            _address(x, dtype, rows, inputs),
            _address(h0, dtype, batch, hidden),
            _address(weight_ih, dtype, hidden, inputs),
            _address(weight_hh, dtype, hidden, hidden),
            _address(bias_ih, dtype, hidden),
            _address(bias_hh, dtype, hidden),
            _address(out, dtype, rows, hidden),
            _address(h_n, dtype, batch, hidden),
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
        (rows, inputs), (batch, hidden), dtype = x.shape, h0.shape, x.dtype
        steps = _steps(rows, batch, batch_sizes)
        grads = Grads(
            x=x.new_empty(rows, inputs) if needs.x else None,
            h0=h0.new_empty(batch, hidden) if needs.h0 else None,
            weight_ih=weight_ih.new_empty(hidden, inputs) if needs.weight_ih else None,
            weight_hh=weight_hh.new_empty(hidden, hidden) if needs.weight_hh else None,
            bias=x.new_empty(hidden) if needs.bias else None,
        )
        native.sequence_backward(
            DTYPES[dtype],
            ACTIVATIONS[nonlinearity],
            steps,
            batch,
            inputs,
            hidden,
            _address(batch_sizes, torch.int64, steps),
            reverse,
            _address(grad_out, dtype, rows, hidden),
            _address(grad_hn, dtype, batch, hidden),
            _address(x, dtype, rows, inputs) if needs.weight_ih else 0,
            _address(h0, dtype, batch, hidden) if needs.weight_hh else 0,
            _address(weight_ih, dtype, hidden, inputs) if needs.x else 0,
            _address(weight_hh, dtype, hidden, hidden) if needs.h0 or steps > 1 else 0,
            _address(out, dtype, rows, hidden),
            _address(grads.x, dtype, rows, inputs),
            _address(grads.h0, dtype, batch, hidden),
            _address(grads.weight_ih, dtype, hidden, inputs),
            _address(grads.weight_hh, dtype, hidden, hidden),
            _address(grads.bias, dtype, hidden),
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
        rows, (batch, hidden), dtype = pre.shape[0], h0.shape, pre.dtype
        steps = _steps(rows, batch, batch_sizes)
        h_n = torch.empty_like(h0)
        native.recurrence(
            DTYPES[dtype],
            ACTIVATIONS[nonlinearity],
            steps,
            batch,
            hidden,
            _address(batch_sizes, torch.int64, steps),
            reverse,
            _address(h0, dtype, batch, hidden),
            _address(weight_hh, dtype, hidden, hidden),
            _address(pre, dtype, rows, hidden),
            _address(h_n, dtype, batch, hidden),
            get_num_threads(),
        )
        return h_n


def _steps(rows: int, batch: int, batch_sizes: Optional[Tensor]) -> int:
    if batch_sizes is not None:
        return batch_sizes.shape[0]
    return rows // batch if batch else 0


def _address(tensor: Optional[Tensor], dtype: torch.dtype, *shape: int) -> int:
    """Where a tensor lies in memory, 0 for None: the last look before a kernel, new tensors included.

    Raises:
        RuntimeError: it isn't what the kernel takes it for.
    """
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if (
        tensor.dtype is not dtype
        or tensor.shape != shape
        or not tensor.is_cpu
        or not tensor.is_contiguous()
        or (address == 0 and tensor.numel() > 0)
    ):
        raise RuntimeError(
            f"a kernel takes {list(shape)}, contiguous, of {dtype} on the CPU;"
            f" got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )
    return address
