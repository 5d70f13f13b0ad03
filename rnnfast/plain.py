"""The short way to the CPU kernels: one native call from the tensors to the result, for calls that are plain.

Plain are dense tensors of torch's own types, of one dtype and with shapes that fit, on the CPU, for which dispatch
names the CPU backend (csrc/cpu/plain.cpp tells), while `context.undisturbed`. For anything else the answer is
None, as it is where torch has no table of C functions to look into tensors with (before 2.10) or the native
extension is missing. The general way then finds out what to do, and is the only one to raise.

It buys what Python takes for the same: at T = 1, B = 1, H = 64 a forward call of an RNN takes BEFORE us the
general way and AFTER this way, 1.4 of them in the kernel.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from . import dispatch
from .backends import cpu
from .context import watching

step: Any = getattr(cpu.native, "plain_step", None)
sequence: Any = getattr(cpu.native, "plain_sequence", None)

# Whether the short way is there at all.
ready: bool = step is not None and cpu.native.plain_setup(
    Tensor,
    torch.nn.Parameter,
    dispatch.find,
    cpu.CpuBackend,
    torch.device("cpu"),
    tuple(cpu.DTYPES),
    torch.empty_like,
)


def backward(
    grad_out: Optional[Tensor],  # like out; None stands for zeros
    grad_hn: Optional[Tensor],  # like h; None stands for zeros
    x: Tensor,  # [T, B, I], or of a step [B, I]
    h: Tensor,  # [B, H] or [1, B, H]
    weight_ih: Tensor,
    weight_hh: Tensor,
    out: Tensor,
    nonlinearity: str,
    reverse: bool,
    needs_input_grad: tuple[bool, ...],
    backend: str,
) -> Optional[tuple[Any, ...]]:
    """What the backward of `derivative`'s Functions returns, for a first derivative; or None."""
    if not ready or watching():
        return None
    return cpu.native.plain_backward(
        None if grad_out is None else grad_out.contiguous(),
        None if grad_hn is None else grad_hn.contiguous(),
        x,
        h,
        weight_ih,
        weight_hh,
        out,
        nonlinearity,
        reverse,
        backend,
        needs_input_grad,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )
