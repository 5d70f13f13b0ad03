"""Builds of the native code with sanitizers, under build/sanitize, named by all that went into them."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "sanitize"
COMPILER = os.environ.get("CXX", "g++").split()
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
THREAD = ["-fsanitize=thread"]
COMMON = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fopenmp"]
KERNEL = ["-fno-exceptions", "-fno-rtti", "-ffp-contract=fast", "-fno-wrapv"]  # as setup.py has them
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mprfchw"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
SETS = {"baseline": [], "avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}
X86 = platform.machine() in ("x86_64", "AMD64")


def runtime(name: str) -> str:
    """The sanitizer's library, which has to be loaded before everything else."""
    path = subprocess.run([*COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return path.stdout.strip()


def cpu_extension(sets: Sequence[str]) -> Path:
    """rnnfast._cpu with AddressSanitizer and UndefinedBehaviorSanitizer, and the kernels of these sets.

    Those of the other sets are found under their names, too.
    """
    # torch brings pybind11.
    include = ["-I", str(Path(torch.__file__).parent / "include"), "-I", sysconfig.get_paths()["include"]]
    units = [(CSRC / "cpu" / f"kernels_{name}.cpp", [*KERNEL, *SETS[name]]) for name in sets]
    units += [
        (CSRC / "cpu" / "python" / name, [*include, "-fvisibility=hidden"])
        for name in ("bindings.cpp", "call.cpp", "run.cpp")
    ]
    aliases = []
    if "avx512bf16" in sets:
        include.append("-DRNNFAST_AVX512BF16")
    if X86:
        others = [name for name in ("baseline", "avx2", "avx512") if name not in sets]
        kernels = {name: f"_ZN7rnnfast{len(name)}{name}7kernelsE" for name in SETS}
        aliases = [f"-Wl,--defsym={kernels[name]}={kernels[sets[-1]]}" for name in others]
    return _build("_cpu.so", units, ADDRESS, ["-shared", *ADDRESS, *aliases])


def team(instruction_set: str) -> Path:
    """The harness that runs the kernels' thread team on std::thread, with ThreadSanitizer."""
    flags = [*KERNEL, *SETS[instruction_set]]
    units = [(CSRC / "cpu" / f"kernels_{instruction_set}.cpp", flags)]
    units.append((Path(__file__).parent / "team.cpp", [f"-DRNNFAST_ISA={instruction_set}"]))
    # Without libgomp: team.cpp has the few functions that the compiler calls.
    return _build("team", units, THREAD, [*THREAD, "-pthread"])


def _build(name: str, units: list[tuple[Path, list[str]]], sanitizers: list[str], link: list[str]) -> Path:
    digest = hashlib.sha256(repr((COMPILER, COMMON, sanitizers, link, units)).encode())
    for path in sorted([*CSRC.glob("*.h"), *(CSRC / "cpu").rglob("*.*"), *(path for path, _ in units)]):
        digest.update(path.read_bytes())
    folder = CACHE / digest.hexdigest()[:16]
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(unit: tuple[Path, list[str]]) -> str:
        source, flags = unit
        made = str(folder / f"{source.stem}.o")
        _run([*COMPILER, *COMMON, *sanitizers, *flags, "-c", str(source), "-o", made])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, units))
    partial = folder / f"{name}.{os.getpid()}"
    openmp = ["-fopenmp"] if "-shared" in link else []
    _run([*COMPILER, *objects, *link, *openmp, "-o", str(partial)])
    partial.rename(target)
    return target


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-4000:]}")
