"""What every contender implements, and what the torch-based ones share.

An adapter is one file with one or more subclasses of `Peer`. Importing it never imports the library that it
adapts. All get the same tensors and the same number of threads, compute the input product inside the timed
call and return every step's output; training also returns the gradients of all parameters (of the input
only where a layer below needs it). Layout conversions of input and output that a library's own users would
not do lie outside the timed call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs


@dataclass(frozen=True)
class Prepared:
    """A contender, ready for one case."""

    call: Callable[[], Any]  # what is timed: forward, or forward and backward, as the case says
    unpack: Callable[[Any], tuple[Tensor, list[Tensor]]]  # its result -> output [T, B, D * H], gradients
    compile_seconds: float = 0.0  # reported beside the time per call, never part of it
    # Waits until the result of the last call, and with it of all before, is there; on a GPU calls may be
    # queued, as they are in training, and the time of a batch of calls ends with this.
    wait: Callable[[Any], object] = lambda result: None

    def complete(self) -> Any:
        """One call with its result there."""
        result = self.call()
        self.wait(result)
        return result


class Peer:
    name: str = ""
    devices: tuple[str, ...] = ("cpu",)

    def available(self) -> Optional[str]:
        """Why this contender cannot run here at all, or None when it can."""
        raise NotImplementedError

    def refuses(self, case: Case) -> Optional[str]:
        """Why it cannot run `case`, or None when it can."""
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        raise NotImplementedError

    def excluded(self, case: Case) -> Optional[tuple[str, str]]:
        """The status, "unavailable" or "refused", and the reason, or None where it can take part."""
        why = self.available()
        if why is not None:
            return "unavailable", why
        if case.device not in self.devices:
            return "refused", f"it runs on {' and '.join(self.devices)} only"
        why = self.refuses(case)
        return None if why is None else ("refused", why)


def only_plain(case: Case) -> Optional[str]:
    """The refusal of an adapter that is a single dense layer."""
    plain = case.kind == "sequence" and case.layout == "dense"
    return None if plain else "the adapter is one dense layer"


def by_autograd(
    case: Case,
    forward: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    dense: Callable[[Tensor], Tensor],
    grad_output: Tensor,
) -> Prepared:
    """A torch contender: `forward` under no_grad, or followed by torch.autograd.grad.

    `dense` turns what forward returned into [T, B, D * H]; `grad_output` has the shape of the latter.
    """

    def infer() -> Tensor:
        with torch.no_grad():
            return forward()

    def train() -> tuple[Tensor, list[Tensor]]:
        output = forward()
        return output, list(torch.autograd.grad(output, tuple(parameters), grad_output))

    def unpack(result: Any) -> tuple[Tensor, list[Tensor]]:
        output, gradients = result if case.training else (result, [])
        return dense(output.detach()), gradients

    wait = (lambda _: torch.cuda.synchronize()) if case.device == "cuda" else Prepared.wait
    return Prepared(train if case.training else infer, unpack, wait=wait)
