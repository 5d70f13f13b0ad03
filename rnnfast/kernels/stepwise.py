"""One step of the recurrence as a kernel of its own, for layers whose W_hh fits no single multiprocessor.

    forward    state' = act(pre + state W_hh^T)                          over the rows of the step
    backward   dpre = (dout + last W_hh + [first time] dh_n) act'(h)     over the rows of the step

A sequence is T launches on one stream: the kernel boundary is the barrier, and all of them can be captured in
one CUDA graph. A step takes about 20 us on an H100 (B = 16, H of 512 and 1024), nearly all of it the launch.
The state of all B sequences alternates between two buffers, because a program reads all of h while others
write theirs. Rows beyond `count` have ended or not begun; their state is copied.

In the backward pass `last` holds the latest dpre of each sequence, zero before its first step. At its first
step the gradient of its final state is added (rows `before` <= b < count, where `before` is the count of the
step taken just before). After the last step taken `last W_hh` is dh0.
"""

from __future__ import annotations

from typing import Optional

import triton
import triton.language as tl
from torch import Tensor

from . import table
from .activation import activate, activation_backward, form_of
from .launch import Launch, cover, tile_constants
from .product import multiply

# Arguments that differ from launch to launch; Triton compiles no kernel of its own for their values.
VARYING = ["first", "count", "before"]


@triton.jit(do_not_specialize=VARYING)
def stepwise_forward_kernel(
    pre,  # [R, H]
    state,  # [B, H]
    w_hh,  # [H, H]
    out,  # [R, H]; may be pre itself
    new_state,  # [B, H]
    first,  # the first row of this step
    count,  # its rows
    B,
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
    at = m[:, None] * H + n[None, :]
    unit = (n < H)[None, :]
    everyone = (m < B)[:, None] & unit
    active = (m < count)[:, None] & unit
    row = tl.cast(first, tl.int64) * H
    acc = tl.load(pre + row + at, mask=active, other=0.0).to(tl.float32)
    old = tl.load(state + at, mask=everyone, other=0.0)
    acc = multiply(acc, state, H, 1, None, m0, B, w_hh, 1, H, n0, H, H, BLOCK_K, PRECISION, "")
    new = activate(acc, ACTIVATION).to(old.dtype)
    tl.store(out + row + at, new, mask=active)
    tl.store(new_state + at, tl.where(active, new, old), mask=everyone)


@triton.jit(do_not_specialize=VARYING)
def stepwise_backward_kernel(
    dout,  # [R, H], or None for zeros
    dh_n,  # [B, H], or None for zeros
    out,  # [R, H]
    last,  # [B, H]
    w_hh,  # [H, H]
    dpre,  # [R, H]
    new_last,  # [B, H]
    first,  # the first row of this step
    count,  # its rows
    before,  # the rows of the step taken before this one, 0 if none
    B,
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
    at = m[:, None] * H + n[None, :]
    unit = (n < H)[None, :]
    everyone = (m < B)[:, None] & unit
    active = (m < count)[:, None] & unit
    row = tl.cast(first, tl.int64) * H
    g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if dout is not None:
        g += tl.load(dout + row + at, mask=active, other=0.0).to(tl.float32)
    if dh_n is not None:
        g += tl.load(dh_n + at, mask=active & (m >= before)[:, None], other=0.0).to(tl.float32)
    h = tl.load(out + row + at, mask=active, other=0.0).to(tl.float32)
    old = tl.load(last + at, mask=everyone, other=0.0)
    g = multiply(g, last, H, 1, None, m0, B, w_hh, H, 1, n0, H, H, BLOCK_K, PRECISION, "")
    d = activation_backward(g, h, ACTIVATION).to(old.dtype)
    tl.store(dpre + row + at, d, mask=active)
    tl.store(new_last + at, tl.where(active, d, old), mask=everyone)


def stepwise_forward(
    pre: Tensor,  # [R, H]
    state: Tensor,  # [B, H]
    weight_hh: Tensor,  # [H, H]
    out: Tensor,  # [R, H]
    new_state: Tensor,  # [B, H]
    nonlinearity: str,
    precision: str,
) -> Launch:
    """The launch of any one step; `first`, `count` and the two buffers are given to each run."""
    batch, hidden = state.shape
    tiles = table.STEP[pre.dtype.itemsize]
    return Launch(
        stepwise_forward_kernel,
        (cover(batch, tiles.m), cover(hidden, tiles.n)),
        {
            "pre": pre,
            "state": state,
            "w_hh": weight_hh,
            "out": out,
            "new_state": new_state,
            "first": 0,
            "count": batch,
            "B": batch,
            "H": hidden,
        },
        {
            "ACTIVATION": form_of(nonlinearity, pre.dtype),
            "PRECISION": precision,
            **tile_constants(tiles),
        },
        tiles.warps,
        tiles.stages,
    )


def stepwise_backward(
    grad_out: Optional[Tensor],  # [R, H]
    grad_hn: Optional[Tensor],  # [B, H]
    out: Tensor,  # [R, H]
    last: Tensor,  # [B, H]
    weight_hh: Tensor,  # [H, H]
    dpre: Tensor,  # [R, H]
    new_last: Tensor,  # [B, H]
    nonlinearity: str,
    precision: str,
) -> Launch:
    """The launch of any one step; `first`, `count`, `before` and the two buffers are given to each run."""
    batch, hidden = last.shape
    tiles = table.STEP[out.dtype.itemsize]
    return Launch(
        stepwise_backward_kernel,
        (cover(batch, tiles.m), cover(hidden, tiles.n)),
        {
            "dout": grad_out,
            "dh_n": grad_hn,
            "out": out,
            "last": last,
            "w_hh": weight_hh,
            "dpre": dpre,
            "new_last": new_last,
            "first": 0,
            "count": batch,
            "before": 0,
            "B": batch,
            "H": hidden,
        },
        {"ACTIVATION": nonlinearity, "PRECISION": precision, **tile_constants(tiles)},
        tiles.warps,
        tiles.stages,
    )
