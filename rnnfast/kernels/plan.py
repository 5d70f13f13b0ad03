"""From tensors to launches: which kernel, grid, tile and activation. Nothing is computed here."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from ..backends.base import Grads
from ..backends.recurrence import Walk
from . import table
from .launch import Launch
from .sequence import sequence_backward_kernel, sequence_forward_kernel
from .step import step_backward_input_kernel, step_backward_weight_kernel, step_forward_kernel
from .stepwise import stepwise_backward_kernel, stepwise_forward_kernel


def activation(nonlinearity: str, dtype: torch.dtype) -> str:
    """The form of the activation that is exact enough for outputs of `dtype`."""
    if nonlinearity == "relu" or dtype is torch.float32:
        return nonlinearity
    # The instruction is NVIDIA's.
    return "tanh_approx" if dtype is torch.bfloat16 and torch.version.hip is None else "tanh_exp"


def _tile_constants(tiles: table.Tiles) -> dict[str, int]:
    return {"BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k}


def _cover(length: int, tile: int) -> int:
    return -(-length // tile)


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
        (_cover(batch, tiles.m), _cover(hidden, tiles.n)),
        {
            "x": x,
            "h": h,
            "w_ih": weight_ih,
            "w_hh": weight_hh,
            "b_ih": bias_ih,
            "b_hh": bias_hh,
            "out": out,
            **_strides(x=x, h=h, w_ih=weight_ih, w_hh=weight_hh),
            "B": batch,
            "I": inputs,
            "H": hidden,
        },  # fmt: skip
        {
            "ACTIVATION": activation(nonlinearity, x.dtype),
            "PRECISION": precision,
            **_tile_constants(tiles),
        },
        tiles.warps,
        tiles.stages,
    )


def _strides(**tensors: Tensor) -> dict[str, int]:
    return {
        f"{name}_{axis}": tensor.stride(i)
        for name, tensor in tensors.items()
        for i, axis in enumerate(("row", "col"))
    }


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
    x_tiles = _cover(inputs, tiles.n) if dx is not None else 0
    return Launch(
        step_backward_input_kernel,
        (_cover(batch, tiles.m), x_tiles + (_cover(hidden, tiles.n) if dh is not None else 0)),
        {
            "grad": grad,
            "out": out,
            "w_ih": weight_ih,
            "w_hh": weight_hh,
            "dx": dx,
            "dh": dh,
            **_strides(w_ih=weight_ih, w_hh=weight_hh),
            "B": batch,
            "I": inputs,
            "H": hidden,
            "X_TILES": x_tiles,
        },  # fmt: skip
        {"ACTIVATION": nonlinearity, "PRECISION": precision, **_tile_constants(tiles)},
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
    tiles = table.WEIGHTS[grad.dtype.itemsize]
    x_tiles = _cover(inputs, tiles.n) if dw_ih is not None else 0
    columns = x_tiles + (_cover(hidden, tiles.n) if dw_hh is not None else 0)
    return Launch(
        step_backward_weight_kernel,
        (_cover(hidden, tiles.m), max(1, columns)),
        {
            "grad": grad,
            "out": out,
            "x": x,
            "h": h,
            "dw_ih": dw_ih,
            "dw_hh": dw_hh,
            "db": db,
            **_strides(x=x, h=h),
            "B": batch,
            "I": inputs,
            "H": hidden,
            "X_TILES": x_tiles,
        },  # fmt: skip
        {"ACTIVATION": nonlinearity, "PRECISION": precision, **_tile_constants(tiles)},
        tiles.warps,
        tiles.stages,
    )


def sequence_forward(
    pre: Tensor,  # [R, H]
    h0: Tensor,  # [B, H]
    weight_hh: Tensor,  # [H, H]
    out: Tensor,  # [R, H]
    h_n: Tensor,  # [B, H]
    nonlinearity: str,
    precision: str,
    walk: Walk,
) -> Launch:
    block, row = _resident(pre.dtype, precision, pre.shape[1])
    return Launch(
        sequence_forward_kernel,
        (_cover(walk.batch, row.rows),),
        {
            "pre": pre,
            "h0": h0,
            "w_hh": weight_hh,
            "out": out,
            "h_n": h_n,
            "offsets": walk.offsets,
            "T": walk.steps,
            "B": walk.batch,
            "H": pre.shape[1],
        },  # fmt: skip
        _sequence_constants(walk, activation(nonlinearity, pre.dtype), precision, block, row),
        row.forward_warps,
        1,
    )


def sequence_backward(
    grad_out: Optional[Tensor],  # [R, H]
    grad_hn: Optional[Tensor],  # [B, H]
    out: Tensor,  # [R, H]
    weight_hh: Tensor,  # [H, H]
    dpre: Tensor,  # [R, H]
    dh0: Tensor,  # [B, H]
    nonlinearity: str,
    precision: str,
    walk: Walk,
) -> Launch:
    block, row = _resident(out.dtype, precision, out.shape[1])
    return Launch(
        sequence_backward_kernel,
        (_cover(walk.batch, row.rows),),
        {
            "dout": grad_out,
            "dh_n": grad_hn,
            "out": out,
            "w_hh": weight_hh,
            "dpre": dpre,
            "dh0": dh0,
            "offsets": walk.offsets,
            "T": walk.steps,
            "B": walk.batch,
            "H": out.shape[1],
        },  # fmt: skip
        _sequence_constants(walk, nonlinearity, precision, block, row),
        row.backward_warps,
        1,
    )


def _resident(dtype: torch.dtype, precision: str, hidden: int) -> tuple[int, table.Resident]:
    found = table.resident(dtype, precision, hidden)
    assert found is not None, "the caller checks that the layer fits"
    return found


def _sequence_constants(
    walk: Walk, activation: str, precision: str, block: int, row: table.Resident
) -> dict[str, Any]:
    return {
        "PACKED": walk.offsets is not None,
        "REVERSE": walk.reverse,
        "ACTIVATION": activation,
        "PRECISION": precision,
        "BLOCK_B": row.rows,
        "BLOCK_H": block,
    }


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
        (_cover(batch, tiles.m), _cover(hidden, tiles.n)),
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
        },  # fmt: skip
        {
            "ACTIVATION": activation(nonlinearity, pre.dtype),
            "PRECISION": precision,
            **_tile_constants(tiles),
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
        (_cover(batch, tiles.m), _cover(hidden, tiles.n)),
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
        },  # fmt: skip
        {"ACTIVATION": nonlinearity, "PRECISION": precision, **_tile_constants(tiles)},
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
    """One launch or two, as the gradients asked for require."""
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
