"""Turning a model's RNNs into ours and back, and nothing else about the model."""

from __future__ import annotations

from typing import TypeVar

import torch

from . import dispatch
from .cell import RNNCell
from .continuous import CTRNN, LeakyRNN
from .modules import RNN

Model = TypeVar("Model", bound=torch.nn.Module)

_OURS = (RNN, RNNCell)
_BY_COUNTERPART: dict[type, type[RNN] | type[RNNCell]] = {cls.counterpart: cls for cls in _OURS}


def convert(model: Model, backend: str = "auto") -> Model:
    """Makes every `torch.nn.RNN` and `torch.nn.RNNCell` in `model` one of ours, in place; returns the model.

    The module objects stay the same, only their class changes. So all that refers to them goes on working:
    other modules, lists and hooks that hold them, their Parameters in optimizers, DistributedDataParallel. A
    `forward` that was replaced on an object stays in front, as it does in torch. A bound method that was
    taken before (`run = rnn.forward`) still runs torch's implementation, on the same weights and flags.

    Subclasses of the two are left alone, since what they override may rely on torch's implementation.
    Modules that are rnnfast's already are left alone too, so converting twice is harmless; set their
    `backend` attribute to change it.

    `RNN` is no subclass of `torch.nn.RNN`: tools that ask for that class (weight initialisers, counters of
    operations, `quantize_dynamic`, which asks for the very class of a cell) pass it by. Let them run before
    `convert`, or after `revert`.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend is not available here; the message says why.
    """
    dispatch.check_name(backend)
    for module in model.modules():
        cls = _BY_COUNTERPART.get(type(module))
        if cls is not None:
            module.__class__ = cls
            module.become(backend)  # type: ignore[operator]
    return model


def revert(model: Model) -> Model:
    """Makes every `RNN` and `RNNCell` in `model` one of torch's again, in place; returns the model.

    The inverse of `convert`, for modules that were constructed as ours, too: the objects and their Parameters
    stay the same. Then `model` can be saved for, exported to or quantised by what doesn't know rnnfast.
    Subclasses are left alone, and so is a module under `torch.nn.utils.parametrize`, which has a class of its
    own.

    Raises:
        RuntimeError: there are a `LeakyRNN` or `CTRNN` in it, of which torch has no counterpart.
    """
    without = [name for name, module in model.named_modules() if isinstance(module, (LeakyRNN, CTRNN))]
    if without:
        raise RuntimeError(
            f"torch has no counterpart of {', '.join(map(repr, without))}; nothing was changed"
        )
    for module in model.modules():
        if type(module) in _OURS:
            module.revert()  # type: ignore[operator]
    return model
