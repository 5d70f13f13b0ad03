"""Where and with what a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Optional

import torch

PACKAGES = (
    "rnnfast",
    "torch",
    "numpy",
    "onnxruntime",
    "openvino",
    "jax",
    "jaxlib",
    "triton",
    "flag_gems",
    "xma",
)


def describe() -> dict:
    """JSON-ready. Everything but the date has to agree for two runs to share a file."""
    gpu = gpu_model()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **({} if gpu is None else {"driver": driver(), "cudnn": torch.backends.cudnn.version()}),
    }


def same(a: dict, b: dict) -> bool:
    """Whether cells measured in `a` and in `b` may stand in one file."""
    return {**a, "date": None} == {**b, "date": None}


def cpu_model() -> str:
    """The marketing name alone does not tell virtual machines apart, hence family, model and stepping."""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    numbers = "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{fields['model name']} (family/model/stepping {numbers})"


def gpu_model() -> Optional[str]:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def driver() -> Optional[str]:
    """The version of NVIDIA's driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None


def commit() -> str:
    """The checked-out commit, "+changes" after it when the code differs from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parents[2]
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout

    try:
        # Results and texts may change while a run goes on; what is measured may not.
        code = ("rnnfast", "csrc", "bench", ":!bench/results")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code).strip()
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
