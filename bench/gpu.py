"""Everything that has to be found out on a GPU, in one command:

    python -m bench.gpu --out DIR

runs four parts, each in a process of its own and within its own time, since a kernel that spins would hang
it: `check`, every GPU backend against float64 with all gradients; `latency`, the parts of a step
(`bench.gpu_latency`); `timing`, the backends and torch.nn.RNN (cuDNN) over layers of all sizes, dtypes and
batches; `sanitizer`, NVIDIA's compute-sanitizer over short runs of the kernels that use shared memory.
`--parts` chooses among them.

DIR/PART.json is written as a part goes, so that a part that is stopped keeps what it has; DIR/gpu.json has
all of them, with device, driver, versions and commit. `python -m bench.crossover DIR/gpu.json` makes
dispatch's table of it. Exit status: 0, or 1 when anything was wrong, failed or ran out of time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor
from tqdm import tqdm

from bench import cell, environment, gpu_latency
from bench.inputs import make_inputs
from bench.peers import TorchRNN
from bench.peers.rnnfast_rnn import Rnnfast
from bench.shapes import Case
from bench.timing import Budget, alternate
from rnnfast import dispatch
from rnnfast.functional import rnn_sequence, rnn_step
from tests import cases

BACKENDS = ("cuda", "triton")
SECONDS = {"check": 150, "latency": 60, "timing": 300, "sanitizer": 90}
Put = Callable[[str, Any], None]

# A name, a dtype, and for float32 whether products may be rounded to TF32.
KINDS: dict[str, tuple[torch.dtype, bool]] = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    dispatch.find.cache_clear()  # what a backend refuses may depend on it
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
        dispatch.find.cache_clear()


# ---- check -----------------------------------------------------------------------------------------

HIDDEN = (1, 20, 33, 64, 128, 131, 192, 200, 256, 257, 512, 1000, 1024, 2048)
BATCHES = (1, 9, 70)


@lru_cache(maxsize=4)
def problem(shape: tuple[int, int, int, int], nonlinearity: str, packed: bool, delicate: bool) -> cases.Case:
    """In float64. Of `delicate` relu, rounding errors must not decide the derivative: see `cases.make`."""
    steps, batch, *_ = shape
    lengths = [max(1, steps - b * steps // batch) for b in range(batch)] if packed else None
    like = torch.bfloat16 if delicate else torch.float64
    return cases.make(shape, like, nonlinearity, lengths=lengths).to(torch.float64)


def compare(
    backend: str, device: str, case: cases.Case, nonlinearity: str, reverse: bool, bound: float
) -> dict:
    """The result of one problem: its worst error, as a part of the tolerated one."""
    step = case.inputs["x"].dim() == 3 and case.inputs["x"].shape[0] == 1 and case.batch_sizes is None
    if step:
        case = cases.Case(case.inputs, case.grad_out, torch.zeros_like(case.grad_hn))
    out, h_n, grads = cases.expected(case, nonlinearity, reverse)
    leaves = [t.detach().to(device).requires_grad_() for t in case.args]
    try:
        if step:
            results = [rnn_step(leaves[0][0], *leaves[1:], nonlinearity, backend=backend)]
            outputs, wanted = [case.grad_out[0]], {"output": out[0]}
        else:
            results = list(
                rnn_sequence(
                    *leaves, nonlinearity, reverse=reverse, batch_sizes=case.batch_sizes, backend=backend
                )
            )
            outputs, wanted = [case.grad_out, case.grad_hn], {"output": out, "h_n": h_n}
        actual = torch.autograd.grad(results, leaves, [g.to(device) for g in outputs])
    except RuntimeError as error:
        status = "refused" if "can't run this problem" in str(error) else "failed"
        return {"status": status, "reason": str(error)[:500]}
    wanted.update({f"gradient of {name}": grad for name, grad in zip(cases.NAMES, grads, strict=True)})
    worst = max(
        (error_of(a, e) / bound, name)
        for (name, e), a in zip(wanted.items(), [*results, *actual], strict=True)
    )
    return {"status": "right" if worst[0] <= 1 else "wrong", "worst": worst[1], "of_tolerance": worst[0]}


def error_of(actual: Tensor, wanted: Tensor) -> float:
    """Relative to the largest element, or to 1; infinite for NaN."""
    error = ((actual.detach().cpu().double() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)).item()
    return error if error == error else float("inf")


def check(
    put: Put,
    device: str = "cuda",
    backends: tuple[str, ...] = BACKENDS,
    hidden: tuple[int, ...] = HIDDEN,
    batches: tuple[int, ...] = BATCHES,
) -> None:
    ways = [(1, False, False), (6, False, False), (6, False, True), (6, True, False), (6, True, True)]
    problems = [
        (T, B, H, packed, reverse, "relu" if (H + B + T) % 3 == 0 else "tanh")
        for H in hidden
        for B in batches
        for T, packed, reverse in ways
    ]
    for T, B, H, packed, reverse, nonlinearity in tqdm(problems, disable=None, desc="check"):
        for kind, (dtype, tf32) in KINDS.items():
            delicate = nonlinearity == "relu" and kind != "float32"
            case = problem((T, B, 28 + H % 3, H), nonlinearity, packed, delicate).to(dtype)
            bound = 8 * 2.0**-11 if tf32 else case.tolerance()
            way = "step" if T == 1 else ("packed" if packed else "dense") + (" reverse" if reverse else "")
            for backend in backends:
                with products(tf32):
                    found = compare(backend, device, case, nonlinearity, reverse, bound)
                put(f"{backend} {kind} T{T} B{B} H{H} {way} {nonlinearity}", found)


# ---- timing ----------------------------------------------------------------------------------------

STEPS, STEPS_CHECKED = 512, 6
# What matters most comes first, in case time runs out. Beyond 2^26 elements, making the inputs takes longer
# than everything else.
TIMED = [
    (B, H) for H in (128, 256, 512, 1024, 64, 2048) for B in (16, 64, 1, 256, 128) if STEPS * B * H <= 2**26
]


def timing(
    put: Put,
    device: str = "cuda",
    backends: tuple[str, ...] = BACKENDS,
    sizes: Sequence[tuple[int, int]] = tuple(TIMED),
    seconds: float = 0.15,
) -> None:
    contenders = [*(Rnnfast(name) for name in (*backends, "aten")), TorchRNN()]
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    cells = [
        (kind, Case(STEPS, B, H, H, training=training, dtype=str(KINDS[kind][0])[6:], device=device))
        for B, H in sizes
        for kind in KINDS
        for training in (False, True)
    ]
    for kind, case in tqdm(cells, disable=None, desc="timing"):
        results: dict[str, dict] = {}
        calls: dict[str, Callable[[], object]] = {}
        short = Case(**{**case.to_dict(), "steps": STEPS_CHECKED})
        inputs, few_inputs = make_inputs(case), make_inputs(short)
        with products(KINDS[kind][1]):
            for peer in contenders:
                # cuDNN's TF32 is as inexact as ours, which bench.inputs does not provide for: `check` does.
                results[peer.name], call = (
                    cell.check(short, peer, few_inputs) if kind != "tf32" else ({"status": "timed"}, peer)
                )
                if call is None:
                    continue
                try:
                    calls[peer.name] = peer.prepare(case, inputs).call
                    calls[peer.name]()
                except RuntimeError as error:
                    del calls[peer.name]
                    results[peer.name] = {"status": "failed", "reason": str(error)[:500]}
            timed = alternate(calls, Budget(seconds=seconds, min_rounds=3), synchronize=synchronize)
        for name, measured in timed.items():
            results[name].update(vars(measured))
        mode = "training" if case.training else "forward"
        put(
            f"{kind} B{case.batch} H{case.hidden_size} {mode}",
            {"kind": kind, "case": case.to_dict(), "results": results},
        )


# ---- sanitizer -------------------------------------------------------------------------------------

SANITIZED = """
import torch, rnnfast
for dtype in (torch.bfloat16, torch.float32):
    for hidden in (33, 64, 128, 256, 300):
        rnn = rnnfast.RNN(8, hidden, device="cuda", dtype=dtype, backend="cuda")
        rnn(torch.randn(8, 9, 8, device="cuda", dtype=dtype))[0].float().sum().backward()
