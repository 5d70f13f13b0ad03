"""What goes on around a call, and so which ways it may take: gradients, transforms, tracers, modes."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None)})
# Private names of torch, looked up with a default so that another version can at worst lose the feature
# or, with the last one, some speed.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_is_profiling = getattr(torch.autograd, "_profiler_enabled", lambda: False)
_is_tracing = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)
_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def tracing() -> bool:
    """Whether `torch.jit.trace` records; what it records should need nothing but torch to be run."""
    return _is_tracing()


def watching() -> bool:
    """Whether somebody wants to see our operators: a tracer, a dispatch mode, the profiler."""
    return torch.compiler.is_compiling() or _dispatch_modes() > 0 or _is_profiling() or _is_tracing()


def watched(*tensors: Optional[Tensor]) -> bool:
    """Whether our operators must be seen: by those of `watching` or by a tensor subclass."""
    return watching() or not PLAIN.issuperset(map(type, tensors))


def needs_grad(*tensors: Optional[Tensor]) -> bool:
    """Whether autograd will record a call with these arguments."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def needs_composite() -> bool:
    """Whether a transform is active that has to see differentiable operators all the way down."""
    return _functorch_active() or getattr(forward_ad, "_current_level", -1) >= 0


def undisturbed() -> bool:
    """Neither `watching`, nor `needs_composite`, nor autocast: one function, as every call asks it first."""
    return not (
        torch.compiler.is_compiling()
        or _dispatch_modes()
        or _is_profiling()
        or _is_tracing()
        or _functorch_active()
        or any_autocast()
        or getattr(forward_ad, "_current_level", -1) >= 0
    )
