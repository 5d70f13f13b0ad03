"""Builds CUDA sources for the CPU; see machine.h for what that is and what it proves."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
CACHE = HERE.parents[1] / "build" / "cuda_on_cpu"
COMPILER = os.environ.get("CXX", "g++")
# -Og would be quicker to compile but runs the mma stand-in ten times slower.
FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", "-Wno-unused-parameter"),
    *("-I", str(HERE), "-I", str(KERNELS)),
    *("-isystem", sysconfig.get_paths()["include"], "-isystem", str(Path(torch.__file__).parent / "include")),
    *os.environ.get("CUDA_ON_CPU_FLAGS", "").split(),  # sanitizers, say
]


def missing() -> str | None:
    """Why nothing can be built here, or None."""
    return None if shutil.which(COMPILER) else f"there is no {COMPILER}"


def build(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    """A shared library of `sources` (.cu and .cpp) and the machine that runs them.

    It is kept in build/ under a name made of everything that went into it.
    """
    flags = [*FLAGS, *flags]
    inputs = sorted(
        path
        for folder in (HERE.glob("*"), KERNELS.rglob("*"), KERNELS.parent.glob("*"))
        for path in folder
        if path.suffix in (".h", ".cuh", ".cu", ".cpp")
    )
    digest = hashlib.sha256(repr((COMPILER, flags, [str(source) for source in sources])).encode())
    for path in [*inputs, *sources]:
        digest.update(path.read_bytes())
    folder = CACHE / digest.hexdigest()[:16]
    library = folder / f"{name}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):  # one of several processes builds, the others wait
        if not library.exists():
            _compile(folder, name, sources, flags)
    return library


def _compile(folder: Path, name: str, sources: Sequence[Path], flags: Sequence[str]) -> None:
    def compile_one(source: Path) -> Path:
        target = folder / f"{name}-{source.parent.name}-{source.stem}.o"
        _run([COMPILER, *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*sources, HERE / "machine.cpp"]))
    partial = folder / f"{name}.{os.getpid()}"
    _run([COMPILER, "-shared", *flags, *map(str, objects), "-o", str(partial)])
    partial.rename(folder / f"{name}.so")  # at once, so that an interrupted build leaves no half of it
    for target in objects:
        target.unlink()


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-4000:]}")
