"""The Triton kernels, compiled as a launch of them would be."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Optional

import torch
from torch import Tensor

from ..layer import Recurrence, Sequences
from . import floor, sass
from .report import Options, Report, require_plain

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH, STEPS, INPUTS = 64, 512, 128

_KERNELS: dict[str, tuple[str, Callable[..., Any]]] = {}


def unavailable() -> Optional[str]:
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 is set, and interpreted kernels are not compiled"
    return None


def kernels() -> dict[str, str]:
    return {name: line for name, (line, _) in _KERNELS.items()}


def inspect(name: str, options: Options) -> Report:
    launch = plan_launch(name, options)
    known = architectures()
    if options.arch not in known:
        raise ValueError(
            f"Triton knows no architecture {options.arch}; it knows {', '.join(map(str, known))}"
        )
    compiled = launch.compile(options.arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (taken,) = sass.resources(file.name).values()
        (listing,) = sass.listings(file.name).values()
    code = sass.analyse(listing)
    resident = name.startswith("resident")
    return Report(
        kernel=f"triton.{name}",
        target=f"sm_{options.arch}",
        facts={
            "element type": f"{options.dtype}, products {launch.constants['PRECISION']}",
            "hidden size": str(options.hidden),
            "tile": ", ".join(f"{k} {v}" for k, v in launch.constants.items() if k.startswith("BLOCK")),
            "warps": str(launch.warps),
            "registers": f"{taken.registers} a thread",
            "shared memory": f"{compiled.metadata.shared} bytes",
            "spills": f"{taken.local} bytes of local memory, {taken.stack} bytes of stack a thread",
        },
        loop=code.loop,
        loop_is="one step" if resident else f"{launch.constants['BLOCK_K']} elements of a sum",
        floor=floor.of_step(code.opcodes, launch.warps, launch.constants["ACTIVATION"]) if resident else None,
        spilled=taken.local + taken.stack,
        listings={
            "sass": listing,
            **{k: v for k, v in compiled.asm.items() if k in ("ttir", "ttgir", "llir", "ptx")},
        },
    )


def table(arch: int) -> str:
    """The resources of every row of the configuration table on an architecture, as Markdown."""
    from ..kernels import table as rows

    lines = [
        f"sm_{arch} | warps | registers | shared memory | spills | barriers a step | matrix instructions",
        "--- | --- | --- | --- | --- | --- | ---",
    ]
    for size, precision, hidden in rows.RESIDENT:
        for name in ("resident_forward", "resident_backward"):
            options = Options(arch, "bf16" if size == 2 else "fp32", hidden, tf32=precision == rows.TF32)
            report = inspect(name, options)
            label = f"{name} {'16-bit' if size == 2 else 'fp32 ' + precision} {hidden}"
            facts = [report.facts[fact].split()[0] for fact in ("warps", "registers", "shared memory")]
            counts = [report.loop["barrier"], report.loop["matrix multiply"]]
            lines.append(" | ".join(map(str, [label, *facts, report.spilled, *counts])))
    return "\n".join(f"| {line} |" for line in lines)


def architectures() -> list[int]:
    """The architectures that the installed Triton's assemblers and its disassembler know."""
    assembled: set[str] = set()
    for assembler in ("ptxas", "ptxas-blackwell"):
        if sass.tool(assembler):
            assembled.update(re.findall(r"'sm_(\d+)'", sass.run(assembler, "--help")))
    read = set(re.findall(r"'SM(\d+)'", sass.run("nvdisasm", "--help")))
    # Triton makes the matrix instructions that the kernels need for 80 and newer.
    return sorted(int(name) for name in assembled & read if int(name) >= 80)


def plan_launch(name: str, options: Options) -> Any:
    """The launch that a layer of this size would make."""
    if options.dtype not in DTYPES:
        raise ValueError(f"the Triton kernels have no {options.dtype}, only {', '.join(DTYPES)}")
    if not name.startswith(("resident", "stepwise")):
        require_plain(f"triton.{name}", options)
    from ..kernels import table

    precision = table.TF32 if options.tf32 or options.dtype != "fp32" else table.EXACT
    if name.startswith("resident") and not table.resident(DTYPES[options.dtype], precision, options.hidden):
        raise ValueError(
            f"W_hh of {options.hidden} x {options.hidden} {options.dtype} does not fit one multiprocessor;"
            " such layers run as stepwise_forward and stepwise_backward"
        )
    return _KERNELS[name][1](options, precision)


