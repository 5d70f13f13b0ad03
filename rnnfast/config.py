"""What is installed, what can run, and what runs for a given module and input."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import dispatch
from .backends.base import Problem
from .backends.precision import tf32
from .cell import RNNCell
from .context import needs_grad
from .modules import RNN
from .native import native
from .version import __version__


def show_config() -> str:
    """Versions, instruction sets, threads and, for every backend, whether it can run here and if not, why.

    Of the threads it tells which OpenMP runtime the CPU kernels take them from, with a warning where that is
    not torch's, and where they have only one, why.
    """
    lines = [
        f"rnnfast {__version__}",
        f"torch {torch.__version__}",
        f"python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        f"OpenMP: {_openmp()}",
        f"RNNFAST_BACKEND: {dispatch.AUTO}",
        "backends:",
    ]
    for name in dispatch.names():
        reason = dispatch.unavailable(name)
        status = (
            f"available  {dispatch.get(name).details()}" if reason is None else f"not available: {reason}"
        )
        lines.append(f"  {name:<8} {status}".rstrip())
    return "\n".join(lines)


def release_scratch() -> None:
    """Gives back the scratch memory that the CPU kernels keep for the next call.

    Each thread keeps at most 256 MiB, as mapping memory anew takes longer than many a call; a thread that
    ends gives back its own. This releases what the calling thread and the threads that compute for it keep;
    other callers release theirs by a call of their own.
    """
    if native is not None:
        native.release_scratch(torch.get_num_threads())


def _openmp() -> str:
    """What the CPU kernels have their threads from."""
    if native is None:
        return "none, as the native extension is not built"
    if native.team_lost():
        return (
            "none: the process was forked from inside a parallel region, or with an OpenMP runtime that can't"
            " end its threads before a fork; each call takes one thread"
        )
    ours, theirs = native.openmp(), native.openmp("libtorch_cpu.so")
    if not ours:
        return "none; each call takes one thread"
    text = Path(ours).name
    if theirs and Path(ours).resolve() != Path(theirs).resolve():
        text += f" ({ours}), WARNING: torch has {theirs}, so two pools of threads spin for the same cores"
    return text


@dataclass(frozen=True)
class Explanation:
    """The answer of `explain`."""

    problem: Problem
    backend: str  # the backend that runs
    reason: str  # why this one
    others: dict[str, str]  # every other backend, and why not that one

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.reason}"]
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.others.items()])


def explain(module: Union[RNN, RNNCell], input: Union[Tensor, PackedSequence]) -> Explanation:
    """Which backend `module(input)` uses for its layers, why, and why not each other one.

    Whether a backward pass is expected depends, as in the call itself, on the grad mode and on what
    requires grad.

    Raises:
        ValueError, RuntimeError: as the call would, for a backend that is unknown, not available or
            that refuses the problem.
    """
    problem = _problem(module, input)
    asked = dispatch.AUTO if module.backend == "auto" else module.backend
    if asked == "auto":
        chosen = dispatch.choose(problem)
        reason = "the first of " + ", ".join(dispatch.PREFERENCE) + " that can run this and is not slower"
    else:
        chosen = asked
        reason = "asked for by " + ("RNNFAST_BACKEND" if module.backend == "auto" else "name")
        refusal = dispatch.why_not(chosen, problem)
        if refusal is not None:
            raise RuntimeError(f"backend '{chosen}' can't run this problem: {refusal}")
    others = {name: _why_not(name, chosen, asked, problem) for name in dispatch.names() if name != chosen}
    return Explanation(problem, chosen, reason, others)


def _why_not(name: str, chosen: str, asked: str, problem: Problem) -> str:
    reason = dispatch.why_not(name, problem)
    if reason is not None:
        return reason
    if asked != "auto":
        return f"'{chosen}' was asked for"
    if dispatch.unproven(name, problem):
        return "not measured yet to be faster for problems like this"
    if dispatch.slower(name, problem):
        return "measured to be slower for problems like this"
    return f"comes after '{chosen}' in order of preference"


def _problem(module: Union[RNN, RNNCell], input: Union[Tensor, PackedSequence]) -> Problem:
    packed = isinstance(input, PackedSequence)
    rows = input.data if isinstance(input, PackedSequence) else input
    if isinstance(module, RNNCell):
        kind, batch, steps, input_size = "step", rows.shape[0] if rows.dim() == 2 else 1, 1, module.input_size
    else:
        kind = "sequence"
        input_size = module.input_size
        if isinstance(input, PackedSequence):
            batch, steps = int(input.batch_sizes[0]), len(input.batch_sizes)
        elif rows.dim() == 2:
            batch, steps = 1, rows.shape[0]
        else:
            batch, steps = rows.shape[:2] if module.batch_first else (rows.shape[1], rows.shape[0])
    device = rows.device.type
    autocast = torch.is_autocast_enabled(device) and rows.dtype is not torch.float64
    return Problem(
        kind=kind,
        device=device,
        dtype=dispatch.dtype_name(torch.get_autocast_dtype(device) if autocast else rows.dtype),
        input_size=input_size,
        hidden_size=module.hidden_size,
        batch=batch,
        steps=steps,
        packed=packed,
        layers=getattr(module, "num_layers", 1),
        directions=2 if getattr(module, "bidirectional", False) else 1,
        grad=needs_grad(rows, *module.parameters()),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        tf32=device == "cuda" and tf32(),
    )
