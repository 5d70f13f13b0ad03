"""The whole recurrence in one kernel: one program per tile of BLOCK_B sequences walks all T steps.

    forward    h_t = act(pre_t + h_{t-1} W_hh^T)
    backward   dpre_t = (dout_t + carry_t) act'(h_t);  carry_{t-1} = dpre_t W_hh

Ownership: a program owns its sequences for all time, so programs never talk to each other and no grid-wide
barrier exists. W_hh is loaded once; the compiler keeps it in shared memory and feeds the product from there in
every step. h (backward: the carry) stays in registers, going through shared memory only to become the left
operand of the product. What a step needs from memory, pre (backward: dout and h), does not depend on the step
before, so it is loaded one step ahead, and where it lies, for packed rows, two steps ahead.

H is padded to BLOCK_H, a power of two: padded columns of W_hh and pre are zero, and so are act(0) and its
gradient. Packed rows: a step with n rows changes the first n sequences of the state and leaves the others
alone; so rows that have ended keep their last state, and rows that have not begun (reverse) keep h0.

Floor per step: the product's operands from shared memory, BLOCK_H^2 elements at 128 bytes a cycle, plus the
latency of the chain product -> activation -> shared memory -> product. `python -m rnnfast.inspect` prints it.
"""

import triton
import triton.language as tl

from .activation import activate, activation_backward


@triton.jit
def _rows_of(i, offsets, T, B, PACKED: tl.constexpr, DESCENDING: tl.constexpr):
    """The first row of the i-th step taken, and how many it has; none beyond the last."""
    t = tl.minimum(i, T - 1)
    if DESCENDING:
        t = T - 1 - t
    if PACKED:
        first = tl.load(offsets + t)
        count = tl.load(offsets + t + 1) - first
    else:
        first = tl.cast(t, tl.int64) * B
        count = tl.cast(B, tl.int64)
    return first, tl.where(i < T, count, 0)


@triton.jit
def sequence_forward_kernel(
    pre,  # [R, H]
    h0,  # [B, H]
    w_hh,  # [H, H]
    out,  # [R, H]; may be pre itself: a step's pre is read before its out is written, and only by its owner
    h_n,  # [B, H]
    offsets,  # [T + 1] int64, or None where dense
    T,
    B,
    H,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.arange(0, BLOCK_H)
    unit = (j < H)[None, :]
    at = b[:, None] * H + j[None, :]  # of a sequence's row among the rows of a step

    w = tl.load(w_hh + j[None, :] * H + j[:, None], mask=unit & (j < H)[:, None], other=0.0)  # W_hh^T
    h = tl.load(h0 + at, mask=(b < B)[:, None] & unit, other=0.0)
    first, count = _rows_of(0, offsets, T, B, PACKED, REVERSE)
    ahead = tl.load(pre + first * H + at, mask=(b < count)[:, None] & unit, other=0.0)
    next_first, next_count = _rows_of(1, offsets, T, B, PACKED, REVERSE)
    for i in range(T):
        acc = ahead.to(tl.float32)
        here = out + first * H + at
        active = (b < count)[:, None]
        first, count = next_first, next_count
        next_first, next_count = _rows_of(i + 2, offsets, T, B, PACKED, REVERSE)
        ahead = tl.load(pre + first * H + at, mask=(b < count)[:, None] & unit, other=0.0)
        acc = tl.dot(h, w, acc, input_precision=PRECISION)
        new = activate(acc, ACTIVATION).to(h.dtype)
        if PACKED:
            h = tl.where(active, new, h)
        else:
            h = new
        tl.store(here, new, mask=active & unit)
    tl.store(h_n + at, h, mask=(b < B)[:, None] & unit)


@triton.jit
def sequence_backward_kernel(
    dout,  # [R, H], or None for zeros
    dh_n,  # [B, H], or None for zeros
    out,  # [R, H]
    w_hh,  # [H, H]
    dpre,  # [R, H]
    dh0,  # [B, H]
    offsets,  # [T + 1] int64, or None where dense
    T,
    B,
    H,
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.arange(0, BLOCK_H)
    unit = (j < H)[None, :]
    at = b[:, None] * H + j[None, :]
    everyone = (b < B)[:, None] & unit
    dtype = dpre.dtype.element_ty

    w = tl.load(w_hh + j[:, None] * H + j[None, :], mask=unit & (j < H)[:, None], other=0.0)
    carry = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if dh_n is not None:
        carry += tl.load(dh_n + at, mask=everyone, other=0.0).to(tl.float32)
    first, count = _rows_of(0, offsets, T, B, PACKED, not REVERSE)
    mask = (b < count)[:, None] & unit
    h_ahead = tl.load(out + first * H + at, mask=mask, other=0.0)
    d_ahead = h_ahead
    if dout is not None:
        d_ahead = tl.load(dout + first * H + at, mask=mask, other=0.0)
    next_first, next_count = _rows_of(1, offsets, T, B, PACKED, not REVERSE)
    for i in range(T):
        h = h_ahead.to(tl.float32)
        g = carry
        if dout is not None:
            g += d_ahead.to(tl.float32)
        here = dpre + first * H + at
        active = (b < count)[:, None]
        first, count = next_first, next_count
        next_first, next_count = _rows_of(i + 2, offsets, T, B, PACKED, not REVERSE)
        mask = (b < count)[:, None] & unit
        h_ahead = tl.load(out + first * H + at, mask=mask, other=0.0)
        if dout is not None:
            d_ahead = tl.load(dout + first * H + at, mask=mask, other=0.0)
        d = activation_backward(g, h, ACTIVATION).to(dtype)
        tl.store(here, d, mask=active & unit)
        back = tl.dot(d, w, input_precision=PRECISION)
        if PACKED:
            carry = tl.where(active, back, carry)
        else:
            carry = back
    tl.store(dh0 + at, carry.to(dh0.dtype.element_ty), mask=everyone)