def _kernel(line: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _KERNELS[function.__name__] = (line, function)
        return function

    return add


def _new(options: Options, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=DTYPES[options.dtype], device="meta")


def _sizes(options: Options, multiple: int = 1) -> tuple[Tensor, Tensor, Tensor, Sequences]:
    """[R, H], [B, H], [H, H], and the sequences of R rows; H rounded up to a multiple."""
    hidden = -(-options.hidden // multiple) * multiple
    offsets = torch.empty(STEPS + 1, dtype=torch.int64, device="meta") if options.packed else None
    return (
        _new(options, STEPS * BATCH, hidden),
        _new(options, BATCH, hidden),
        _new(options, hidden, hidden),
        Sequences(STEPS, BATCH, offsets, None, False),
    )


def _cell(
    options: Options, sequences: Sequences, rows: Tensor, state: Tensor
) -> tuple[Recurrence, Optional[Tensor], Optional[Tensor]]:
    """The recurrence with all that its cell can have; a matrix [R, H] and a state in float32, or None."""
    cuts = torch.empty(rows.shape[:1], dtype=torch.bool, device="meta") if options.resets else None
    recurrence = Recurrence(options.nonlinearity, sequences, options.cell, cuts=cuts)
    if options.cell == "elman":
        return recurrence, None, None
    recurrence = recurrence._replace(alpha=_new(options, rows.shape[1]))
    if options.cell == "ctrnn":
        recurrence = recurrence._replace(noise=rows, carried=state)
    return recurrence, rows, torch.empty_like(state, dtype=torch.float32)


@_kernel("one step: [x, h] [W_ih, W_hh]^T, bias and activation in one accumulator")
def step_forward(options: Options, precision: str) -> Any:
    from ..kernels import step

    _, state, w_hh, _ = _sizes(options)
    x, w_ih = _new(options, BATCH, INPUTS), _new(options, options.hidden, INPUTS)
    bias = _new(options, options.hidden)
    return step.step_forward(x, state, w_ih, w_hh, bias, bias, state, options.nonlinearity, precision)


@_kernel("one step backward: dx and dh, from the gradient of the output")
def step_backward_input(options: Options, precision: str) -> Any:
    from ..kernels import step_backward

    _, state, w_hh, _ = _sizes(options)
    x, w_ih = _new(options, BATCH, INPUTS), _new(options, options.hidden, INPUTS)
    return step_backward.step_backward_input(
        state, state, w_ih, w_hh, x, state, options.nonlinearity, precision
    )


@_kernel("one step backward: the gradients of the weights and biases")
def step_backward_weight(options: Options, precision: str) -> Any:
    from ..kernels import step_backward

    _, state, w_hh, _ = _sizes(options)
    x, w_ih = _new(options, BATCH, INPUTS), _new(options, options.hidden, INPUTS)
    return step_backward.step_backward_weight(
        state, state, x, state, w_ih, w_hh, w_hh[0], options.nonlinearity, precision
    )


@_kernel("the recurrence over all steps, W_hh in shared memory")
def resident_forward(options: Options, precision: str) -> Any:
    from ..kernels import resident

    rows, state, w_hh, sequences = _sizes(options, 16)
    recurrence, inner, _ = _cell(options, sequences, rows, state)
    return resident.resident_forward(rows, state, w_hh, rows, state, inner, recurrence, precision)


@_kernel("its backward: from the gradients of the outputs to those before the activations")
def resident_backward(options: Options, precision: str) -> Any:
    from ..kernels import resident

    rows, state, w_hh, sequences = _sizes(options, 16)
    recurrence, dstate, _ = _cell(options, sequences, rows, state)
    return resident.resident_backward(
        rows, state, rows, w_hh, rows, state, dstate, dstate, recurrence, precision
    )


@_kernel("one step of the recurrence, where W_hh is larger than that")
def stepwise_forward(options: Options, precision: str) -> Any:
    from ..kernels import stepwise

    rows, state, w_hh, sequences = _sizes(options)
    recurrence, inner, full = _cell(options, sequences, rows, state)
    return stepwise.stepwise_forward(rows, state, w_hh, rows, state, full, inner, recurrence, precision)


@_kernel("its backward")
def stepwise_backward(options: Options, precision: str) -> Any:
    from ..kernels import stepwise

    rows, state, w_hh, sequences = _sizes(options)
    recurrence, dstate, leaked = _cell(options, sequences, rows, state)
    return stepwise.stepwise_backward(
        *(rows, state if leaked is None else None, rows, state, w_hh, rows, state),
        *(leaked, dstate, dstate, recurrence, precision),
    )
