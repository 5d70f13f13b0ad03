"""What the cells cost beside Elman's, and beside the loops that are written for them.

`python -m bench cells [--json FILE] [--parts PART ...]`. Every contender's results are compared with the loop
of `rnnfast/reference.py` in float64 before they are timed, all of a row in turns. Times are medians; training
is forward and the gradients of input, state and parameters.

- `sizes`: leaky, ctrnn, and Elman with 3% of the steps reset, as multiples of Elman's time; I = H.
- `loops`: each beside a loop over its steps in torch operators, as it is written without a kernel.
- `resets`: beside a loop that runs torch's layer from one reset to the next, all sequences of the batch
  together up to a step at which any is reset, as recurrent PPO code does.
- `reservoir`: 10,000 steps of a leaky reservoir beside reservoirpy's, where that is installed, with the same
  dense matrices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from bench import command
from bench.cases.timing import Budget, alternate
from bench.machine import environment
from rnnfast import reference, testing
from rnnfast.functional import rnn_sequence

SIZES = [(64, 100), (64, 256), (1, 200), (1, 1000), (32, 512)]  # B, H
LOOPS = [(100, 64, 100), (500, 1, 200)]  # T, B, H
STEPS = 100

Function = Callable[..., tuple[Tensor, Tensor]]


class Problem:
    """One layer's tensors, and what each contender makes of them."""

    def __init__(self, cell: str, steps: int, batch: int, hidden: int, resets: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(steps + batch + hidden)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        self.cell = cell
        self.tensors = [normal(steps, batch, hidden), torch.zeros(batch, hidden)]
        self.tensors += [normal(hidden, hidden) / (2 * hidden**0.5) for _ in range(2)]
        self.tensors += [normal(hidden) / 10 for _ in range(2)]
        self.alpha = None if cell == "elman" else torch.rand(hidden, generator=generator) * 0.8 + 0.1
        self.resets = torch.rand(steps, batch, generator=generator) < resets if resets else None
        self.grad = normal(steps, batch, hidden)

    def ours(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return rnn_sequence(*tensors, alpha=self.alpha, cell=self.cell, resets=self.resets)

    def loop(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """A module's cell, called at every step."""
        x, state, w_ih, w_hh, b_ih, b_hh = tensors
        linear, outputs = torch.nn.functional.linear, []
        for t in range(len(x)):
            if self.resets is not None:
                state = state * (~self.resets[t]).unsqueeze(1)
            carried = torch.tanh(state) if self.cell == "ctrnn" else state
            a = linear(x[t], w_ih, b_ih) + linear(carried, w_hh, b_hh)
            if self.cell == "elman":
                state = torch.tanh(a)
            elif self.cell == "leaky":
                state = (1 - self.alpha) * state + self.alpha * torch.tanh(a)  # type: ignore[operator]
            else:
                state = (1 - self.alpha) * state + self.alpha * a  # type: ignore[operator]
            outputs.append(torch.tanh(state) if self.cell == "ctrnn" else state)
        return torch.stack(outputs), state

    def cut(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """torch's layer from each step at which a sequence is reset to the next."""
        assert self.resets is not None
        x, state, *weights = tensors
        starts = [0, *(t for t in range(1, len(x)) if bool(self.resets[t].any()))]
        outputs = []
        for begin, end in zip(starts, [*starts[1:], len(x)], strict=True):
            state = state * (~self.resets[begin]).unsqueeze(1)
            out, last = torch.rnn_tanh(
                x[begin:end], state.unsqueeze(0), weights, True, 1, 0.0, False, False, False
            )
            outputs.append(out)
            state = last[0]
        return torch.cat(outputs), state

    def truth(self) -> list[Tensor]:
        """Output and gradients in float64."""

        def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            alpha = 1.0 if self.alpha is None else self.alpha.double()
            return reference.rnn_sequence(*tensors, cell=self.cell, alpha=alpha, resets=self.resets)

        return self.trained(function, torch.float64)

    def trained(self, function: Function, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in map(Tensor.detach, self.tensors)]
        out, _ = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad.to(dtype))]

    def check(self, name: str, function: Function, truth: list[Tensor]) -> None:
        """Raises AssertionError if it is wrong."""
        x = self.tensors[0]
        bound = testing.tolerance(x.dtype, 2 * x.shape[-1] + x.shape[0] * x.shape[1], stores=len(x))
        for result, right in zip(self.trained(function), truth, strict=True):
            testing.check(name, result, right, bound)

    def inferred(self, function: Function) -> Any:
        with torch.no_grad():
            return function(*self.tensors)


def timed(contenders: dict[str, tuple[Problem, Function]], seconds: float) -> dict[str, dict[str, float]]:
    """Medians in microseconds of the contenders, of each mode; all are checked first."""
    for name, (problem, function) in contenders.items():
        problem.check(name, function, problem.truth())
    found = {}
    for mode in ("forward", "training"):
        calls = {
            name: partial(problem.inferred if mode == "forward" else problem.trained, function)
            for name, (problem, function) in contenders.items()
        }
        times = alternate(calls, Budget(seconds=seconds))
        found[mode] = {name: 1e6 * time.median for name, time in times.items()}
    return found


def sizes(seconds: float) -> dict[str, Any]:
    found = {}
    for batch, hidden in SIZES:
        problems = {cell: Problem(cell, STEPS, batch, hidden) for cell in ("elman", "leaky", "ctrnn")}
        problems["resets"] = Problem("elman", STEPS, batch, hidden, resets=0.03)
        given = {name: (problem, problem.ours) for name, problem in problems.items()}
        found[f"T={STEPS} B={batch} H={hidden}"] = timed(given, seconds)
    return found


def loops(seconds: float) -> dict[str, Any]:
    found = {}
    for steps, batch, hidden in LOOPS:
        for cell in ("elman", "leaky", "ctrnn"):
            problem = Problem(cell, steps, batch, hidden)
            given = {"ours": (problem, problem.ours), "loop": (problem, problem.loop)}
            found[f"{cell} T={steps} B={batch} H={hidden}"] = timed(given, seconds)
    return found


def resets(seconds: float) -> dict[str, Any]:
    problem = Problem("elman", 128, 16, 64, resets=0.03)
    given = {"ours": (problem, problem.ours), "cut": (problem, problem.cut), "loop": (problem, problem.loop)}
    return {"T=128 B=16 H=64, 3% reset": timed(given, seconds)}


def reservoir(seconds: float) -> dict[str, Any]:
    """Runs of 10,000 steps, one input; reservoirpy's update is a leaky cell without biases."""
    try:
        import numpy as np
        from reservoirpy.nodes import Reservoir
    except ImportError:
        return {}
    found: dict[str, Any] = {}
    for hidden in (200, 500):
        generator = torch.Generator().manual_seed(hidden)
        x = torch.rand(10_000, 1, generator=generator, dtype=torch.float64)
        w_ih = torch.rand(hidden, 1, generator=generator, dtype=torch.float64) - 0.5
        w_hh = torch.randn(hidden, hidden, generator=generator, dtype=torch.float64) * (0.9 / hidden**0.5)
        theirs = Reservoir(hidden, lr=0.3, W=w_hh.numpy(), Win=w_ih.numpy(), bias=np.zeros((hidden, 1)))
        rows = x.numpy()
        truth = torch.from_numpy(np.array(theirs.run(rows)))
        calls: dict[str, Any] = {"reservoirpy float64": partial(theirs.run, rows)}
        for dtype in (torch.float32, torch.float64):
            arguments = [x[:, None], torch.zeros(1, hidden), w_ih, w_hh]
            given = [tensor.to(dtype) for tensor in arguments]
            with torch.no_grad():
                out, _ = rnn_sequence(*given, alpha=0.3, cell="leaky")
            testing.check(str(dtype), out[:, 0], truth, testing.tolerance(dtype, hidden + 1, stores=100))
            name = f"ours {str(dtype).removeprefix('torch.')}"
            calls[name] = partial(rnn_sequence, *given, alpha=0.3, cell="leaky")
        with torch.no_grad():
            times = alternate(calls, Budget(seconds=seconds))
        found[f"T=10000 B=1 H={hidden}"] = {"forward": {name: 1e6 * t.median for name, t in times.items()}}
    return found


PARTS = {"sizes": sizes, "loops": loops, "resets": resets, "reservoir": reservoir}


def table(found: dict[str, Any]) -> str:
    """Each time as a multiple of the first contender's."""
    lines = []
    for shape, modes in found.items():
        for mode, times in modes.items():
            first = next(iter(times.values()))
            cells = "  ".join(f"{name} {time / first:.3f}" for name, time in times.items())
            lines.append(f"{shape:<28} {mode:<9} {first:>9.0f} us  {cells}")
    return "\n".join(lines)


def main(arguments: Optional[list[str]] = None) -> int:
    parser = command.parser("cells", __doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row of a table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the times to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = {}
    for name in options.parts:
        found[name] = PARTS[name](options.seconds)
        print(f"{name}\n{table(found[name]) or 'reservoirpy is not installed'}\n", flush=True)
    if options.json:
        described = {"environment": environment.describe(), "microseconds": found}
        options.json.write_text(json.dumps(described, indent=1) + "\n")
    return 0
