"""What a step of a GPU rung should take: its instructions, and a table of latencies measured on an H100.

A step is a chain: what has to arrive, the multiply-adds, the sum over lanes, tanh, and what makes it visible
to the others. The model adds up the chain's latencies and the time in which the schedulers issue the loop's
instructions. Latencies are those of bench/results/h100/device.json (`python -m bench latency`). Instructions
are counted in the machine code of sm_90; gpu_counts.json has them, which `python -m bench.study.gpu_table
--count` writes.

Two quantities are not in the table. The sum over lanes exchanges by shuffles, which go through the unit of
shared memory, so each counts as a load from there. Each of the multiprocessor's four schedulers issues an
instruction a cycle. Left out: that a load may miss L2, that several blocks share a multiprocessor, and that
instructions wait for each other.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any, Optional

import torch

from bench.study import gpu_device as device
from rnnfast.inspect import sass

FOLDER = Path(__file__).parent
RUNGS = FOLDER / "rungs"
COUNTS = FOLDER / "gpu_counts.json"
TABLE = FOLDER.parent / "results" / "h100" / "device.json"
ARCHITECTURES = (80, 90)
FILES = {
    "8": "08_launch_a_step.cu",
    "8b": "08_launch_a_step_triton.py",
    "9": "09_persistent.cu",
    "9b": "09_persistent_triton.py",
    "10": "10_two_buffers.cu",
    "11": "11_counter.cu",
    "12": "12_data_is_the_flag.cu",
}
SCHEDULERS = 4


# ---- instructions ----------------------------------------------------------------------------------


def count(label: str, architecture: int) -> dict[str, int]:
    """What a kernel takes, and the instructions of a round of its main loop, by kind.

    Rungs 9 to 12 go round once a step (11 and 12 once for each sequence of a step), rungs 8 and 8b once for
    some columns. Raises device.Missing where it can't be compiled or disassembled.
    """
    file = RUNGS / FILES[label]
    try:
        if file.suffix == ".cu":
            return _counted(device.cubin(file, architecture))
        with tempfile.NamedTemporaryFile(suffix=".cubin") as code:
            code.write(compile_triton(label, architecture).asm["cubin"])
            code.flush()
            return _counted(Path(code.name))
    except RuntimeError as error:  # of `sass`: a tool is missing
        raise device.Missing(str(error)) from None


def _counted(path: Path) -> dict[str, int]:
    (taken,) = sass.resources(str(path)).values()
    (listing,) = sass.listings(str(path)).values()
    code = sass.analyse(listing)
    opcodes = Counter({name: n for name, n in code.opcodes.items() if not name.startswith("NOP")})

    def those(pattern: str) -> int:
        return sum(n for name, n in opcodes.items() if re.match(pattern, name))

    return {
        "registers": taken.registers,
        "spilled": taken.local + taken.stack,
        "instructions": sum(opcodes.values()),
        "multiply-adds": those(r"FFMA|FMUL"),
        "shared loads": those(r"LDS|LDSM"),
        "L2 loads": those(r"LDG"),
        "barriers": those(r"BAR"),
        "shuffles": those(r"SHFL"),
    }


def compile_triton(label: str, architecture: int) -> Any:
    """Triton's compiled kernel of a rung at H = 128, made without a GPU."""
    from rnnfast.kernels.launch import Launch

    module = device.triton_module(RUNGS / FILES[label])

    def new(*size: int) -> torch.Tensor:
        return torch.empty(size, device="meta")

    w_hh = new(128, 128)
    if label == "8b":
        sizes = {"pre": new(1, 128), "w_hh": w_hh, "before": new(1, 128), "after": new(1, 128), "H": 128}
        launch = Launch(module.step_kernel, (1, 8), sizes, {"BLOCK_N": 16, "BLOCK_K": 64}, 4, 1)
    else:
        sizes = {"pre": new(100, 1, 128), "w_hh": w_hh, "h0": new(1, 128), "out": new(100, 1, 128)}
        sizes |= {"T": 100, "B": 2, "H": 128}
        launch = Launch(module.persistent_kernel, (1,), sizes, {"BLOCK_H": 128}, 8, 1)
    return launch.compile(architecture)


@lru_cache
def counted() -> dict[str, Any]:
    """The counts of gpu_counts.json: {"nvcc": ..., "triton": ..., "rungs": {label: {"sm_90": {...}}}}."""
    return json.loads(COUNTS.read_text())


# ---- latencies -------------------------------------------------------------------------------------


@lru_cache
def latencies() -> dict[str, float]:
    """Nanoseconds, by the table's names, and "cycle"."""
    figures = {name: entry["figures"] for name, entry in json.loads(TABLE.read_text())["latency"].items()}
    by_name = {name: figure["ns"] for name, figure in figures.items()}
    barrier = figures["block barrier, 256 threads"]
    return {**by_name, "cycle": barrier["ns"] / barrier["cycles"]}


def limit(label: str) -> Optional[int]:
    """The largest H that a rung has, or None."""
    return {"8": None, "8b": None, "11": 512, "12": 512}.get(label, 128)


def predict(label: str, batch: int, hidden: int) -> dict[str, float]:
    """The terms of a step's time in microseconds. `batch` is at most the number of multiprocessors.

    Raises ValueError for a rung that has no such size.
    """
    largest = limit(label)
    if largest is not None and hidden > largest:
        raise ValueError(f"rung {label} has no H = {hidden}")
    ns, code = latencies(), counted()["rungs"][label]["sm_90"]
    load, shuffle = ns["L2 load"], ns["shared memory load"]
    warps = 4 if label == "8b" else 8
    issue = code["instructions"] * warps / SCHEDULERS * ns["cycle"]
    tanh = ns["tanh for float32"]
    if label in ("8", "8b"):
        rounds = ceil(hidden / (64 if label == "8b" else 128))  # of the loop; its loads go out together
        terms = {
            "launch in a graph": ns["kernel in a graph"],
            "loads": rounds * load,
            "issue": rounds * issue,
            "sum and tanh": 5 * shuffle + tanh,
        }
    elif label in ("9", "9b", "10"):
        terms = {
            "barriers": code["barriers"] * ns["block barrier, 256 threads"],
            "shared load": ns["shared memory load"],
            "issue": issue,
            "sum and tanh": 3 * shuffle + tanh,
        }
    else:
        work = {"issue": batch * issue, "sum and tanh": batch * (5 * shuffle + tanh)}
        if label == "11":
            # The store is on its way as long as a load is.
            terms = {"barrier": ns["grid barrier, one counter"], "store and load": 2 * load, **work}
        else:
            terms = {"exchange": ns["exchange through L2, two blocks"], **work}
    return {name: value / 1e3 for name, value in terms.items()}