torch.cuda.synchronize()
"""


def sanitizer(put: Put) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        put("compute-sanitizer", {"status": "unavailable", "reason": f"{program} does not exist"})
        return
    for tool in ("memcheck", "racecheck"):
        command = [program, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-c", SANITIZED]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        status = "right" if result.returncode == 0 else "wrong"
        put(tool, {"status": status, "output": (result.stdout + result.stderr)[-4000:]})


def latency(put: Put) -> None:
    for name, figures in gpu_latency.run()["latency"].items():
        put(
            name,
            {"status": "failed" if figures is None or "error" in figures else "timed", "figures": figures},
        )


# ---- all together ----------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Put], None]] = {
    "check": check,
    "latency": latency,
    "timing": timing,
    "sanitizer": sanitizer,
}


def run_part(name: str, folder: Path) -> None:
    found: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        found[key] = value
        partial = folder / f"{name}.partial"
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(folder / f"{name}.json")

    PARTS[name](put)


def summary(parts: dict[str, dict], ended: dict[str, str]) -> tuple[str, bool]:
    """A few lines about a run, and whether all is well."""
    lines, well = [], True
    for name, found in parts.items():
        results = [r for value in found.values() for r in value.get("results", {"": value}).values()]
        counts = {s: sum(r.get("status") == s for r in results) for s in {r.get("status") for r in results}}
        lines.append(f"{name}: {ended[name]}; " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
        for key, value in found.items():
            for result in value.get("results", {"": value}).values():
                if result.get("status") in ("wrong", "failed"):
                    well = False
                    what = result.get("reason") or result.get("worst") or ""
                    lines.append(f"  {key}: {result['status']} {what}")
        well = well and ended[name] == "complete"
    return "\n".join(lines), well


def driver() -> Optional[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)  # how a part's process is started
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only:
        run_part(options.only, options.out)
        return 0
    ended = {}
    for name in options.parts:
        (options.out / f"{name}.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "bench.gpu", "--out", str(options.out), "--only", name]
        try:
            code = subprocess.run(command, timeout=SECONDS[name], check=False).returncode
            ended[name] = "complete" if code == 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            ended[name] = f"stopped after {SECONDS[name]} s"
    parts = {
        name: json.loads(path.read_text()) if (path := options.out / f"{name}.json").exists() else {}
        for name in options.parts
    }
    here = {**environment.describe(), "driver": driver(), "cudnn": torch.backends.cudnn.version()}
    everything = {"environment": here, "ended": ended, **parts}
    (options.out / "gpu.json").write_text(json.dumps(everything, indent=1) + "\n")
    text, well = summary(parts, ended)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
