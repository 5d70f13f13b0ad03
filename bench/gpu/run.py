"""Everything that has to be found out on a GPU, in one command:

    python -m bench gpu --out DIR

runs its parts, each in processes of its own and within its own time, since a kernel that spins would hang
it, what matters most first: `check`, every GPU backend against float64 with all gradients, in as
many processes as there are cores, since Triton's compiler takes longer than everything else; the suites
`gpu-layers` and `gpu-steps`, the backends against cuDNN over layers and steps of all sizes; `graphs`, capture
in CUDA graphs and replay; `latency`, the parts of a step (`python -m bench latency`); `peaks`, copies and
large products; `kernels`, the kernels that cuDNN chooses; `sanitizer`, NVIDIA's compute-sanitizer over short
runs of the kernels that use shared memory. `--parts` chooses among them, `--backends` among ours. Without a
GPU every part is skipped, and the file says so.

DIR/PART.json is written as a part goes, so that a part that is stopped keeps what it has; those of suites are
files of `python -m bench run`, and DIR/device.json has all others, with device, driver, versions and commit.
Nothing but torch and Triton need be installed. `python -m bench crossover DIR/gpu-layers.json
DIR/gpu-steps.json` makes dispatch's table of it. Exit status: 0, or 1 when anything was wrong, failed or ran
out of time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from bench import command
from bench.cases.precision import KINDS
from bench.gpu import graphs
from bench.gpu.check import BACKENDS, HIDDEN, Put, check
from bench.machine import environment, gpu_latency
from bench.machine.gpu_peaks import peaks

Backends = tuple[str, ...]

# What each part may take, in the order in which they run.
SECONDS = {
    "check": 130,
    "gpu-layers": 240,
    "gpu-steps": 40,
    "graphs": 20,
    "latency": 30,
    "peaks": 20,
    "kernels": 30,
    "sanitizer": 90,
}


# ---- check ---------------------------------------------------------------------------------------


def check_group(kind: str, hidden: tuple[int, ...], backend: str) -> dict[str, dict]:
    torch.set_num_threads(1)
    found: dict[str, dict] = {}
    check(found.__setitem__, backends=(backend,), hidden=hidden, kinds=(kind,))
    return found


def check_all(put: Put, backends: Backends) -> None:
    groups = [
        (kind, hidden, name) for name in reversed(backends) for hidden in reversed(HIDDEN) for kind in KINDS
    ]
    # Every process has a context of its own, in the GPU's memory, too.
    workers = min(len(groups), os.cpu_count() or 1, max(1, torch.cuda.mem_get_info()[0] >> 31))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(check_group, *group) for group in groups]):
            for key, value in future.result().items():
                put(key, value)


# ---- sanitizer -------------------------------------------------------------------------------------

SANITIZED = """
import torch, rnnfast
from rnnfast import dispatch
for backend in BACKENDS:
    for dtype in (torch.bfloat16, torch.float32) if dispatch.unavailable(backend) is None else ():
        for hidden in (33, 64, 128, 256, 300):
            rnn = rnnfast.RNN(8, hidden, device="cuda", dtype=dtype, backend=backend)
            rnn(torch.randn(8, 9, 8, device="cuda", dtype=dtype))[0].float().sum().backward()
torch.cuda.synchronize()
"""


def sanitizer(put: Put, backends: Backends) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        put("compute-sanitizer", {"status": "unavailable", "reason": f"{program} does not exist"})
        return
    for tool in ("memcheck", "racecheck"):
        code = f"BACKENDS = {backends!r}{SANITIZED}"
        command = [program, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        status = "right" if result.returncode == 0 else "wrong"
        put(tool, {"status": status, "output": (result.stdout + result.stderr)[-4000:]})


def latency(put: Put, backends: Backends) -> None:
    for name, figures in gpu_latency.run()["latency"].items():
        put(
            name,
            {"status": "failed" if figures is None or "error" in figures else "timed", "figures": figures},
        )


# ---- all together ----------------------------------------------------------------------------------

# The parts that are no suites.
PARTS: dict[str, Callable[[Put, Backends], None]] = {
    "check": check_all,
    "graphs": graphs.graphs,
    "latency": latency,
    "peaks": lambda put, backends: peaks(put),
    "kernels": lambda put, backends: graphs.kernels(put),
    "sanitizer": sanitizer,
}


def run_part(name: str, folder: Path, backends: Backends) -> None:
    found: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        found[key] = value
        partial = folder / f"{name}.partial"
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(folder / f"{name}.json")

    PARTS[name](put, backends)


def summary(parts: dict[str, dict], ended: dict[str, str]) -> tuple[str, bool]:
    """A few lines about a run, and whether all is well."""
    lines, well = [], True
    for name, found in parts.items():
        results = [r for value in found.values() for r in value.get("results", {"": value}).values()]
        counts = {s: sum(r.get("status") == s for r in results) for s in {r.get("status") for r in results}}
        if ended[name].startswith("skipped"):
            lines.append(f"{name}: {ended[name]}")
            continue
        lines.append(f"{name}: {ended[name]}; " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
        for key, value in found.items():
            for result in value.get("results", {"": value}).values():
                if result.get("status") in ("wrong", "failed"):
                    well = False
                    what = result.get("reason") or result.get("worst") or ""
                    lines.append(f"  {key}: {result['status']} {what}")
        well = well and ended[name] == "complete"
    return "\n".join(lines), well


def command_of(name: str, folder: Path, backends: Backends) -> list[str]:
    if name in PARTS:
        arguments = ["gpu", "--out", str(folder), "--only", name, "--backends", *backends]
    else:
        contenders = [*(f"rnnfast-{backend}" for backend in backends), "torch-rnn"]
        arguments = ["run", "--suite", name, "--json", str(folder / f"{name}.json"), "--peers", *contenders]
    return [sys.executable, "-m", "bench", *arguments]


def run_in_time(name: str, folder: Path, backends: Backends) -> str:
    """Runs a part in a process of its own; how that ended."""
    if not torch.cuda.is_available():
        return "skipped: torch finds no CUDA device"
    process = subprocess.Popen(command_of(name, folder, backends), start_new_session=True)
    try:
        code = process.wait(SECONDS[name])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
        return f"stopped after {SECONDS[name]} s"
    return "complete" if code == 0 else f"ended with status {code}"


def main(arguments: list[str]) -> int:
    parser = command.parser("gpu", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)  # how a part's process is started
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only:
        run_part(options.only, options.out, tuple(options.backends))
        return 0
    device: dict[str, Any] = {"environment": environment.describe(), "ended": {}}
    found: dict[str, dict] = {}
    for name in options.parts:
        file = options.out / f"{name}.json"
        file.unlink(missing_ok=True)
        device["ended"][name] = run_in_time(name, options.out, tuple(options.backends))
        content = json.loads(file.read_text()) if file.exists() else {}
        found[name] = content if name in PARTS else content.get("cells", {})
        if name in PARTS:
            device[name] = content
        (options.out / "device.json").write_text(json.dumps(device, indent=1) + "\n")
    text, well = summary(found, device["ended"])
    print(text)
    return 0 if well else 1
