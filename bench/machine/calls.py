"""What a call costs before anything is computed: `python -m bench calls [--json FILE]`.

A torch module that does nothing, called under no_grad, and one whose gradients are those of a
`torch.autograd.Function` that does nothing, with as many tensors as ours: no module written in Python can be
faster. Beside them torch's and ours with next to nothing to compute, T = 1, B = 1, I = H = 64, and what the
host does of ours on a GPU: all of the backend `cuda` but its kernels, on the CPU (its results mean nothing).

Then what has to be prepared, at T = 10: the same input time-major, batch_first, unbatched and packed. And two
layers in two directions, at T = 1.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast
from bench import command
from bench.cases.timing import Budget, Call, alternate
from bench.machine import environment
from rnnfast import dispatch
from rnnfast.backends.cuda import CudaBackend

SIZE = 64


class _DoesNothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*tensors)
        return torch.empty_like(tensors[0]), torch.empty_like(tensors[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[2:])


class Nothing(torch.nn.RNN):
    """Takes and returns what an RNN does."""

    def forward(self, input: Tensor, hx: Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():
            return _DoesNothing.apply(input, hx, *self._flat_weights)
        return input, hx


def _launched(*arguments: int) -> int:
    return 0


LAUNCHERS = SimpleNamespace(
    resident_limit=lambda dtype: 256,
    grid_limit=lambda dtype, tf32: 2048,
    resident_forward=_launched,
    resident_backward=_launched,
)


class HostOfCuda(CudaBackend):
    """Goes all the way to the launchers of rnnfast._cuda, in whose place are functions that do nothing."""

    name = "cuda-host"
    device = "cpu"

    def __init__(self) -> None:
        super().__init__(LAUNCHERS)

    def unavailable(self) -> None:
        return None

    def _on(self, tensor: Tensor) -> AbstractContextManager[object]:
        return nullcontext()

    def _stream(self, tensor: Tensor) -> int:
        return 0


def contenders() -> dict[str, Call]:
    """The calls by name, while `HostOfCuda` is registered."""
    host = partial(rnnfast.RNN, backend=HostOfCuda.name)
    modules = {"nothing": Nothing, "rnnfast": rnnfast.RNN, "cuda's host": host, "torch": torch.nn.RNN}
    x, h0, grad = torch.randn(1, 1, SIZE), torch.zeros(1, 1, SIZE), torch.ones(1, 1, SIZE)

    def forward(rnn: torch.nn.Module) -> Call:
        def call() -> object:
            with torch.no_grad():
                return rnn(x, h0)

        return call

    def training(rnn: torch.nn.Module) -> Call:
        parameters = tuple(rnn.parameters())
        return lambda: torch.autograd.grad(rnn(x, h0)[0], parameters, grad)

    calls = {}
    for mode, call_of in (("forward", forward), ("training", training)):
        for name, module in modules.items():
            calls[f"{mode}, {name}"] = call_of(module(SIZE, SIZE))  # type: ignore[operator]
    return calls


def prepared() -> dict[str, Call]:
    """Ours alone: the layouts of one input, and a stack."""
    x, state = torch.randn(10, 1, SIZE), torch.zeros(4, 1, SIZE)
    rnn, batch_first = rnnfast.RNN(SIZE, SIZE), rnnfast.RNN(SIZE, SIZE, batch_first=True)
    stack = rnnfast.RNN(SIZE, SIZE, num_layers=2, bidirectional=True)
    arguments: dict[str, tuple[torch.nn.Module, Any, Tensor]] = {
        "time-major": (rnn, x, state[:1]),
        "batch_first": (batch_first, x.transpose(0, 1), state[:1]),
        "unbatched": (rnn, x[:, 0], state[:1, 0]),
        "packed": (rnn, pack_sequence([x[:, 0]]), state[:1]),
        "stack, T = 1": (stack, x[:1], state),
    }

    def forward(rnn: torch.nn.Module, x: Any, h0: Tensor) -> Call:
        def call() -> object:
            with torch.no_grad():
                return rnn(x, h0)

        return call

    def training(rnn: torch.nn.Module, x: Any, h0: Tensor) -> Call:
        parameters = tuple(rnn.parameters())
        grad = torch.ones_like(_data(rnn(x, h0)[0]))
        return lambda: torch.autograd.grad(_data(rnn(x, h0)[0]), parameters, grad)

    return {
        f"{mode}, {name}": call_of(*given)
        for mode, call_of in (("forward", forward), ("training", training))
        for name, given in arguments.items()
    }


def _data(output: Any) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def main(arguments: list[str]) -> int:
    p = command.parser("calls", __doc__)
    p.add_argument("--json", type=Path)
    options = p.parse_args(arguments)
    budget = Budget(seconds=1.0)
    with dispatch.replaced(HostOfCuda()):
        measured = alternate(contenders(), budget) | alternate(prepared(), budget)
    for name, m in measured.items():
        print(f"{name:<21} {m.median * 1e6:6.1f} us  ({m.q1 * 1e6:.1f} to {m.q3 * 1e6:.1f})")
    if options.json:
        cells = {name: vars(m) for name, m in measured.items()}
        options.json.write_text(
            json.dumps({"environment": environment.describe(), "calls": cells}, indent=1) + "\n"
        )
    return 0
