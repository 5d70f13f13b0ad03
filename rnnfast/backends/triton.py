"""The Triton kernels (rnnfast/kernels): the fused step, and the whole sequence in one launch where W_hh fits.

Float32 products follow `torch.backends.cudnn.allow_tf32`, as torch.nn.RNN's do (see `precision`). Results do
not depend on the run nor, for a sequence, on the batch it is in: tiles are chosen by dtype and hidden size
alone, and no kernel uses atomics.

With TRITON_INTERPRET=1 set before rnnfast is imported, the kernels run in Triton's interpreter, on CPU
tensors: slow, for study and tests.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..layer import Grads, Layer, Needs, Recurrence, Sequences
from .base import Problem
from .eager import activation_backward
from .precision import products_as_cudnn, tf32
from .recurrence import RecurrenceBackend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class TritonBackend(RecurrenceBackend):
    name = "triton"

    def unavailable(self) -> Optional[str]:
        if find_spec("triton") is None:
            return "the package triton is not installed"
        if not INTERPRETED and not torch.cuda.is_available():
            return "no CUDA device (with TRITON_INTERPRET=1 set before import it runs on the CPU, slowly)"
        return None

    def details(self) -> str:
        import triton

        return f"Triton {triton.__version__}{', interpreted' if INTERPRETED else ''}"

    def refuses(self, problem: Problem) -> Optional[str]:
        wanted = "cpu" if INTERPRETED else "cuda"
        if problem.device != wanted:
            return (
                f"{'interpreted, ' if INTERPRETED else ''}it takes tensors on {wanted}, these are on"
                f" {problem.device}"
            )
        if problem.dtype not in ("float32", "bfloat16", "float16"):
            return f"dtype {problem.dtype} is not one of float32, bfloat16, float16"
        if INTERPRETED and problem.dtype == "bfloat16":
            return "Triton's interpreter multiplies bfloat16 wrongly"
        return None

    def step_forward(self, layer: Layer) -> Tensor:
        from ..kernels import step

        out = torch.empty_like(layer.h0)
        if out.numel():
            with _on(out):
                step.step_forward(*layer[:6], out, layer.nonlinearity, _precision()).run()
        return out

    def step_backward(self, layer: Layer, out: Tensor, grad: Optional[Tensor], needs: Needs) -> Grads:
        from ..kernels import step_backward

        x, h, weight_ih, weight_hh, *_ = layer
        (batch, inputs), hidden = x.shape, h.shape[1]
        # Without outputs nothing is launched, and the gradients are zero.
        new = out.new_empty if out.numel() else out.new_zeros
        grads = Grads(
            x=new((batch, inputs)) if needs.x else None,
            h0=new((batch, hidden)) if needs.h0 else None,
            weight_ih=new((hidden, inputs)) if needs.weight_ih else None,
            weight_hh=new((hidden, hidden)) if needs.weight_hh else None,
            bias=new((hidden,)) if needs.bias else None,
        )
        if out.numel():
            grad = torch.zeros_like(out) if grad is None else grad
            tensors = (grad, x, h, weight_ih, weight_hh, out)
            with _on(out):
                for launch in step_backward.step_backward(*tensors, layer.nonlinearity, _precision(), grads):
                    launch.run()
        return grads

    def recurrence_forward(
        self, pre: Tensor, h0: Tensor, weight_hh: Tensor, recurrence: Recurrence
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        with _on(pre):
            if _fits(pre):
                return self._resident_forward(pre, h0, weight_hh, recurrence)
            return self._stepwise_forward(pre, h0, weight_hh, recurrence)

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
        with _on(value):
            walk = self._resident_backward if _fits(value) else self._stepwise_backward
            return walk(grad_out, grad_hn, value, weight_hh, recurrence, grad_inner, states)

    def _resident_forward(
        self, pre: Tensor, h0: Tensor, weight_hh: Tensor, recurrence: Recurrence
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        from ..kernels import resident

        hidden = pre.shape[1]
        out, h0, weight_hh = _wide(pre), _wide(h0), _wide(weight_hh, both=True)
        h_n = torch.empty_like(h0)
        inner = None if recurrence.cell == "elman" else torch.empty_like(out)
        resident.resident_forward(
            out, h0, weight_hh, out, h_n, inner, _widened(recurrence), _precision()
        ).run()
        return _narrow(out, hidden), _narrow(h_n, hidden), None if inner is None else _narrow(inner, hidden)

    def _resident_backward(
        self,
        grad_out: Optional[Tensor],
        grad_hn: Optional[Tensor],
        value: Tensor,
        weight_hh: Tensor,
        recurrence: Recurrence,
        grad_inner: Optional[Tensor],
        states: bool,
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        from ..kernels import resident

        hidden = value.shape[1]
        value, weight_hh = _wide(value), _wide(weight_hh, both=True)
        grad_out, grad_hn, grad_inner = (
            None if grad is None else _wide(grad) for grad in (grad_out, grad_hn, grad_inner)
        )
        dpre = torch.empty_like(value)
        dh0 = value.new_empty(recurrence.sequences.batch, value.shape[1])
        dstate = torch.empty_like(value) if states else None
        resident.resident_backward(
            *(grad_out, grad_hn, value, weight_hh, dpre, dh0, grad_inner, dstate),
            *(_widened(recurrence), _precision()),
        ).run()
        dstate = None if dstate is None else _narrow(dstate, hidden)
        return _narrow(dpre, hidden), _narrow(dh0, hidden), dstate

    def _stepwise_forward(
        self, pre: Tensor, h0: Tensor, weight_hh: Tensor, recurrence: Recurrence
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        from ..kernels import stepwise

        elman, sequences = recurrence.cell == "elman", recurrence.sequences
        state = (h0 if recurrence.carried is None else recurrence.carried).clone()
        new_state = torch.empty_like(h0)
        full = None if elman else h0.to(torch.float32, copy=True)
        inner = None if elman else torch.empty_like(pre)
        launch = stepwise.stepwise_forward(
            pre, state, weight_hh, pre, new_state, full, inner, recurrence, _precision()
        )
        for first, count in _steps(sequences, sequences.reverse):
            launch.run(state=state, new_state=new_state, first=first, count=count)
            state, new_state = new_state, state
        return pre, state if full is None else full.to(pre.dtype), inner

    def _stepwise_backward(
        self,
        grad_out: Optional[Tensor],
        grad_hn: Optional[Tensor],
        value: Tensor,
        weight_hh: Tensor,
        recurrence: Recurrence,
        grad_inner: Optional[Tensor],
        states: bool,
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        from ..kernels import stepwise

        sequences = recurrence.sequences
        dpre, last = torch.empty_like(value), value.new_zeros(sequences.batch, value.shape[1])
        new_last, dstate = torch.empty_like(last), torch.empty_like(value) if states else None
        leaked: Optional[Tensor] = None
        if recurrence.cell != "elman":
            given = last if grad_hn is None else grad_hn
            leaked, grad_hn = given.to(torch.float32, copy=True), None
        launch = stepwise.stepwise_backward(
            *(grad_out, grad_hn, value, last, weight_hh, dpre, new_last, leaked, grad_inner, dstate),
            *(recurrence, _precision()),
        )
        before = 0
        for first, count in _steps(sequences, not sequences.reverse):
            launch.run(last=last, new_last=new_last, first=first, count=count, before=before)
            last, new_last, before = new_last, last, max(before, count)
        with torch.no_grad(), products_as_cudnn(value.dtype):
            dh0 = last @ weight_hh
            if recurrence.carried is not None:
                dh0 = activation_backward(dh0, recurrence.carried, recurrence.nonlinearity)
            return dpre, dh0 if leaked is None else (dh0 + leaked).to(dpre.dtype), dstate


def _precision() -> str:
    from ..kernels import table

    return table.TF32 if tf32() else table.EXACT


def _fits(rows: Tensor) -> bool:
    """Whether W_hh can stay in one multiprocessor for the whole sequence."""
    from ..kernels import table

    found = table.resident(rows.dtype, _precision(), rows.shape[1])
    return found is not None and (INTERPRETED or found[1].shared <= _shared_memory(rows.device))


def _wide(tensor: Tensor, both: bool = False) -> Tensor:
    """Rows (and columns) padded with zeros to a multiple of 16 elements, where they are not one already."""
    missing = -tensor.shape[-1] % 16
    return pad(tensor, (0, missing, 0, missing) if both else (0, missing)) if missing else tensor


def _widened(recurrence: Recurrence) -> Recurrence:
    alpha, noise, carried = (
        None if tensor is None else _wide(tensor)
        for tensor in (recurrence.alpha, recurrence.noise, recurrence.carried)
    )
    return recurrence._replace(alpha=alpha, noise=noise, carried=carried)


def _narrow(tensor: Tensor, hidden: int) -> Tensor:
    return tensor[:, :hidden].contiguous()


@lru_cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]


def _steps(sequences: Sequences, descending: bool) -> list[tuple[int, int]]:
    """First row and number of rows of every step, in the order in which the steps are taken."""
    sizes = [sequences.batch] * sequences.steps if sequences.sizes is None else sequences.sizes.tolist()
    steps, first = [], 0
    for size in sizes:
        steps.append((first, size))
        first += size
    return steps[::-1] if descending else steps


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device current, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
