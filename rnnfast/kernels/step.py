"""One step of the recurrence, fused with its input product.

    out = act([x, h] [W_ih, W_hh]^T + b_ih + b_hh)

One program per tile [BLOCK_M rows, BLOCK_N units]. One accumulator runs over K = I + H, first over x and
W_ih, then over h and W_hh, so that the concatenation is never formed. Bias and activation are applied to the
accumulator before its only store.

Memory floor of a step: it reads both weights once, (I + H) H elements, which are nearly all of its bytes at
small B.
"""

from __future__ import annotations

from typing import Optional

import triton
import triton.language as tl
from torch import Tensor

from . import table
from .activation import activate, form_of
from .launch import Launch, cover, strides, tile_constants
from .product import multiply


@triton.jit
def step_forward_kernel(
    x,  # [B, I]
    h,  # [B, H]
    w_ih,  # [H, I]
    w_hh,  # [H, H]
    b_ih,  # [H], or None
    b_hh,  # [H], or None
    out,  # [B, H], contiguous
    x_row,
    x_col,
    h_row,
    h_col,
    w_ih_row,
    w_ih_col,
    w_hh_row,
    w_hh_col,
    B,
    I,  # noqa: E741
    H,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    m = m0 + tl.arange(0, BLOCK_M)
    n0 = tl.program_id(1).to(tl.int64) * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # acc[m, n] += sum over k of a[m, k] b[k, n], first with a = x and b = W_ih^T, then with h and W_hh^T. An
    # operand is a pointer and its two strides; a transpose is its strides exchanged. The arguments, in order:
    #   acc | a, strides in m and k, no h to differentiate by | first row, rows
    #   b, strides in k and n | first column, columns | K | constants
    acc = multiply(acc, x, x_row, x_col, None, m0, B, w_ih, w_ih_col, w_ih_row, n0, H, I,
                   BLOCK_K, PRECISION, "")  # fmt: skip
    acc = multiply(acc, h, h_row, h_col, None, m0, B, w_hh, w_hh_col, w_hh_row, n0, H, H,
                   BLOCK_K, PRECISION, "")  # fmt: skip
    if b_ih is not None:
        acc += tl.load(b_ih + n, mask=n < H, other=0.0).to(tl.float32)[None, :]
    if b_hh is not None:
        acc += tl.load(b_hh + n, mask=n < H, other=0.0).to(tl.float32)[None, :]
    result = activate(acc, ACTIVATION).to(out.dtype.element_ty)
    tl.store(out + m[:, None] * H + n[None, :], result, mask=(m < B)[:, None] & (n < H)[None, :])


def step_forward(
    x: Tensor,  # [B, I], any strides
    h: Tensor,  # [B, H], any strides
    weight_ih: Tensor,  # [H, I], any strides
    weight_hh: Tensor,  # [H, H], any strides
    bias_ih: Optional[Tensor],  # [H]
    bias_hh: Optional[Tensor],  # [H]
    out: Tensor,  # [B, H]
    nonlinearity: str,
    precision: str,
) -> Launch:
    (batch, inputs), hidden = x.shape, h.shape[1]
    tiles = table.STEP[x.dtype.itemsize]
    return Launch(
        step_forward_kernel,
        (cover(batch, tiles.m), cover(hidden, tiles.n)),
        {
            "x": x,
            "h": h,
            "w_ih": weight_ih,
            "w_hh": weight_hh,
            "b_ih": bias_ih,
            "b_hh": bias_hh,
            "out": out,
            **strides(x=x, h=h, w_ih=weight_ih, w_hh=weight_hh),
            "B": batch,
            "I": inputs,
            "H": hidden,
        },
        {
            "ACTIVATION": form_of(nonlinearity, x.dtype),
            "PRECISION": precision,
            **tile_constants(tiles),
        },
        tiles.warps,
        tiles.stages,
    )
