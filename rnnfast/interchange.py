"""Taking the place of torch's modules, and letting them take ours, where a tool knows only torch's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch


class Interchangeable(torch.nn.Module):
    """What RNN and RNNCell have in common: a backend, and a module of torch's with the same parameters."""

    counterpart: ClassVar[type[torch.nn.Module]]

    backend: str = "auto"

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.backend == "auto" else f"{text}, backend={self.backend}"

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """What torch.jit.script compiles in place of this module: torch's own, with the same parameters.

        torch.jit.script puts it into the model that it is given, too; `rnnfast.convert` changes that back.
        """
        return recast(self, self.counterpart)

    def leaf(self, *args: Any) -> Any:
        """Records a call of this module in the torch.fx graph being traced, as fx does for torch's own."""
        tracer = args[0].tracer
        if self is tracer.root:
            name = type(self).__name__
            raise TypeError(f"torch.fx takes {name} for a leaf: trace a module that contains it, not itself")
        return tracer.create_proxy("call_module", tracer.path_of_module(self), args, {})


def recast(module: torch.nn.Module, cls: type[torch.nn.Module]) -> torch.nn.Module:
    """A module of class `cls` with all that `module` has.

    Past __init__, which would draw random numbers and allocate weights only to drop them.
    """
    new = cls.__new__(cls)
    new.__dict__.update(module.__dict__)
    return new
