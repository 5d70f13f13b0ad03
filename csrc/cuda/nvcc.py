"""Finds nvcc and compiles csrc/cuda with it: for setup.py, and for the tests that look at the result.

Nothing is imported from torch, and no GPU is looked for. Objects and ptxas's report on every kernel are kept
in build/cuda under a name made of everything that went into them, so that a second build has nothing to do.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "cuda"
# Machine code for the generations that people have, and PTX from which the driver makes it for all others.
ARCHITECTURES = {"sm_80": "80", "sm_90a": "90a", "sm_120": "120"}
PTX = "80"
FLAGS = [
    *("-std=c++17", "-O3", "--threads", "2", "-Xptxas", "-v"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
]


def find() -> Optional[str]:
    """nvcc of $CUDA_HOME or $CUDA_PATH, or the first on the PATH, or that of /usr/local/cuda, or None."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [f"{home}/bin/nvcc" for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for found in map(shutil.which, candidates) if found), None)


def wanted() -> Optional[bool]:
    """What $RNNFAST_CUDA says: 1 True, 0 False, auto (the default) None. FORCE_CUDA=1 means 1, too."""
    setting = os.environ.get("RNNFAST_CUDA", "1" if os.environ.get("FORCE_CUDA") == "1" else "auto")
    if setting not in ("auto", "0", "1"):
        raise ValueError(f"RNNFAST_CUDA must be auto, 0 or 1, got {setting!r}")
    return None if setting == "auto" else setting == "1"


def gpu_present() -> bool:
    """Whether the machine has an NVIDIA driver, by the files that it makes on Linux (/dev/dxg: in WSL)."""
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")))


def static_runtime(nvcc: str) -> str:
    """The CUDA runtime to link in: the extension then loads without a CUDA installation, beside any torch."""
    trial = _run([nvcc, "--dryrun", "-x", "cu", os.devnull])
    for folder in re.findall(r'"-L([^"]+)"', trial.stdout + trial.stderr):
        library = Path(folder) / "libcudart_static.a"
        if library.exists():
            return str(library)
    raise FileNotFoundError(f"libcudart_static.a, which belongs to {nvcc}, was not found")


def architectures(nvcc: str) -> list[str]:
    """Those of ARCHITECTURES that this nvcc knows: the newest are not in its older releases."""
    known = _run([nvcc, "--list-gpu-code"]).stdout.split()
    return [sm for sm in ARCHITECTURES if sm.rstrip("a") in known]


def compile_all(nvcc: str) -> list[Path]:
    """The objects of all .cu files for all architectures; see `compile_some`."""
    targets = [f"-gencode=arch=compute_{PTX},code=compute_{PTX}"]
    return compile_some(nvcc, sorted(HERE.rglob("*.cu")), architectures(nvcc), targets)


def compile_some(
    nvcc: str, sources: list[Path], architectures: list[str], targets: Sequence[str] = ()
) -> list[Path]:
    """The objects of `sources` for some of ARCHITECTURES and further `targets`, in nvcc's words.

    Each lies beside ptxas's report, a file of the same name that ends in .txt.

    Raises:
        RuntimeError: nvcc failed; the message has its output.
    """
    version = _run([nvcc, "--version"]).stdout
    flags = [
        *FLAGS,
        *(f"-gencode=arch=compute_{ARCHITECTURES[sm]},code={sm}" for sm in architectures),
        *targets,
    ]
    digest = hashlib.sha256(repr((version, flags)).encode())
    for path in sorted([*HERE.rglob("*.cu*"), *HERE.rglob("*.h"), *HERE.parent.glob("*.h")]):
        digest.update(str(path.relative_to(HERE.parent)).encode() + path.read_bytes())
    folder = CACHE / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        name = f"{source.parent.name}_{source.stem}"  # files in two folders may have the same name
        target = folder / f"{name}.o"
        if not target.exists():
            partial = folder / f"{name}.{os.getpid()}.o"
            command = [nvcc, *flags, "-c", str(source), "-o", str(partial)]
            result = _run(command)
            if result.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
            target.with_suffix(".txt").write_text(result.stdout + result.stderr)
            partial.rename(target)
        return target

    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_one, sources))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture, as ptxas reports it. Bytes are of one thread."""

    kernel: str  # mangled
    architecture: str
    registers: int
    stack: int
    spilled: int


def usage(report: str) -> Iterator[Usage]:
    """The kernels of a report."""
    pattern = re.compile(
        r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'"
        r"(?:(?!Compiling entry).)*?(?P<stack>\d+) bytes stack frame"
        r", (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r"(?:(?!Compiling entry).)*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    for match in pattern.finditer(report):
        yield Usage(
            match["kernel"],
            match["architecture"],
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
        )
