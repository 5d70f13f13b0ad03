"""The table of the GPU rungs: what they take, the prediction of a step, and the measurement beside it.

python -m bench.study.gpu_table           prints it; times the rungs where there is a GPU
python -m bench.study.gpu_table --count   counts instructions anew, which takes nvcc and Triton, no GPU
python -m bench.study.gpu_table --write   puts it into bench/study/GPU.md
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import torch

from bench import command
from bench.cases.timing import seconds_on_gpu
from bench.machine.environment import describe
from bench.study import gpu_device as device
from bench.study import gpu_model as model
from bench.study.gpu import RUNGS
from bench.study.problem import Shape, make
from bench.study.report import between, figure
from bench.study.rung import Rung

KINDS = ("registers", "shared loads", "barriers", "shuffles", "instructions")
GUIDE = Path(__file__).parent / "GPU.md"
TIMES = Path(__file__).parent / "gpu_times.json"  # there only once somebody has timed the rungs on a GPU


def count() -> dict[str, Any]:
    """What gpu_counts.json holds. Raises device.Missing."""
    import triton

    compiler = device.nvcc()
    if compiler is None:
        raise device.Missing("there is no nvcc")
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", said)
    return {
        "nvcc": release[1] if release else said,
        "triton": triton.__version__,
        "rungs": {
            label: {f"sm_{arch}": model.count(label, arch) for arch in model.ARCHITECTURES}
            for label in model.FILES
        },
    }


def time_rungs() -> dict[str, Any]:
    """Microseconds a step on the GPU at hand, by rung and shape; rung 8 in a graph as well."""
    times: dict[str, dict[str, float]] = {}
    for rung in RUNGS:
        run = (device.native if rung.path.suffix == ".cu" else device.triton)(rung.path)
        for shape in rung.shapes:
            problem = make(shape)
            x, h0, w_ih, w_hh, b = (p.cuda() for p in problem.parameters())
            pre = (x @ w_ih.T + b).contiguous()
            seconds = seconds_on_gpu(lambda run=run, pre=pre, w=w_hh, h=h0: run(pre, w, h))
            times.setdefault(rung.label, {})[str(shape)] = seconds / shape.steps * 1e6
            if rung.number == 8:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    run(pre, w_hh, h0)
                seconds = seconds_on_gpu(graph.replay)
                times.setdefault(f"{rung.label} in a graph", {})[str(shape)] = seconds / shape.steps * 1e6
    return {"environment": describe(), "us": times}


def block() -> str:
    """The generated part of GPU.md."""
    counted = model.counted()
    times = json.loads(TIMES.read_text()) if TIMES.exists() else None
    head = ["rung", "architecture", *KINDS]
    lines = [_row(head), _row(["---"] * len(head))]
    for label, kinds in counted["rungs"].items():
        for arch, n in kinds.items():
            lines.append(_row([_link(label), arch, *(str(n[kind]) for kind in KINDS)]))
    parts = [
        "Registers of a thread, and its instructions in a round of the main loop"
        f" (nvcc {counted['nvcc']}, Triton {counted['triton']}). Nothing spills.",
        "\n".join(lines),
    ]
    head = ["rung", "idea", "predicted", "measured", "terms of the prediction"]
    for shape in dict.fromkeys(shape for rung in RUNGS for shape in rung.shapes):
        rows = [_prediction(rung, shape, times) for rung in RUNGS if shape in rung.shapes]
        parts += [f"Microseconds a step, {shape}:", "\n".join([_row(head), _row(["---"] * 5), *rows])]
    here = json.loads(model.TABLE.read_text())["environment"]
    parts.append(
        f"The prediction's latencies were measured on {here['gpu']}, {here['date'][:10]}. Rungs 8 and 8b are"
        " predicted and measured in a graph."
    )
    if times is None:
        parts.append("Nobody has timed these rungs on a GPU yet; the command does it where it finds one.")
    else:
        parts.append(f"Measured on {times['environment']['gpu']}, {times['environment']['date'][:10]}.")
    return "\n\n".join(parts)


def _prediction(rung: Rung, shape: Shape, times: Optional[dict[str, Any]]) -> str:
    terms = model.predict(rung.label, shape.batch, shape.hidden)
    name = f"{rung.label} in a graph" if rung.number == 8 else rung.label
    measured = figure(times["us"][name][str(shape)]) if times else "no GPU"
    parts = ", ".join(f"{term} {figure(us)}" for term, us in terms.items())
    return _row([_link(rung.label), rung.idea, figure(sum(terms.values())), measured, parts])


def _link(label: str) -> str:
    return f"[{label}](rungs/{model.FILES[label]})"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> int:
    parser = command.parser("study.gpu_table", __doc__)
    parser.add_argument("--count", action="store_true", help="count the instructions of every rung anew")
    parser.add_argument("--write", action="store_true", help=f"renew the generated part of {GUIDE.name}")
    options = parser.parse_args(arguments)
    try:
        if options.count:
            model.COUNTS.write_text(json.dumps(count(), indent=1) + "\n")
            model.counted.cache_clear()
        if device.where() == "cuda":
            TIMES.write_text(json.dumps(time_rungs(), indent=1) + "\n")
    except device.Missing as error:
        print(f"gpu_table: {error}", file=sys.stderr)
        return 1
    print(block())
    if options.write:
        GUIDE.write_text(between(GUIDE.read_text(), block()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
