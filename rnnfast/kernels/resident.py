"""The whole recurrence in one kernel: one program per tile of BLOCK_B sequences takes all T steps.

    forward    h_t = act(pre_t + h_{t-1} W_hh^T)
    backward   dpre_t = (dout_t + carry_t) act'(h_t);  carry_{t-1} = dpre_t W_hh

for an elman cell. Cells that leak have a second state, which `cell` describes; it stays in the registers of
the threads that own it, in float32. Where a step is followed by a cut, what it hands on becomes zero.

Ownership: a program owns its sequences for all steps, so programs never communicate and there is no grid-wide
barrier. W_hh is loaded once and stays in registers (`KEEP`), each warp holding the columns whose units
it computes. h (backward: dpre) goes through shared memory once a step, to reach all warps as the left operand
of the product. The inputs of a step, pre (backward: dout and h), do not depend on the step before, so they
are loaded one step ahead, and the offsets of packed rows two steps ahead.

H is padded to BLOCK_H, a power of two: padded columns of W_hh and pre are zero, and so are act(0) and its
gradient. The caller pads H to a multiple of 16, so that rows can be loaded 16 bytes at a time; loading single
elements would spill registers. Packed rows: a step with n rows changes the first n sequences of the state and
no others. Sequences that have ended keep their last state, and those that have not begun (reverse) keep h0.

Floor per step: the matrix instructions, BLOCK_H^2 / 128 of them in 16 bits, on four units, or h read by every
warp from shared memory at 128 bytes a cycle, whichever is longer; plus the latency of the chain product ->
activation -> shared memory -> product and of its barriers, six (backward: eight), which the compiler places:
a pair for h, and a pair for each of pre and out (backward: dout, h, dpre) to change between the layouts of
memory and of the product. `python -m rnnfast.inspect triton.resident_forward` prints it.

Limits: W_hh stays in one program up to H = 256 in 16 bits and H = 128 in float32. Larger layers run as
`stepwise`, a launch a step. Measured on an H100 in bfloat16 at B = 16, T = 512, call included: 0.33, 0.49 and
1.17 us a step at H = 64, 128 and 256.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layer import Recurrence
from . import table
from .activation import activate, activation_backward, form_of
from .cell import at_zero, leak, leak_backward
from .launch import Launch, cover


@triton.jit
def _resident(w_hh, row, col, H, KEEP: tl.constexpr):
    """W_hh or its transpose [BLOCK_H, BLOCK_H], the operand of all steps, in registers or in shared memory.

    By itself Triton (3.6 to 3.9) reads the operand from shared memory again in every step, for two reasons.
    It moves the read into the loop if that is its only use; the kernels below therefore have one product
    outside the loop as well. It keeps the result of a load in shared memory; the operand is therefore the
    result of a select, which also masks the load. Effect at H = 256 in bfloat16, compiled for sm_90: 18
    shared loads a step and warp instead of 34, and a floor of 0.92 us instead of 1.50.
    """
    inside = (row < H) & (col < H)
    if KEEP:
        return tl.where(inside, tl.load(w_hh + row * H + col, mask=inside), 0.0)
    else:
        return tl.load(w_hh + row * H + col, mask=inside, other=0.0)


@triton.jit
def _rows_of(i, offsets, T, B, PACKED: tl.constexpr, DESCENDING: tl.constexpr):
    """The first row and the number of rows of the i-th step taken; 0 rows beyond the last step."""
    t = tl.minimum(i, T - 1)
    if DESCENDING:
        t = T - 1 - t
    if PACKED:
        first = tl.load(offsets + t)
        count = (tl.load(offsets + t + 1) - first).to(tl.int32)
    else:
        first = tl.cast(t, tl.int64) * B
        count = B
    return first, tl.where(i < T, count, 0)


@triton.jit
def resident_forward_kernel(
    pre,  # [R, H]
    h0,  # [B, H]
    w_hh,  # [H, H]
    out,  # [R, H]; may be pre itself: a step's pre is read before its out is written, and only by its owner
    h_n,  # [B, H]
    offsets,  # [T + 1] int64, or None where dense
    cuts,  # [R] bool, or None
    alpha,  # [H]; None of an elman cell, as is what follows
    state0,  # [B, H]: h0 of a leaky cell; of a ctrnn v, where h0 is f(v)
    noise,  # [R, H], of a ctrnn, or None
    inner,  # [R, H]
    T,
    B,
    H,  # a multiple of 16
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    CELL: tl.constexpr,
    ZERO: tl.constexpr,  # what is carried of a state of zeros
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    KEEP: tl.constexpr,  # W_hh in registers, else in shared memory
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.arange(0, BLOCK_H)
    unit = (j < H)[None, :]
    # Offsets from the program's first row in a step have 32 bits, as 64 would take many registers.
    at = tl.arange(0, BLOCK_B)[:, None] * H + j[None, :]
    start = tl.program_id(0).to(tl.int64) * BLOCK_B * H

    w = _resident(w_hh, j[None, :], j[:, None], H, KEEP)  # W_hh^T
    h = tl.load(h0 + start + at, mask=(b < B)[:, None] & unit, other=0.0)
    first, count = _rows_of(0, offsets, T, B, PACKED, REVERSE)
    ahead = tl.load(pre + (first * H + start) + at, mask=(b < count)[:, None] & unit, other=0.0)
    next_first, next_count = _rows_of(1, offsets, T, B, PACKED, REVERSE)
    if CELL != "elman":
        share = tl.load(alpha + j, mask=j < H, other=0.0).to(tl.float32)[None, :]
        state = tl.load(state0 + start + at, mask=(b < B)[:, None] & unit, other=0.0).to(tl.float32)
    if noise is not None:
        noise_ahead = tl.load(noise + (first * H + start) + at, mask=(b < count)[:, None] & unit, other=0.0)
    if cuts is not None:
        cut_ahead = tl.load(cuts + first + b, mask=b < count, other=0)
    if KEEP:
        product = tl.dot(h, w, input_precision=PRECISION)
    for i in range(T):
        if not KEEP:
            product = tl.dot(h, w, input_precision=PRECISION)
        acc = product + ahead.to(tl.float32)
        here = out + (first * H + start) + at
        if CELL != "elman":
            inner_here = inner + (first * H + start) + at
        active = (b < count)[:, None]
        first, count = next_first, next_count
        next_first, next_count = _rows_of(i + 2, offsets, T, B, PACKED, REVERSE)
        ahead = tl.load(pre + (first * H + start) + at, mask=(b < count)[:, None] & unit, other=0.0)
        if CELL == "elman":
            new = activate(acc, ACTIVATION).to(h.dtype)
        else:
            added = 0.0
            if noise is not None:
                added = noise_ahead.to(tl.float32)
                noise_ahead = tl.load(
                    noise + (first * H + start) + at, mask=(b < count)[:, None] & unit, other=0.0
                )
            new_state, carried, kept = leak(acc, state, added, share, ACTIVATION, CELL)
            new = carried.to(h.dtype)
            state = tl.where(active, new_state, state)
            tl.store(inner_here, kept.to(h.dtype), mask=active & unit)
        h = tl.where(active, new, h)
        if cuts is not None:
            cut = (cut_ahead != 0)[:, None]
            cut_ahead = tl.load(cuts + first + b, mask=b < count, other=0)
            h = tl.where(cut, tl.full(h.shape, ZERO, h.dtype), h)
            if CELL != "elman":
                state = tl.where(cut, 0.0, state)
        if KEEP:
            product = tl.dot(h, w, input_precision=PRECISION)
        tl.store(here, new, mask=active & unit)
    if CELL == "elman":
        tl.store(h_n + start + at, h, mask=(b < B)[:, None] & unit)
    else:
        tl.store(h_n + start + at, state.to(h.dtype), mask=(b < B)[:, None] & unit)


@triton.jit
def resident_backward_kernel(
    dout,  # [R, H], or None for zeros
    dh_n,  # [B, H], or None for zeros
    out,  # [R, H], the activation's values: of a leaky cell what the forward pass kept
    w_hh,  # [H, H]
    dpre,  # [R, H]
    dh0,  # [B, H]
    offsets,  # [T + 1] int64, or None where dense
    cuts,  # [R] bool, or None
    alpha,  # [H]; None of an elman cell, as is what follows
    carried,  # [B, H], of a ctrnn f(v) of its first state, or None
    dinner,  # [R, H], or None for zeros
    dstate,  # [R, H], or None if it is not wanted
    T,
    B,
    H,  # a multiple of 16
    PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
    CELL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    KEEP: tl.constexpr,  # W_hh in registers, else in shared memory
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.arange(0, BLOCK_H)
    unit = (j < H)[None, :]
    at = tl.arange(0, BLOCK_B)[:, None] * H + j[None, :]
    start = tl.program_id(0).to(tl.int64) * BLOCK_B * H
    everyone = (b < B)[:, None] & unit
    dtype = dpre.dtype.element_ty

    w = _resident(w_hh, j[:, None], j[None, :], H, KEEP)
    carry = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if CELL != "elman":
        share = tl.load(alpha + j, mask=j < H, other=0.0).to(tl.float32)[None, :]
        q = carry
        if dh_n is not None:
            q += tl.load(dh_n + start + at, mask=everyone, other=0.0).to(tl.float32)
    elif dh_n is not None:
        carry += tl.load(dh_n + start + at, mask=everyone, other=0.0).to(tl.float32)
    first, count = _rows_of(0, offsets, T, B, PACKED, not REVERSE)
    mask = (b < count)[:, None] & unit
    h_ahead = tl.load(out + (first * H + start) + at, mask=mask, other=0.0)
    d_ahead = h_ahead
    if dout is not None:
        d_ahead = tl.load(dout + (first * H + start) + at, mask=mask, other=0.0)
    if dinner is not None:
        inner_ahead = tl.load(dinner + (first * H + start) + at, mask=mask, other=0.0)
    if cuts is not None:
        cut_ahead = tl.load(cuts + first + b, mask=b < count, other=0)
    next_first, next_count = _rows_of(1, offsets, T, B, PACKED, not REVERSE)
    d = tl.zeros((BLOCK_B, BLOCK_H), dtype)
    active = (b < 0)[:, None]
    for i in range(T):
        if KEEP:
            carry = tl.where(active, tl.dot(d, w, input_precision=PRECISION), carry)
        h = h_ahead.to(tl.float32)
        g = carry
        if dout is not None:
            g += d_ahead.to(tl.float32)
        here = dpre + (first * H + start) + at
        if dstate is not None:
            dstate_here = dstate + (first * H + start) + at
        active = (b < count)[:, None]
        first, count = next_first, next_count
        next_first, next_count = _rows_of(i + 2, offsets, T, B, PACKED, not REVERSE)
        mask = (b < count)[:, None] & unit
        h_ahead = tl.load(out + (first * H + start) + at, mask=mask, other=0.0)
        if dout is not None:
            d_ahead = tl.load(dout + (first * H + start) + at, mask=mask, other=0.0)
        if CELL == "elman":
            d = activation_backward(g, h, ACTIVATION).to(dtype)
        else:
            of_inner = 0.0
            if dinner is not None:
                of_inner = inner_ahead.to(tl.float32)
                inner_ahead = tl.load(dinner + (first * H + start) + at, mask=mask, other=0.0)
            g, found = leak_backward(g, of_inner, q, h, share, ACTIVATION, CELL)
            d = found.to(dtype)
            q = tl.where(active, (1.0 - share) * g, q)
            if dstate is not None:
                tl.store(dstate_here, g.to(dtype), mask=active & unit)
        tl.store(here, d, mask=active & unit)
        if cuts is not None:
            cut = (cut_ahead != 0)[:, None]
            cut_ahead = tl.load(cuts + first + b, mask=b < count, other=0)
            d = tl.where(cut, tl.zeros(d.shape, dtype), d)
            if CELL != "elman":
                q = tl.where(cut, 0.0, q)
        if not KEEP:
            carry = tl.where(active, tl.dot(d, w, input_precision=PRECISION), carry)
    if KEEP:
        carry = tl.where(active, tl.dot(d, w, input_precision=PRECISION), carry)
    if CELL == "ctrnn":
        r = tl.load(carried + start + at, mask=everyone, other=0.0).to(tl.float32)
        carry = activation_backward(carry, r, ACTIVATION)
    if CELL != "elman":
        carry += q
    tl.store(dh0 + start + at, carry.to(dh0.dtype.element_ty), mask=everyone)


def resident_forward(
    pre: Tensor,  # [R, H]
    h0: Tensor,  # [B, H]
    weight_hh: Tensor,  # [H, H]
    out: Tensor,  # [R, H]
    h_n: Tensor,  # [B, H]
    inner: Optional[Tensor],  # [R, H]; None of an elman cell
    recurrence: Recurrence,
    precision: str,
) -> Launch:
    block, row = _row(pre.dtype, precision, pre.shape[1], recurrence.cell)
    sequences = recurrence.sequences
    return Launch(
        resident_forward_kernel,
        (cover(sequences.batch, row.rows),),
        {
            "pre": pre,
            "h0": h0 if recurrence.carried is None else recurrence.carried,
            "w_hh": weight_hh,
            "out": out,
            "h_n": h_n,
            "offsets": sequences.offsets,
            "cuts": recurrence.cuts,
            "alpha": recurrence.alpha,
            "state0": None if recurrence.alpha is None else h0,
            "noise": recurrence.noise,
            "inner": inner,
            "T": sequences.steps,
            "B": sequences.batch,
            "H": pre.shape[1],
        },
        {
            **_constants(recurrence, precision, block, row),
            "ACTIVATION": form_of(recurrence.nonlinearity, pre.dtype),
            "ZERO": at_zero(recurrence),
        },
        row.warps,
        stages=1,
    )


def resident_backward(
    grad_out: Optional[Tensor],  # [R, H]
    grad_hn: Optional[Tensor],  # [B, H]
    value: Tensor,  # [R, H]: out, of a leaky cell inner
    weight_hh: Tensor,  # [H, H]
    dpre: Tensor,  # [R, H]
    dh0: Tensor,  # [B, H]
    grad_inner: Optional[Tensor],  # [R, H]
    dstate: Optional[Tensor],  # [R, H]
    recurrence: Recurrence,
    precision: str,
) -> Launch:
    block, row = _row(value.dtype, precision, value.shape[1], recurrence.cell)
    sequences = recurrence.sequences
    return Launch(
        resident_backward_kernel,
        (cover(sequences.batch, row.rows),),
        {
            "dout": grad_out,
            "dh_n": grad_hn,
            "out": value,
            "w_hh": weight_hh,
            "dpre": dpre,
            "dh0": dh0,
            "offsets": sequences.offsets,
            "cuts": recurrence.cuts,
            "alpha": recurrence.alpha,
            "carried": recurrence.carried,
            "dinner": grad_inner,
            "dstate": dstate,
            "T": sequences.steps,
            "B": sequences.batch,
            "H": value.shape[1],
        },
        {**_constants(recurrence, precision, block, row), "ACTIVATION": recurrence.nonlinearity},
        row.backward_warps,
        stages=1,
    )


def _row(dtype: torch.dtype, precision: str, hidden: int, cell: str) -> tuple[int, table.Resident]:
    found = table.resident(dtype, precision, hidden, cell)
    assert found is not None, "the caller checks that the layer fits"
    return found


def _constants(recurrence: Recurrence, precision: str, block: int, row: table.Resident) -> dict[str, Any]:
    return {
        "PACKED": recurrence.sequences.offsets is not None,
        "REVERSE": recurrence.sequences.reverse,
        "CELL": recurrence.cell,
        "PRECISION": precision,
        "KEEP": row.keep,
        "BLOCK_B": row.rows,
        "BLOCK_H": block,
    }
