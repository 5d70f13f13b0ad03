"""The backward pass of one step of the recurrence.

    dpre = grad act'(out);  db = sum dpre
    [dx, dh] = dpre [W_ih, W_hh];  [dW_ih, dW_hh] = dpre^T [x, h]

dpre is never stored. Both kernels compute it from grad and out as they load them. One computes dx and dh,
which are neighbouring tiles of one product. The other computes the weight gradients, again as neighbouring
tiles, each the sum over all B rows in one program. There are no atomics, so every run gives the same bits.
"""

from __future__ import annotations

from typing import Optional

import triton
import triton.language as tl
from torch import Tensor

from ..layer import Grads
from . import table
from .activation import activation_backward
from .launch import Launch, cover, strides, tile_constants
from .product import multiply


@triton.jit
def step_backward_input_kernel(
    grad,  # [B, H], contiguous
    out,  # [B, H], contiguous
    w_ih,  # [H, I]
    w_hh,  # [H, H]
    dx,  # [B, I], contiguous, or None
    dh,  # [B, H], contiguous, or None
    w_ih_row,
    w_ih_col,
    w_hh_row,
    w_hh_col,
    B,
    I,  # noqa: E741
    H,
    X_TILES,  # tiles over the columns of dx; those of dh follow
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    m = m0 + tl.arange(0, BLOCK_M)
    tile = tl.program_id(1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if tile < X_TILES:
        n0 = tile.to(tl.int64) * BLOCK_N
        n = n0 + tl.arange(0, BLOCK_N)
        if dx is not None:
            acc = multiply(acc, grad, H, 1, out, m0, B, w_ih, w_ih_row, w_ih_col, n0, I, H,
                           BLOCK_K, PRECISION, ACTIVATION)  # fmt: skip
            mask = (m < B)[:, None] & (n < I)[None, :]
            tl.store(dx + m[:, None] * I + n[None, :], acc.to(dx.dtype.element_ty), mask=mask)
    else:
        n0 = (tile - X_TILES).to(tl.int64) * BLOCK_N
        n = n0 + tl.arange(0, BLOCK_N)
        if dh is not None:
            acc = multiply(acc, grad, H, 1, out, m0, B, w_hh, w_hh_row, w_hh_col, n0, H, H,
                           BLOCK_K, PRECISION, ACTIVATION)  # fmt: skip
            mask = (m < B)[:, None] & (n < H)[None, :]
            tl.store(dh + m[:, None] * H + n[None, :], acc.to(dh.dtype.element_ty), mask=mask)


@triton.jit
def step_backward_weight_kernel(
    grad,  # [B, H], contiguous
    out,  # [B, H], contiguous
    x,  # [B, I]
    h,  # [B, H]
    dw_ih,  # [H, I], contiguous, or None
    dw_hh,  # [H, H], contiguous, or None
    db,  # [H], or None
    x_row,
    x_col,
    h_row,
    h_col,
    B,
    I,  # noqa: E741
    H,
    X_TILES,  # tiles over the columns of dw_ih; those of dw_hh follow
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    m = m0 + tl.arange(0, BLOCK_M)
    tile = tl.program_id(1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if tile < X_TILES:
        n0 = tile.to(tl.int64) * BLOCK_N
        n = n0 + tl.arange(0, BLOCK_N)
        if dw_ih is not None:
            acc = multiply(acc, grad, 1, H, out, m0, H, x, x_row, x_col, n0, I, B,
                           BLOCK_K, PRECISION, ACTIVATION)  # fmt: skip
            mask = (m < H)[:, None] & (n < I)[None, :]
            tl.store(dw_ih + m[:, None] * I + n[None, :], acc.to(dw_ih.dtype.element_ty), mask=mask)
    else:
        n0 = (tile - X_TILES).to(tl.int64) * BLOCK_N
        n = n0 + tl.arange(0, BLOCK_N)
        if dw_hh is not None:
            acc = multiply(acc, grad, 1, H, out, m0, H, h, h_row, h_col, n0, H, B,
                           BLOCK_K, PRECISION, ACTIVATION)  # fmt: skip
            mask = (m < H)[:, None] & (n < H)[None, :]
            tl.store(dw_hh + m[:, None] * H + n[None, :], acc.to(dw_hh.dtype.element_ty), mask=mask)
    if db is not None:  # noqa: SIM102 (decided at compile time, the tile at run time)
        if tile == 0:
            k = tl.arange(0, BLOCK_K).to(tl.int64)
            total = tl.zeros((BLOCK_M,), tl.float32)
            for start in range(0, B, BLOCK_K):
                at = (start + k)[None, :] * H + m[:, None]
                both = (start + k < B)[None, :] & (m < H)[:, None]
                g = tl.load(grad + at, mask=both, other=0.0).to(tl.float32)
                y = tl.load(out + at, mask=both, other=0.0).to(tl.float32)
                total += tl.sum(activation_backward(g, y, ACTIVATION), axis=1)
            tl.store(db + m, total.to(db.dtype.element_ty), mask=m < H)


def step_backward_input(
    grad: Tensor,  # [B, H]
    out: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I], any strides
    weight_hh: Tensor,  # [H, H], any strides
    dx: Optional[Tensor],  # [B, I]
    dh: Optional[Tensor],  # [B, H]
    nonlinearity: str,
    precision: str,
) -> Launch:
    (batch, hidden), inputs = grad.shape, weight_ih.shape[1]
    tiles = table.STEP[grad.dtype.itemsize]
    x_tiles = cover(inputs, tiles.n) if dx is not None else 0
    return Launch(
        step_backward_input_kernel,
        (cover(batch, tiles.m), x_tiles + (cover(hidden, tiles.n) if dh is not None else 0)),
        {
            "grad": grad,
            "out": out,
            "w_ih": weight_ih,
            "w_hh": weight_hh,
            "dx": dx,
            "dh": dh,
            **strides(w_ih=weight_ih, w_hh=weight_hh),
            "B": batch,
            "I": inputs,
            "H": hidden,
            "X_TILES": x_tiles,
        },
        {"ACTIVATION": nonlinearity, "PRECISION": precision, **tile_constants(tiles)},
        tiles.warps,
        tiles.stages,
    )


def step_backward_weight(
    grad: Tensor,  # [B, H]
    out: Tensor,  # [B, H]
    x: Tensor,  # [B, I], any strides
    h: Tensor,  # [B, H], any strides
    dw_ih: Optional[Tensor],  # [H, I]
    dw_hh: Optional[Tensor],  # [H, H]
    db: Optional[Tensor],  # [H]
    nonlinearity: str,
    precision: str,
) -> Launch:
    (batch, hidden), inputs = grad.shape, x.shape[1]
    tiles = table.WEIGHTS
    x_tiles = cover(inputs, tiles.n) if dw_ih is not None else 0
    columns = x_tiles + (cover(hidden, tiles.n) if dw_hh is not None else 0)
    return Launch(
        step_backward_weight_kernel,
        (cover(hidden, tiles.m), max(1, columns)),
        {
            "grad": grad,
            "out": out,
            "x": x,
            "h": h,
            "dw_ih": dw_ih,
            "dw_hh": dw_hh,
            "db": db,
            **strides(x=x, h=h),
            "B": batch,
            "I": inputs,
            "H": hidden,
            "X_TILES": x_tiles,
        },
        {"ACTIVATION": nonlinearity, "PRECISION": precision, **tile_constants(tiles)},
        tiles.warps,
        tiles.stages,
    )


def step_backward(
    grad: Tensor,  # [B, H]
    x: Tensor,  # [B, I], any strides
    h: Tensor,  # [B, H], any strides
    weight_ih: Tensor,  # [H, I], any strides
    weight_hh: Tensor,  # [H, H], any strides
    out: Tensor,  # [B, H]
    nonlinearity: str,
    precision: str,
    results: Grads,  # new tensors, None for gradients that are not needed
) -> list[Launch]:
    """The launches, at most two, that compute the gradients in `results`."""
    launches = []
    if results.x is not None or results.h0 is not None:
        launches.append(
            step_backward_input(
                grad, out, weight_ih, weight_hh, results.x, results.h0, nonlinearity, precision
            )
        )
    if any(result is not None for result in results[2:]):
        launches.append(
            step_backward_weight(
                grad, out, x, h, results.weight_ih, results.weight_hh, results.bias, nonlinearity, precision
            )
        )
    return launches
