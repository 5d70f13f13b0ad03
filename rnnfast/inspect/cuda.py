"""The CUDA kernels, disassembled from the installed extension."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from typing import Optional

from ..backends import cuda as backend
from . import floor, sass
from .report import Options, Report, require_plain

ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 120: "sm_120"}
_TYPES = {"bf16": "bf16", "fp16": "f16", "fp32": "float", "fp64": "double"}
_TANH = {"bf16": "tanh_approx", "fp16": "tanh_exp", "fp32": "tanh", "fp64": "tanh"}  # as in numbers.cuh
_ABOUT = {
    "step_forward": "one step: [x, h] [W_ih, W_hh]^T, bias and activation in one accumulator",
    "step_backward": "one step backward: dpre, dx and dh in one launch",
    "resident_forward": "the recurrence over all steps, W_hh in the registers of one block",
    "resident_backward": "its backward: from the gradients of the outputs to those before the activations",
    "grid_forward": "the same with W_hh in the registers of all blocks of the device",
    "grid_backward": "its backward",
}


def unavailable() -> Optional[str]:
    if backend.MISSING is not None:
        return backend.MISSING
    for tool, where in (("cuobjdump", "the triton package or a CUDA toolkit"), ("c++filt", "binutils")):
        if sass.tool(tool) is None and shutil.which(tool) is None:
            return f"{tool} (of {where}) is not installed"
    return None


def kernels() -> dict[str, str]:
    return _ABOUT


def inspect(name: str, options: Options) -> Report:
    require_plain(f"cuda.{name}", options)
    architecture = ARCHITECTURES.get(options.arch)
    if architecture is None:
        raise ValueError(f"the extension has no code for {options.arch}, only for 80, 90 and 120")
    path = backend.native.__file__
    resources = sass.resources(path, architecture)
    mangled, template, width = _find(name, options, list(resources))
    taken = resources[mangled]
    listing = sass.listings(path, architecture, mangled)[mangled]
    code = sass.analyse(listing)
    # Resident kernels are unrolled by two steps.
    steps = 2 if name.startswith("resident") else 1
    opcodes = Counter({opcode: count // steps for opcode, count in code.opcodes.items()})
    activation = "relu" if options.nonlinearity == "relu" else _TANH[options.dtype]
    activation = "" if name.endswith("backward") else activation
    bound = None
    if name.startswith("resident"):
        bound = floor.of_step(opcodes, _warps(template), activation)
    return Report(
        kernel=f"cuda.{name}",
        target=architecture,
        facts={
            "function": template,
            "hidden size": str(options.hidden) + (f", padded to {width}" if width else ""),
            "registers": f"{taken.registers} a thread",
            "spills": f"{taken.local} bytes of local memory, {taken.stack} bytes of stack a thread",
        },
        loop=Counter({kind: count // steps for kind, count in code.loop.items()}),
        loop_is="one step" if steps == 2 else "a round of the main loop",
        floor=bound,
        spilled=taken.local + taken.stack,
        listings={"sass": listing},
    )


def _find(name: str, options: Options, names: list[str]) -> tuple[str, str, Optional[int]]:
    """The kernel that a layer of this size would run: mangled, readable, and the width it is made for."""
    kind, element = _TYPES[options.dtype], re.escape(_TYPES[options.dtype])
    exact = options.dtype == "fp64" or (options.dtype == "fp32" and not options.tf32)
    if name.startswith("step"):
        wanted = (
            rf"{name}_fma<{element}>" if exact else rf"{name}<{'Tf32' if kind == 'float' else element}, .*>"
        )
    elif kind == "double":
        wanted = "nothing: sequences of float64 are left to other backends"
    elif name.startswith("resident"):
        engine = (
            r"FmaEngine<(\d+), \d, \d+>" if kind == "float" else rf"MatrixEngine16<{element}, (\d+), \d+>"
        )
        act = rf", {options.nonlinearity.capitalize()}" if name.endswith("forward") else ""
        wanted = rf"{name}<{engine}{act}, false>"
    else:
        product = "Ffma<" if exact else f"Mma<{element}, "
        direction = "Forward" if name.endswith("forward") else "Backward"
        wanted = rf"grid::\w+<grid::{product}(\d+), (\d+), (\d+)>, grid::{direction}.*>"
    readable = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    candidates = []
    for mangled, text in zip(names, readable, strict=True):
        text = text.replace("rnnfast::cuda::", "").removeprefix("void ")
        template = text[: text.rfind("(")]
        match = re.fullmatch(wanted, template)
        if match:
            candidates.append((_width(name, kind, match), mangled, template))
    able = sorted(c for c in candidates if c[0] is None or c[0] >= options.hidden)
    if not able:
        raise ValueError(f"there is no cuda.{name} for {options.dtype} and a hidden size of {options.hidden}")
    return able[0][1], able[0][2], able[0][0]


def _width(name: str, kind: str, match: re.Match[str]) -> Optional[int]:
    numbers = [int(group) for group in match.groups()]
    if name.startswith("grid"):  # rows of a block, vectors of 16 bytes of a lane, warps
        _, vectors, warps = numbers
        return warps * vectors * 4 * (16 // (4 if kind == "float" else 2))
    return numbers[0] if numbers else None


def _warps(template: str) -> int:
    match = re.search(r"Engine\w*<(?:[a-z]\w*, )?(\d+), (\d+)", template)
    assert match is not None
    width, last = int(match[1]), int(match[2])
    return width * last // 32 if "FmaEngine" in template else last  # sequences of a block, or warps
