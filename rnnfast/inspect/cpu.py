"""The native CPU kernels, disassembled from the installed extension."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from typing import Optional

from ..native import MISSING, native
from .report import Options, Report, require_plain

_ABOUT = {
    "step": "one step: dot products of [x, h] with rows of [W_ih, W_hh]",
    "sequence": "layers in one direction: packing, input products and recurrences, chunk by chunk",
    "sequence_backward": "its backward: recurrences and all gradients",
    "tile": "the register tile that products and recurrence are made of, the largest of its forms",
}
_TYPES = {"fp32": "float", "fp64": "double", "bf16": "bf16", "fp16": "f16"}
_CLASSES = {
    "fused multiply-add": r"vfn?m(add|sub)|vdpbf16|fmla|fmls",
    "vector load, store or move": r"v?(mov|broadcast|maskmov|insert|extract)|ld1|st1|ld[pr]|st[pr]",
    "vector arithmetic": r"v(add|sub|mul|div|min|max|and|or|xor|cmp|blend|rcp|cvt|perm|shuf|unpck)",
    "branch": r"j[a-z]+|b(\.[a-z]+)?$|cbn?z|call|ret",
}


def unavailable() -> Optional[str]:
    if MISSING is not None:
        return MISSING
    if shutil.which("objdump") is None:
        return "objdump (of binutils) is not installed"
    return None


def kernels() -> dict[str, str]:
    return _ABOUT


def inspect(name: str, options: Options) -> Report:
    require_plain(f"cpu.{name}", options)
    isa = native.instruction_set()
    if options.dtype != "bf16":
        isa = isa.removesuffix("bf16")  # such a set serves bfloat16 alone, see csrc/cpu/kernels.inc
    symbol, begin, size = _function(name, isa, options)
    where = f"--start-address={begin}", f"--stop-address={begin + size}"
    text = _run("objdump", "-d", "--no-show-raw-insn", "-C", *where, native.__file__)
    instructions = re.findall(r"^\s*([0-9a-f]+):\s+(\S+)[ \t]*(.*)$", text, re.M)
    if not instructions:
        raise ValueError(f"the compiler left no function {symbol} of its own")
    inner = _hottest_loop(instructions)
    return Report(
        kernel=f"cpu.{name}",
        target=isa,
        facts={
            "function": symbol,
            "element type": options.dtype,
            "instructions": str(len(instructions)),
        },
        loop=Counter(_class_of(opcode) for _, opcode, _ in inner),
        loop_is="the loop with the most fused multiply-adds",
        listings={"asm": text},
    )


def _function(name: str, isa: str, options: Options) -> tuple[str, int, int]:
    """Symbol, address and bytes of the function of that name for a type and activation.

    For `tile` that of the instantiation with most code.
    """
    kind = _TYPES[options.dtype]
    kind = kind if kind in ("float", "double") else f"rnnfast::{isa}::{kind}"
    if name == "tile":
        # 16-bit types are computed in float, or bfloat16 in pairs.
        pairs = f"rnnfast::{isa}::Bf16Pair" if isa.endswith("bf16") else "float"
        kind = "double" if options.dtype == "fp64" else pairs
        wanted = rf"rnnfast::{isa}::tile<{kind}, .*>\(.*"
    else:
        wanted = rf"rnnfast::{isa}::{name}<{kind}, rnnfast::{isa}::{options.nonlinearity.capitalize()}>\(.*"
    table = re.findall(
        r"^([0-9a-f]+) ([0-9a-f]+) [tTwW] (?:int|void) (.*)$", _run("nm", "-C", "-S", native.__file__), re.M
    )
    found = [
        (int(size, 16), int(address, 16), symbol)
        for address, size, symbol in table
        if re.fullmatch(wanted, symbol) and "[clone .cold" not in symbol
    ]
    if not found:
        raise ValueError(
            f"the extension has no function cpu.{name} for {options.dtype}: it was inlined, or stripped"
        )
    size, address, symbol = max(found)
    return symbol, address, size


def _hottest_loop(instructions: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The innermost loop with most multiply-adds."""
    best: tuple[int, int] = (0, 0)
    result: list[tuple[str, str, str]] = []
    addresses = {int(address, 16): i for i, (address, _, _) in enumerate(instructions)}
    for i, (_, opcode, rest) in enumerate(instructions):
        target = re.match(r"([0-9a-f]+) <", rest)
        if target and re.match(_CLASSES["branch"], opcode):
            start = addresses.get(int(target[1], 16), i)
            if start < i:
                inside = instructions[start : i + 1]
                adds = sum(_class_of(opcode) == "fused multiply-add" for _, opcode, _ in inside)
                if (adds, -len(inside)) > best:
                    best, result = (adds, -len(inside)), inside
    return result


def _class_of(opcode: str) -> str:
    return next((name for name, pattern in _CLASSES.items() if re.match(pattern, opcode)), "other")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout
