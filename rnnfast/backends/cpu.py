"""The native CPU kernels (csrc/cpu): vectorised, threaded, bitwise reproducible.

Every output element is one chain of multiply-adds in a fixed order, whatever the batch around it and however many
threads share the work. So results are the same bits from run to run, for any `torch.set_num_threads`, and for a
sequence in any batch. One choice depends on more than the layer's own sizes: short walks read the weights in place
rather than packing them (see `STEPWISE`). It looks at the number of steps, which for packed sequences is the longest
of the batch; under `torch.use_deterministic_algorithms(True)` it is not made.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, get_num_threads

from .base import Backend, Grads, Needs, Problem

try:
    from .. import _cpu as native
except ImportError as error:  # no compiler when the package was installed
    native, MISSING = None, f"the native extension is not built ({error})"
else:
    MISSING = None

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ACTIVATIONS = {"tanh": 0, "relu": 1}

# Up to this many steps a dense sequence runs as fused steps: packing the weights costs about as much as three steps.
STEPWISE = 4


class CpuBackend(Backend):
    name = "cpu"

    def unavailable(self) -> Optional[str]:
        return MISSING

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
        dx = torch.empty_like(x) if needs.x else None
        dh = torch.empty_like(h) if needs.h0 else None
        dw_ih = torch.empty_like(weight_ih) if needs.weight_ih else None
        dw_hh = torch.empty_like(weight_hh) if needs.weight_hh else None
        bias = h.new_empty(h.shape[1]) if needs.bias else None
        native.step_backward(
            DTYPES[x.dtype],
            ACTIVATIONS[nonlinearity],
            h.shape[0],
            x.shape[1],
            h.shape[1],
            grad.data_ptr(),
            x.data_ptr(),
            h.data_ptr(),
            weight_ih.data_ptr(),
            weight_hh.data_ptr(),
            out.data_ptr(),
            _address(dx),
            _address(dh),
            _address(dw_ih),
            _address(dw_hh),
            _address(bias),
            get_num_threads(),
        )
        return Grads(dx, dh, dw_ih, dw_hh, bias)

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
        rows, batch = x.shape[0], h0.shape[0]
        if batch == 0:
            return x.new_empty(0, h0.shape[1]), h0.clone()
        if batch_sizes is None and rows <= STEPWISE * batch and not torch.are_deterministic_algorithms_enabled():
            return self._stepwise(x, h0, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity, reverse)
        out = product(x, weight_ih, True, bias_ih, bias_hh)
        h_n = self.recurrence_forward(out, h0, weight_hh, nonlinearity, batch_sizes, reverse)
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
        dpre, dh0 = self.recurrence_backward(
            grad_out, grad_hn, h0, weight_hh, out, nonlinearity, batch_sizes, reverse, needs.h0
        )
        dw_ih = dw_hh = bias = None
        if needs.weight_ih or needs.bias:
            dw_ih, bias = gradient(dpre, x, needs.weight_ih, needs.bias)
        if needs.weight_hh:
            dw_hh, _ = gradient(dpre, out, True, False, h0, previous_rows(dpre, h0, batch_sizes, reverse))
        dx = product(dpre, weight_ih, False) if needs.x else None
        return Grads(dx, dh0, dw_ih, dw_hh, bias)

    def _stepwise(
        self,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Optional[Tensor],
        bias_hh: Optional[Tensor],
        nonlinearity: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        h, steps = h0, list(x.split(h0.shape[0]))
        for t in range(len(steps) - 1, -1, -1) if reverse else range(len(steps)):
            h = steps[t] = self.step_forward(
                steps[t], h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity
            )
        return torch.cat(steps), h if len(steps) > 1 else h.clone()

    def recurrence_forward(
        self,
        pre: Tensor,  # [R, H]; becomes out
        h0: Tensor,  # [B, H]
        weight_hh: Tensor,  # [H, H]
        nonlinearity: str,
        batch_sizes: Optional[Tensor] = None,  # [T]
        reverse: bool = False,
    ) -> Tensor:  # h_n [B, H]
        """The recurrence alone, in place: ``h_t = act(pre_t + h_{t-1} W_hh^T)``."""
        batch, hidden = h0.shape
        h_n = torch.empty_like(h0)
        native.forward(
            DTYPES[pre.dtype],
            ACTIVATIONS[nonlinearity],
            pre.shape[0] // batch if batch_sizes is None else batch_sizes.shape[0],
            batch,
            hidden,
            _address(batch_sizes),
            reverse,
            h0.data_ptr(),
            weight_hh.data_ptr(),
            pre.data_ptr(),
            h_n.data_ptr(),
            get_num_threads(),
        )
        return h_n

    def recurrence_backward(
        self,
        grad_out: Optional[Tensor],  # [R, H]
        grad_hn: Optional[Tensor],  # [B, H]
        h0: Tensor,  # [B, H]
        weight_hh: Tensor,  # [H, H]
        out: Tensor,  # [R, H]
        nonlinearity: str,
        batch_sizes: Optional[Tensor],  # [T]
        reverse: bool,
        needs_h0: bool,
    ) -> tuple[Tensor, Optional[Tensor]]:  # dpre [R, H], dh0 [B, H]
        """The backward recurrence alone: ``dpre_t = (dout_t + dpre_{t+1} W_hh) act'(h_t)``."""
        batch, hidden = h0.shape
        dpre = torch.empty_like(out)
        dh0 = torch.empty_like(h0) if needs_h0 else None
        if batch > 0:
            native.backward(
                DTYPES[out.dtype],
                ACTIVATIONS[nonlinearity],
                out.shape[0] // batch if batch_sizes is None else batch_sizes.shape[0],
                batch,
                hidden,
                _address(batch_sizes),
                reverse,
                _address(grad_out),
                _address(grad_hn),
                weight_hh.data_ptr(),
                out.data_ptr(),
                dpre.data_ptr(),
                _address(dh0),
                get_num_threads(),
            )
        return dpre, dh0


