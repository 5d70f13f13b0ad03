"""One step of the recurrence as a kernel of its own, for layers whose W_hh fits no single multiprocessor.

    forward    state' = act(pre + state W_hh^T)                          over the rows of the step
    backward   dpre = (dout + last W_hh + [first time] dh_n) act'(h)     over the rows of the step

for an elman cell; `cell` has the others, whose second state and q are in float32 and updated in place, as no
program reads another's. Where a step is followed by a cut, what it hands on becomes zero.

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

from ..layer import Recurrence
from . import table
from .activation import activate, activation_backward, form_of
from .cell import at_zero, leak, leak_backward
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
    cuts,  # [R] bool, or None
    alpha,  # [H]; None of an elman cell, as is what follows
    full,  # [B, H] float32: h of a leaky cell, v of a ctrnn, where `state` is what is carried to the product
    noise,  # [R, H], of a ctrnn, or None
    inner,  # [R, H]
    first,  # the first row of this step
    count,  # its rows
    B,
    H,
    CELL: tl.constexpr,
    ZERO: tl.constexpr,  # what is carried of a state of zeros
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
    if CELL == "elman":
        new = activate(acc, ACTIVATION).to(old.dtype)
    else:
        share = tl.load(alpha + n, mask=n < H, other=0.0).to(tl.float32)[None, :]
        before = tl.load(full + at, mask=everyone, other=0.0)
        added = 0.0
        if noise is not None:
            added = tl.load(noise + row + at, mask=active, other=0.0).to(tl.float32)
        after, carried, kept = leak(acc, before, added, share, ACTIVATION, CELL)
        new = carried.to(old.dtype)
        tl.store(inner + row + at, kept.to(old.dtype), mask=active)
    tl.store(out + row + at, new, mask=active)
    if cuts is not None:
        cut = (tl.load(cuts + first + m, mask=m < count, other=0) != 0)[:, None]
        new = tl.where(cut, tl.full(new.shape, ZERO, new.dtype), new)
        if CELL != "elman":
            after = tl.where(cut, 0.0, after)
    if CELL != "elman":
        tl.store(full + at, after, mask=active)
    tl.store(new_state + at, tl.where(active, new, old), mask=everyone)


@triton.jit(do_not_specialize=VARYING)
def stepwise_backward_kernel(
    dout,  # [R, H], or None for zeros
    dh_n,  # [B, H], or None for zeros
    out,  # [R, H], the activation's values: of a leaky cell what the forward pass kept
    last,  # [B, H]
    w_hh,  # [H, H]
    dpre,  # [R, H]
    new_last,  # [B, H]
    cuts,  # [R] bool, or None
    alpha,  # [H]; None of an elman cell, as is what follows
    leaked,  # [B, H] float32: q, at first dh_n
    dinner,  # [R, H], or None for zeros
    dstate,  # [R, H], or None if it is not wanted
    first,  # the first row of this step
    count,  # its rows
    before,  # the rows of the step taken before this one, 0 if none
    B,
    H,
    CELL: tl.constexpr,
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
    if CELL == "elman":
        d = activation_backward(g, h, ACTIVATION).to(old.dtype)
    else:
        share = tl.load(alpha + n, mask=n < H, other=0.0).to(tl.float32)[None, :]
        q = tl.load(leaked + at, mask=active, other=0.0)
        of_inner = 0.0
        if dinner is not None:
            of_inner = tl.load(dinner + row + at, mask=active, other=0.0).to(tl.float32)
        g, found = leak_backward(g, of_inner, q, h, share, ACTIVATION, CELL)
        d = found.to(old.dtype)
        q = (1.0 - share) * g
        if dstate is not None:
            tl.store(dstate + row + at, g.to(old.dtype), mask=active)
    tl.store(dpre + row + at, d, mask=active)
    if cuts is not None:
        cut = (tl.load(cuts + first + m, mask=m < count, other=0) != 0)[:, None]
        d = tl.where(cut, tl.zeros(d.shape, d.dtype), d)
        if CELL != "elman":
            q = tl.where(cut, 0.0, q)
    if CELL != "elman":
        tl.store(leaked + at, q, mask=active)
    tl.store(new_last + at, tl.where(active, d, old), mask=everyone)


def stepwise_forward(
    pre: Tensor,  # [R, H]
    state: Tensor,  # [B, H]: what is carried to the product
    weight_hh: Tensor,  # [H, H]
    out: Tensor,  # [R, H]
    new_state: Tensor,  # [B, H]
    full: Optional[Tensor],  # [B, H] float32; None of an elman cell, as is the next
    inner: Optional[Tensor],  # [R, H]
    recurrence: Recurrence,
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
            "cuts": recurrence.cuts,
            "alpha": recurrence.alpha,
            "full": full,
            "noise": recurrence.noise,
            "inner": inner,
            "first": 0,
            "count": batch,
            "B": batch,
            "H": hidden,
        },
        {
            "CELL": recurrence.cell,
            "ZERO": at_zero(recurrence),
            "ACTIVATION": form_of(recurrence.nonlinearity, pre.dtype),
            "PRECISION": precision,
            **tile_constants(tiles),
        },
        tiles.warps,
        tiles.stages,
    )


def stepwise_backward(
    grad_out: Optional[Tensor],  # [R, H]
    grad_hn: Optional[Tensor],  # [B, H], of an elman cell
    value: Tensor,  # [R, H]: out, of a leaky cell inner
    last: Tensor,  # [B, H]
    weight_hh: Tensor,  # [H, H]
    dpre: Tensor,  # [R, H]
    new_last: Tensor,  # [B, H]
    leaked: Optional[Tensor],  # [B, H] float32; None of an elman cell, as is what follows
    grad_inner: Optional[Tensor],  # [R, H]
    dstate: Optional[Tensor],  # [R, H]
    recurrence: Recurrence,
    precision: str,
) -> Launch:
    """The launch of any one step; `first`, `count`, `before` and the two buffers are given to each run."""
    batch, hidden = last.shape
    tiles = table.STEP[value.dtype.itemsize]
    return Launch(
        stepwise_backward_kernel,
        (cover(batch, tiles.m), cover(hidden, tiles.n)),
        {
            "dout": grad_out,
            "dh_n": grad_hn,
            "out": value,
            "last": last,
            "w_hh": weight_hh,
            "dpre": dpre,
            "new_last": new_last,
            "cuts": recurrence.cuts,
            "alpha": recurrence.alpha,
            "leaked": leaked,
            "dinner": grad_inner,
            "dstate": dstate,
            "first": 0,
            "count": batch,
            "before": 0,
            "B": batch,
            "H": hidden,
        },
        {
            "CELL": recurrence.cell,
            "ACTIVATION": recurrence.nonlinearity,
            "PRECISION": precision,
            **tile_constants(tiles),
        },
        tiles.warps,
        tiles.stages,
    )
