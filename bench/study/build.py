"""Compiles a rung's C++ file by the system's compiler, in seconds, once for a source, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent
CACHE = FOLDER.parents[1] / "out" / "study"
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread")
NATIVE = (
    "-march=native",
    "-mcpu=native",
    "",
)  # the first that the compiler takes: all of this machine's instructions
SECONDS = 60


class Unavailable(Exception):
    """Why a rung can't be built or run on this machine."""


@lru_cache(maxsize=1)
def compiler() -> tuple[str, ...]:
    """The compiler (CXX, else the first of c++, g++, clang++ that is there) and its flags."""
    named = os.environ.get("CXX", "").split()
    for program in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(program[0]) is None:
            continue
        for native in NATIVE:
            command = (*program, *FLAGS, *([native] if native else []))
            probe = [*command, "-x", "c++", "-", "-o", os.devnull]
            if subprocess.run(probe, input="int x;", text=True, capture_output=True).returncode == 0:
                return command
    raise Unavailable(f"there is no C++ compiler that works: {' '.join(named) or 'c++, g++, clang++'}")


def machine_of() -> str:
    """What -march=native depends on beside the compiler."""
    info = Path("/proc/cpuinfo")
    flags = (
        [line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))]
        if info.exists()
        else []
    )
    return "".join(flags[:1])


def load(source: Path) -> ctypes.CDLL:
    """The library of a file. Raises Unavailable with the compiler's own words when it doesn't compile."""
    command = compiler()
    key = "\0".join([source.read_text(), *command, machine_of()])
    library = CACHE / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=CACHE
        ) as folder:  # whoever builds at the same time gets the same file
            made = Path(folder) / library.name
            try:
                done = subprocess.run(
                    [*command, str(source), "-o", str(made)], capture_output=True, text=True, timeout=SECONDS
                )
            except subprocess.TimeoutExpired:
                raise Unavailable(f"{source.name} was not compiled within {SECONDS} s") from None
            if done.returncode != 0:
                raise Unavailable(f"{source.name} doesn't compile:\n{done.stderr.strip()[-2000:]}")
            os.replace(made, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(f"{library.name} can't be loaded: {error}") from None
