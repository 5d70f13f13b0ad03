"""The native CPU kernels (csrc/cpu): vectorised, threaded, bitwise reproducible.

Every output element is one chain of multiply-adds in an order that depends neither on the batch nor on the
number of threads. Results are therefore the same bits from run to run, on any number of threads, and for a
sequence in any batch. There is one exception: dense sequences of up to `STEPWISE` steps read the weights in
place rather than packing them, which adds in another order. It does not apply to packed sequences, whose
number of steps is that of the longest, to cells, activations, noise and resets that torch does not have, nor
under `torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, are_deterministic_algorithms_enabled, get_num_threads

from ..call import READY, Call, read
from ..native import DTYPES, MISSING, native
from .base import Backend, Outputs, Problem
from .eager import NAMES

ACTIVATIONS = {"tanh": 0, "relu": 1}

# Up to this many steps a dense sequence runs as fused steps, which need no packed weights.
STEPWISE = 4

_Read: Any = getattr(native, "Call", None)  # the type of the calls that native code has read


class CpuBackend(Backend):
    name = "cpu"

    def unavailable(self) -> Optional[str]:
        if MISSING is not None or READY:
            return MISSING
        return "torch has no table of DLPack's functions, version 1, through which tensors are read"

    def details(self) -> str:
        threads = "OpenMP" if native.openmp() and not native.team_lost() else "one thread"
        return f"{native.instruction_set()} (of {', '.join(native.instruction_sets())}), {threads}"

    def refuses(self, problem: Problem) -> Optional[str]:
        if problem.device != "cpu":
            return f"it runs on the CPU, the tensors are on {problem.device}"
        if problem.dtype not in NAMES:
            return f"dtype {problem.dtype} is not one of float64, float32, bfloat16, float16"
        return None

    def forward(self, call: Call, inner: bool = True) -> tuple[Tensor, ...]:
        stepwise = 0 if are_deterministic_algorithms_enabled() else STEPWISE
        given: Any = call if type(call) is _Read else _native(call)
        return given.forward(stepwise, get_num_threads(), inner)

    def infer(self, call: Call) -> tuple[Tensor, ...]:
        return self.forward(call, inner=False)

    def backward(self, call: Call, outputs: Outputs, needs: tuple[bool, ...]) -> tuple[Optional[Tensor], ...]:
        out, hidden, grad_out, grad_hn, _, inner, grad_inner = outputs
        given: Any = call if type(call) is _Read else _native(call, out)
        return given.backward(out, hidden, grad_out, grad_hn, needs, get_num_threads(), inner, grad_inner)

    def recurrence_forward(
        self,
        pre: Tensor,  # [T * B, H]; becomes out
        h0: Tensor,  # [B, H]
        weight_hh: Tensor,  # [H, H]
        nonlinearity: str,
    ) -> Tensor:  # h_n [B, H]
        """The recurrence alone, in place, for benchmarks: ``h_t = act(pre_t + h_{t-1} W_hh^T)``."""
        (batch, hidden), dtype = h0.shape, pre.dtype
        steps = pre.shape[0] // max(1, batch)
        h_n = torch.empty_like(h0)
        native.recurrence(
            DTYPES.index(dtype),
            ACTIVATIONS[nonlinearity],
            steps,
            batch,
            hidden,
            _address(h0, dtype, batch, hidden),
            _address(weight_hh, dtype, hidden, hidden),
            _address(pre, dtype, steps * batch, hidden),
            _address(h_n, dtype, batch, hidden),
            get_num_threads(),
        )
        return h_n


def _native(call: Call, like: Optional[Tensor] = None) -> Any:
    """A call that was made in Python as native code reads it.

    In a backward pass new memory like `like` takes the place of what is not read and so wasn't saved.

    Raises:
        RuntimeError: its tensors are not what kernels take.
    """
    x, h0, *weights = (
        like.new_empty(shape) if tensor is None and like is not None else tensor
        for tensor, shape in zip((call.x, call.h0, *call.weights), call._shapes, strict=True)
    )
    if call.h0 is None and call.network.module:
        h0 = None  # zeros
    found = read(call.network, x, h0, tuple(weights), call.batch_sizes, call.resets)
    if found is None:
        raise RuntimeError("the CPU kernels take dense tensors of torch's own types; these are not")
    return found


def _address(tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Where a tensor lies in memory: the last look before a kernel, new tensors included.

    Raises:
        RuntimeError: it isn't what the kernel takes it for.
    """
    address = tensor.data_ptr()
    if (
        tensor.dtype is not dtype
        or tensor.shape != shape
        or not tensor.is_cpu
        or not tensor.is_contiguous()
        or tensor.is_neg()
        or (address == 0 and tensor.numel() > 0)
    ):
        raise RuntimeError(
            f"a kernel takes {list(shape)}, contiguous, of {dtype} on the CPU;"
            f" got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )
    return address
