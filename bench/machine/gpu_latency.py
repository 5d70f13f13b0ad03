"""The parts of a step of a recurrence on a GPU, each timed by itself: barriers, memories, the tensor core.

    python -m bench latency --json latency.json

builds gpu_latency.cu with nvcc for the GPU at hand and runs it. A figure is cycles of an SM and nanoseconds
for one repetition, null where a block waited in vain for another. The floors that the kernels of csrc/cuda
aim at are sums of these.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Optional

import torch

from bench import command
from bench.machine import environment

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
FLAGS = [
    *("-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"),
    *("-cudart", "static", "-I", str(KERNELS)),
]


def nvcc() -> Optional[str]:
    """The compiler, where it is found by the rules of the package's own build."""
    sys.path.append(str(KERNELS))
    try:
        return import_module("nvcc").find()
    finally:
        sys.path.remove(str(KERNELS))


def build(target: Path, architecture: str) -> None:
    """Compiles the program; `architecture` is what nvcc's -arch takes, "sm_90" say.

    Raises:
        RuntimeError: there is no nvcc, or it failed or gave a warning.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("there is no nvcc in $CUDA_HOME, on the PATH or in /usr/local/cuda")
    command = [compiler, *FLAGS, f"-arch={architecture}", str(HERE / "gpu_latency.cu"), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{(result.stdout + result.stderr)[:4000]}")


def run(timeout: float = 120) -> dict:
    """What the program prints: {"device": ..., "latency": {name: {"cycles": ..., "ns": ...} or None}}.

    Raises:
        RuntimeError: there is no GPU, it could not be built, failed, or took longer than `timeout` seconds.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device")
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "gpu_latency"
        build(program, f"sm_{major}{minor}")
        try:
            result = subprocess.run(
                [str(program)], capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"gpu_latency took longer than {timeout} seconds") from None
    if result.returncode:
        raise RuntimeError(f"gpu_latency failed: {result.stderr.strip()}")
    return json.loads(result.stdout)


def main(arguments: list[str]) -> int:
    parser = command.parser("latency", __doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures (default: only print them)")
    options = parser.parse_args(arguments)
    try:
        figures = run()
    except RuntimeError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    for name, figure in figures["latency"].items():
        cells = (
            "waited in vain"
            if figure is None
            else figure.get("error") or "".join(f"{v:12.1f} {k}" for k, v in figure.items())
        )
        print(f"{name:45} {cells}")
    if options.json:
        options.json.write_text(json.dumps({"environment": environment.describe(), **figures}, indent=1))
    return 0
