"""What goes on around a call, and so which ways it may take: gradients, transforms, tracers, modes."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import has_torch_function
from torch.utils._device import DeviceContext

PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None)})
# Private names of torch, looked up with a default so that another version can at worst lose the feature
# or, with the last one, some speed.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_is_profiling = getattr(torch.autograd, "_profiler_enabled", lambda: False)
_is_tracing = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)
_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_forward_ad = vars(forward_ad)  # a name in it takes half the time of an attribute
_function_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 0)
_function_mode = getattr(torch._C, "_get_function_stack_at", lambda index: None)
# Of a class that has no say in what is done with its instances.
_NOT_OVERRIDDEN = (Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)  # type: ignore
any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def tracing() -> bool:
    """Whether `torch.jit.trace` records; what it records should need nothing but torch to be run."""
    return not is_compiling() and _is_tracing()  # torch.compile can't trace the second question


def recorded_as_torch_s(backend: str) -> bool:
    """Whether what is recorded of a call should be torch's own operator.

    In traces always, as they are made to be loaded elsewhere and have no use for our operator; in
    `torch.export` if asked for by name, because torch's operator fixes the number of steps there.
    """
    # The flag itself: torch 2.11 takes `torch.compiler.is_exporting()` for true in torch.compile, too.
    return tracing() or (backend == "aten" and getattr(torch.compiler, "_is_exporting_flag", False))


def fusible(x: Tensor) -> bool:
    """Whether torch.compile does better with a step in torch's operators, which it fuses with what is around.

    Our operator stands in the way of that, and is called in Python at every step of a compiled loop. Not for
    16-bit types, whose sums ours keeps in float32, nor where algorithms have to be deterministic. A program
    that is exported keeps the operator.
    """
    return (
        is_compiling()
        and not getattr(torch.compiler, "_is_exporting_flag", False)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.are_deterministic_algorithms_enabled()
    )


def watching() -> bool:
    """Whether our operators must be seen: by torch.compile, a tracer, a dispatch mode or the profiler."""
    return is_compiling() or _dispatch_modes() > 0 or _is_profiling() or _is_tracing()


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


def ordinary(*arguments: Any) -> bool:
    """Whether all are torch's own tensors, or None, and no function mode is active: the usual case."""
    return is_compiling() or (PLAIN.issuperset(map(type, arguments)) and not _function_modes())


def overridden(*arguments: Any) -> bool:
    """Whether a `__torch_function__` is to see a call: that of an argument, or that of a mode.

    Whatever its type, an argument may have one; those of Tensor itself and of `torch.device(...)` as a
    context change nothing about a call.
    """
    if is_compiling() or not has_torch_function(arguments):
        return False
    return any(map(_has_override, set(map(type, arguments)) - PLAIN)) or (
        bool(_function_modes()) and _mode_overrides()
    )


def _has_override(cls: type) -> bool:
    function = getattr(cls, "__torch_function__", None)
    return function is not None and getattr(function, "__func__", function) not in _NOT_OVERRIDDEN


def _mode_overrides() -> bool:
    """Whether a function mode is active that wants more than to name the device of new tensors."""
    return not watching() and any(
        not isinstance(_function_mode(index), DeviceContext) for index in range(_function_modes())
    )


def autocast_on(input: Tensor) -> bool:
    """Whether autocast is on for the device of `input`."""
    # any_autocast takes a fraction of the other's time, but torch.compile can't trace it.
    if not is_compiling() and not any_autocast():
        return False
    return torch.is_autocast_enabled(input.device.type)


def undisturbed() -> bool:
    """Not `watching`, no transform, mode or autocast: one function, as every call asks it first."""
    return not (
        is_compiling()
        or _dispatch_modes()
        or _is_profiling()
        or _is_tracing()
        or _functorch_active()
        or any_autocast()
        or _forward_ad.get("_current_level", -1) >= 0
        or (_function_modes() and _mode_overrides())
    )
