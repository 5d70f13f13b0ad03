"""One layer in one direction, as backends and kernels know it: its tensors, its gradients, its steps."""

from __future__ import annotations

from typing import NamedTuple, Optional

from torch import Tensor


# Tuples: one of each is made in every backward pass, and a frozen dataclass takes three times as long.
class Layer(NamedTuple):
    """One layer in one direction."""

    x: Tensor  # [R, I], or [R, D * H] of the layer before
    h0: Tensor  # [B, H]
    weight_ih: Tensor  # [H, I]
    weight_hh: Tensor  # [H, H]
    bias_ih: Optional[Tensor]  # [H]
    bias_hh: Optional[Tensor]  # [H]
    nonlinearity: str = "tanh"  # one of call.NONLINEARITIES
    batch_sizes: Optional[Tensor] = None  # [T] int64 on the CPU; None for a dense batch (T = R / B)
    reverse: bool = False
    cell: str = "elman"  # one of call.CELLS
    alpha: Optional[Tensor] = None  # [H]; None of an elman cell
    noise: Optional[Tensor] = None  # [R, H]
    resets: Optional[Tensor] = None  # [R] bool: the rows whose step starts from zero


class Grads(NamedTuple):
    """Gradients of one layer, None for those that are not needed.

    `bias` serves both b_ih and b_hh: they enter as a sum, so their gradients are equal.
    """

    x: Optional[Tensor] = None  # like x
    h0: Optional[Tensor] = None  # [B, H]
    weight_ih: Optional[Tensor] = None  # [H, I]
    weight_hh: Optional[Tensor] = None  # [H, H]
    bias: Optional[Tensor] = None  # [H]
    alpha: Optional[Tensor] = None  # [H]
    noise: Optional[Tensor] = None  # [R, H]


class Needs(NamedTuple):
    """Which gradients of a layer to compute; the fields are those of `Grads`."""

    x: bool = True
    h0: bool = True
    weight_ih: bool = True
    weight_hh: bool = True
    bias: bool = True
    alpha: bool = False
    noise: bool = False


class Sequences(NamedTuple):
    """A batch of sequences: the rows of every step, and the order in which the steps are taken."""

    steps: int  # T
    batch: int  # B
    offsets: Optional[Tensor]  # [T + 1] int64 on the device: the first row of every step; None: t * B
    sizes: Optional[Tensor]  # [T] int64 on the CPU: rows of every step; None: B
    reverse: bool


class Recurrence(NamedTuple):
    """What a GPU backend walks through step by step: the cell, and the tensors that every step reads."""

    nonlinearity: str  # one of call.NONLINEARITIES
    sequences: Sequences
    cell: str = "elman"  # one of call.CELLS
    alpha: Optional[Tensor] = None  # [H]; None of an elman cell
    noise: Optional[Tensor] = None  # [R, H], of a continuous-time cell alone: others have it in pre
    cuts: Optional[Tensor] = None  # [R] bool: where what a step hands to the next one taken becomes zero
    carried: Optional[Tensor] = None  # [B, H], of a continuous-time cell alone: f(v) of the state v = h0