def product(
    a: Tensor,  # [R, K]
    w: Tensor,  # [N, K] if transposed, else [K, N]
    transposed: bool,
    bias0: Optional[Tensor] = None,  # [N]
    bias1: Optional[Tensor] = None,  # [N]
) -> Tensor:  # [R, N]
    """``a @ w.T + bias0 + bias1``, or without `transposed` ``a @ w + bias0 + bias1``."""
    rows, depth = a.shape
    columns = w.shape[0 if transposed else 1]
    c = a.new_empty(rows, columns)
    native.product(
        DTYPES[a.dtype],
        rows,
        columns,
        depth,
        a.data_ptr(),
        w.data_ptr(),
        transposed,
        _address(bias0),
        _address(bias1),
        c.data_ptr(),
        get_num_threads(),
    )
    return c


def gradient(
    a: Tensor,  # [R, M]
    b: Tensor,  # [rows, N]
    needs_product: bool,
    needs_sum: bool,
    b_start: Optional[Tensor] = None,  # [B, N]
    index: Optional[Tensor] = None,  # [R]
) -> tuple[Optional[Tensor], Optional[Tensor]]:  # [M, N], [M]
    """``a.T @ b`` and ``a.sum(0)``; with `index`, row r of b is ``b[i]``, or ``b_start[~i]`` where i < 0."""
    rows, m = a.shape
    n = b.shape[1]
    c = a.new_empty(m, n) if needs_product else None
    a_sum = a.new_empty(m) if needs_sum else None
    native.gradient(
        DTYPES[a.dtype],
        rows,
        m,
        n,
        a.data_ptr(),
        b.data_ptr(),
        _address(b_start),
        _address(index),
        _address(c),
        _address(a_sum),
        get_num_threads(),
    )
    return c, a_sum


def previous_rows(rows: Tensor, h0: Tensor, batch_sizes: Optional[Tensor], reverse: bool) -> Tensor:
    """For each row, the row that holds the state before it, or ~b where that is row b of h0."""
    index = torch.empty(rows.shape[0], dtype=torch.int64)
    batch = h0.shape[0]
    steps = batch_sizes.shape[0] if batch_sizes is not None else rows.shape[0] // max(batch, 1)
    native.previous_rows(steps, batch, _address(batch_sizes), reverse, index.data_ptr())
    return index


def _address(tensor: Optional[Tensor]) -> int:
    return 0 if tensor is None else tensor.data_ptr()
