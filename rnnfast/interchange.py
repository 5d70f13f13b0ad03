"""Taking the place of torch's modules, and letting them take ours, where a tool knows only torch's."""

from __future__ import annotations

from typing import Any, ClassVar, Optional

import torch
from torch.nn.modules.rnn import RNN as TorchRNN
from torch.nn.modules.rnn import RNNCell as TorchRNNCell

__all__ = ["Interchangeable", "TorchRNN", "TorchRNNCell"]

# torch's classes are kept from the import on, because `torch.nn.RNN` may later be a name for ours: assigning
# to it is how people speed up code that they don't own. Everything in this package that means torch's class
# says so by these names or by `counterpart`.


class Interchangeable(torch.nn.Module):
    """What RNN and RNNCell have in common: a backend, and a class of torch's with the same content."""

    counterpart: ClassVar[type[torch.nn.Module]]

    backend: str = "auto"

    # The attributes of instances that torch's class doesn't have.
    OWN: ClassVar[tuple[str, ...]] = ("backend",)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.backend == "auto" else f"{text}, backend={self.backend}"

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """What torch.jit.script compiles in place of this module: itself, having become one of torch's class.

        torch.jit.script puts what this returns into the model that it is given. So it is the same object, as
        after `rnnfast.revert`, and `rnnfast.convert` changes it back.
        """
        if "counterpart" not in vars(type(self)):
            name, theirs = type(self).__name__, self.counterpart.__name__
            raise RuntimeError(
                f"torch.jit.script compiles torch.nn.{theirs} in place of ours, without what {name} adds"
                f" to it; trace it, or derive it from torch.nn.{theirs}"
            )
        self.revert()
        return self

    def torchs(self, input: Any, hx: Any, cause: Optional[str] = None) -> Any:
        """What torch's class returns or raises for this call; `cause` is added to the text of the error."""
        try:
            return self.counterpart.forward(self, input, hx)
        except Exception as error:
            if cause is None or type(error) not in (AssertionError, AttributeError, RuntimeError, TypeError):
                raise
            raise type(error)(f"{error} ({cause})") from None

    def become(self, backend: str) -> None:
        """Completes a module of torch's class whose `__class__` has become this one."""
        self.backend = backend

    def revert(self) -> None:
        """Makes this very object one of torch's class."""
        for name in self.OWN:
            self.__dict__.pop(name, None)
        self.__class__ = self.counterpart  # type: ignore[assignment]

    def leaf(self, *args: Any, **options: Any) -> Any:
        """Records a call of this module in the torch.fx graph being traced, as fx does for torch's own."""
        tracer = args[0].tracer
        if self is tracer.root:
            name = type(self).__name__
            raise TypeError(f"torch.fx takes {name} for a leaf: trace a module that contains it, not itself")
        return tracer.create_proxy("call_module", tracer.path_of_module(self), args, options)
