"""Turning a model's RNNs into ours, and nothing else about the model."""

from __future__ import annotations

from typing import TypeVar

import torch

from . import dispatch
from .interchange import recast
from .modules import RNN, RNNCell

Model = TypeVar("Model", bound=torch.nn.Module)

_COUNTERPARTS: dict[type, type] = {cls.counterpart: cls for cls in (RNN, RNNCell)}


def convert(model: Model, backend: str = "auto") -> Model:
    """Replaces every `torch.nn.RNN` and `torch.nn.RNNCell` in `model`, in place, and returns the model.

    The new modules hold the very same Parameters, hooks and other attributes, so optimizers, tied weights
    and DistributedDataParallel go on working. A module that occurs in several places is replaced by one
    module in all of them. If `model` is itself an RNN, its replacement is returned.

    Subclasses of the two are left alone, since what they override may rely on torch's implementation.
    Modules that are rnnfast's already are left alone too, so converting twice is harmless; set their
    `backend` attribute to change it.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend is not available here; the message says why.
    """
    dispatch.check_name(backend)
    replacements: dict[torch.nn.Module, torch.nn.Module] = {}

    def replaced(module: torch.nn.Module) -> torch.nn.Module:
        if type(module) not in _COUNTERPARTS:
            return module
        if module not in replacements:
            new = replacements[module] = recast(module, _COUNTERPARTS[type(module)])
            new.backend = backend  # type: ignore[assignment]
        return replacements[module]

    for parent in list(model.modules()):
        # Not named_children(), which skips the second name of a module that has two.
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = replaced(child)
    return replaced(model)  # type: ignore[return-value]
