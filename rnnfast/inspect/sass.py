"""Reads NVIDIA machine code: a kernel's resources and the instructions of its main loop.

The input is any cubin or ELF with device code, from Triton or nvcc. The disassembler is that of Triton's
package or of the CUDA toolkit. No GPU is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

# The classes of instructions that decide how long a step takes. An instruction is in the first that matches.
CLASSES = {
    "matrix multiply": r"(HMMA|IMMA|DMMA|HGMMA|UTCHMMA)",
    "barrier": r"(BAR|SYNCS|WARPSYNC|ERRBAR|MEMBAR)",
    "shared load": r"(LDS|LDSM|ATOMS)",
    "shared store": r"(STS|STSM)",
    "global load": r"(LDG|LD\b|LDGSTS|LDGDEPBAR)",
    "global store": r"(STG|ST\b|RED|ATOMG)",
    "local memory": r"(LDL|STL)",
    "fused multiply-add": r"(FFMA|HFMA2|DFMA)",
    "special function": r"MUFU",
    "shuffle": r"(SHFL|MOVM|VOTE)",
}
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", re.M)


@dataclass(frozen=True)
class Resources:
    registers: int  # a thread
    stack: int  # bytes a thread
    shared: int  # bytes of static shared memory
    local: int  # bytes a thread: registers that spilled


@dataclass(frozen=True)
class Code:
    instructions: Counter[str]  # of the whole kernel, by class
    loop: Counter[str]  # of its main loop: the one with the most matrix (else multiply-add) instructions
    opcodes: Counter[str]  # of the main loop, by opcode with its modifiers


@lru_cache
def tool(name: str) -> Optional[str]:
    """The path of cuobjdump, nvdisasm or ptxas, or None."""
    spec = find_spec("triton")
    places = (
        [Path(p) / "backends/nvidia/bin" for p in (spec.submodule_search_locations or [])] if spec else []
    )
    places += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    found = next((str(place / name) for place in places if (place / name).exists()), None)
    return found or shutil.which(name)


def run(name: str, *arguments: str) -> str:
    path = tool(name)
    if path is None:
        raise RuntimeError(f"{name} was found neither in the triton package nor in a CUDA toolkit")
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def resources(path: str, architecture: Optional[str] = None) -> dict[str, Resources]:
    """The resources of each kernel in a file of device code, by its (mangled) name."""
    text = run("cuobjdump", "--dump-resource-usage", *_only(architecture), path)
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    return {name: Resources(*map(int, numbers)) for name, *numbers in re.findall(pattern, text)}


def listings(path: str, architecture: Optional[str] = None, function: Optional[str] = None) -> dict[str, str]:
    """The disassembly of each kernel in a file, or of one function, by its (mangled) name."""
    asked = [*_only(architecture), *(["-fun", function] if function else [])]
    parts = re.split(r"^\s*Function : (\S+)\s*$", run("cuobjdump", "-sass", *asked, path), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _only(architecture: Optional[str]) -> list[str]:
    return ["-arch", architecture] if architecture else []


def analyse(listing: str) -> Code:
    """Counts the instructions of a kernel and of its main loop."""
    lines = [(int(address, 16), opcode, rest) for address, opcode, rest in _LINE.findall(listing)]
    loops = []
    for address, opcode, rest in lines:
        if opcode.split(".")[0] == "BRA":
            target = re.search(r"0x([0-9a-f]+)", rest)
            if target and int(target[1], 16) < address:
                inside = [line for line in lines if int(target[1], 16) <= line[0] <= address]
                loops.append((_count(inside), inside))
    counts, inside = max(loops, key=lambda found: _weight(found[0]), default=(Counter(), []))
    return Code(_count(lines), counts, Counter(opcode for _, opcode, _ in inside))


def _weight(counts: Counter[str]) -> tuple[int, int, int]:
    return counts["matrix multiply"], counts["fused multiply-add"], sum(counts.values())


def _count(lines: list[tuple[int, str, str]]) -> Counter[str]:
    return Counter(_class_of(opcode) for _, opcode, _ in lines if not opcode.startswith("NOP"))


def _class_of(opcode: str) -> str:
    return next((name for name, pattern in CLASSES.items() if re.match(pattern, opcode)), "other")
