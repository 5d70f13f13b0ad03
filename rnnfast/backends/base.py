"""The contract that every backend fulfils.

A backend computes one layer in one direction (`sequence_*`) or one time step (`step_*`) on plain
tensors. It knows nothing of autograd, modules or argument checking: the layers above hand it tensors
of one dtype on one device, contiguous, with consistent shapes.

The only thing saved for backward is the output, because both activations can be differentiated from
it: tanh' = 1 - h^2 and relu' = [h > 0]. Of the other tensors a backward pass may read what the gradients
asked for need and no more: x for dW_ih, h0 for dW_hh, W_ih for dx, W_hh for dh0 and in every sequence. The
others have the right shape, but no memory behind it.

Notation: T steps, B sequences, I inputs, H hidden units, R rows. Rows are time-major: a dense batch has
R = T * B rows, a packed one has R = sum(batch_sizes), batch_sizes being non-increasing. With
`reverse=True` the same rows are walked from the last step to the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What dispatch needs to know to choose a backend. Sizes are plain ints."""

    kind: str  # "step" or "sequence"
    device: str  # device type: "cpu", "cuda", ...
    dtype: str  # "float32", "float64", "bfloat16", "float16", ...
    input_size: int  # I
    hidden_size: int  # H
    batch: int  # B
    steps: int  # T (1 for a step)
    packed: bool = False
    grad: bool = False  # whether a backward pass will follow
    deterministic: bool = False  # torch.are_deterministic_algorithms_enabled()


# Grads and Needs are named tuples: one of each is made in every backward pass, and a frozen dataclass takes
# three times as long.
class Grads(NamedTuple):
    """Gradients of one layer, None for those that are not needed.

    `bias` serves both b_ih and b_hh: they enter as a sum, so their gradients are equal.
    """

    x: Optional[Tensor] = None  # like x
    h0: Optional[Tensor] = None  # [B, H]
    weight_ih: Optional[Tensor] = None  # [H, I]
    weight_hh: Optional[Tensor] = None  # [H, H]
    bias: Optional[Tensor] = None  # [H]


class Needs(NamedTuple):
    """Which gradients to compute; the fields are those of `Grads`."""

    x: bool = True
    h0: bool = True
    weight_ih: bool = True
    weight_hh: bool = True
    bias: bool = True


class Backend:
    """Base class. A new backend is one file with one subclass and one entry in `dispatch`."""

    name: str = ""

    def unavailable(self) -> Optional[str]:
        """Why this backend cannot run on this machine at all, or None when it can."""
        raise NotImplementedError

    def details(self) -> str:
        """What `rnnfast.show_config` adds to the name of an available backend, as its instruction set."""
        return ""

    def refuses(self, problem: Problem) -> Optional[str]:
        """Why this backend cannot run `problem`, or None when it can."""
        raise NotImplementedError

    def measured(self) -> bool:
        """Whether this machine's device is of the kind that `dispatch.FASTER` was measured on."""
        return True

    def step_forward(
        self,
        x: Tensor,  # [B, I]
        h: Tensor,  # [B, H]
        weight_ih: Tensor,  # [H, I]
        weight_hh: Tensor,  # [H, H]
        bias_ih: Optional[Tensor],  # [H]
        bias_hh: Optional[Tensor],  # [H]
        nonlinearity: str,  # "tanh" or "relu"
    ) -> Tensor:  # [B, H]
        raise NotImplementedError

    def step_backward(
        self,
        grad: Tensor,  # [B, H]
        x: Tensor,  # [B, I]
        h: Tensor,  # [B, H]
        weight_ih: Tensor,  # [H, I]
        weight_hh: Tensor,  # [H, H]
        out: Tensor,  # [B, H], what step_forward returned
        nonlinearity: str,
        needs: Needs,
    ) -> Grads:
        raise NotImplementedError

    def sequence_forward(
        self,
        x: Tensor,  # [R, I]
        h0: Tensor,  # [B, H]
        weight_ih: Tensor,  # [H, I]
        weight_hh: Tensor,  # [H, H]
        bias_ih: Optional[Tensor],  # [H]
        bias_hh: Optional[Tensor],  # [H]
        nonlinearity: str,
        batch_sizes: Optional[Tensor],  # [T] int64 on the CPU; None for a dense batch (T = R / B)
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:  # out [R, H], h_n [B, H]
        raise NotImplementedError

    def sequence_backward(
        self,
        grad_out: Optional[Tensor],  # [R, H]; None stands for zeros
        grad_hn: Optional[Tensor],  # [B, H]; None stands for zeros
        x: Tensor,  # [R, I]
        h0: Tensor,  # [B, H]
        weight_ih: Tensor,  # [H, I]
        weight_hh: Tensor,  # [H, H]
        out: Tensor,  # [R, H], what sequence_forward returned
        nonlinearity: str,
        batch_sizes: Optional[Tensor],  # [T] int64 on the CPU, or None
        reverse: bool,
        needs: Needs,
    ) -> Grads:
        raise NotImplementedError
