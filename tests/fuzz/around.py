"""What may go on around a call: modes of torch, and what is restored after it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .problem import Problem

LAYERS = ("rnn_tanh", "rnn_relu", "rnn_tanh_cell", "rnn_relu_cell")
FACTORIES = ("empty", "empty_like", "new_empty", "zeros", "zeros_like", "new_zeros")


class Doubling(TorchFunctionMode):
    """Sees torch's RNN operators and doubles what they return, which shows that it has seen them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") not in LAYERS:
            return result
        return tuple(2 * r for r in result) if isinstance(result, tuple) else 2 * result


class Halving(TorchFunctionMode):
    """Makes new tensors of another dtype than was asked for, smaller than a kernel may think."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result.half() if getattr(function, "__name__", "") in FACTORIES else result


class PassThrough(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # seconds, the first time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _mode(name: str) -> contextlib.AbstractContextManager[Any]:
    if name == "deterministic":
        return _deterministic()
    if name == "autocast":
        return torch.autocast("cpu", torch.bfloat16)
    if name == "anomaly":
        return torch.autograd.set_detect_anomaly(True)
    if name == "doubling mode":
        return Doubling()
    if name == "halving mode":
        return Halving()
    if name == "dispatch mode":
        return PassThrough()
    if name == "saved hooks":
        return torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t)
    if name == "device context":
        return torch.device("meta")
    if name == "profiler":
        return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    return contextlib.nullcontext()


@contextlib.contextmanager
def around(p: Problem, exact: bool) -> Iterator[None]:
    """The surroundings of a call; the truth has only those that change the numbers."""
    name = p.around if not exact or p.around == "doubling mode" else ""
    grad = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[p.mode]
    with warnings.catch_warnings(), grad():
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64 if name == "default dtype" else torch.float32)
        torch.manual_seed(p.seed)
        try:
            with _mode(name):
                yield
        finally:
            torch.set_default_dtype(torch.float32)
