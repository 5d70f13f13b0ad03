"""The rungs on a GPU: what they are called with, and what came of them.

The input product of rung 2 is made by torch before the rung runs, on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Optional

from bench.study import gpu_device as device
from bench.study import gpu_model as model
from bench.study.build import Unavailable
from bench.study.machine import Machine
from bench.study.problem import CHECKED, Problem, Result, Shape, Solve
from bench.study.rung import RUNG_FILES, Rung, Terms

NARROW = Shape(100, 1, 128, 128)  # what one block can hold
WIDE = Shape(100, 1, 512, 512)
WIDEST = (Shape(3, 2, 4, 127), Shape(2, 3, 8, 128), Shape(2, 1, 3, 511), Shape(1, 2, 1, 512))
UNTIMED = "`python -m bench.study.gpu_table` predicts its time, and takes it where there is a GPU"


def solver(run: Callable[[Path], device.Run], file: str) -> Callable[[], Solve]:
    def load() -> Solve:
        try:
            rung = run(RUNG_FILES / file)
        except (device.Missing, RuntimeError) as error:
            raise Unavailable(str(error)) from None

        def solve(problem: Problem) -> Result:
            on = [p.to(device.where()) for p in problem.parameters()]
            x, h0, w_ih, w_hh, b = on
            return (rung((x @ w_ih.T + b).contiguous(), w_hh, h0).to(problem.x.device),)

        return solve

    return load


def checked_up_to(limit: Optional[int]) -> tuple[Shape, ...]:
    """The ladder's shapes, and those at a rung's largest H."""
    if limit is None:
        return CHECKED
    return tuple(shape for shape in (*CHECKED, *WIDEST) if shape.hidden <= limit)


def rung(
    label: str, idea: str, outcome: str, becomes: str, shapes: tuple[Shape, ...], before: str = ""
) -> Rung:
    file = model.FILES[label]

    def predict(machine: Machine, shape: Shape) -> Terms:
        return model.predict(label, shape.batch, shape.hidden)

    return Rung(
        number=int(label.rstrip("b")),
        variant="b" if label.endswith("b") else "",
        file=file,
        idea=idea,
        load=solver(device.native if file.endswith(".cu") else device.triton, file),
        predict=predict,
        outcome=outcome,
        becomes=becomes,
        untimed=lambda: UNTIMED,
        shapes=shapes,
        checked=checked_up_to(model.limit(label)),
        before=before,
    )


RUNGS: tuple[Rung, ...] = (
    rung(
        "8",
        "a launch a step",
        "Even in a graph, starting the kernel is most of a step; the product is what is left.",
        "csrc/cuda/step/step.cuh",
        (NARROW, WIDE),
    ),
    rung(
        "8b",
        "the same in Triton",
        "The same launch, and more instructions. Outside of a graph Triton's launcher comes on top, which the"
        " table of latencies does not have.",
        "rnnfast/kernels/stepwise.py",
        (NARROW, WIDE),
    ),
    rung(
        "9",
        "one launch; W_hh stays in the registers of a block",
        "No launch and no byte of W_hh in a step. What is left is issuing the instructions.",
        "csrc/cuda/resident/resident.cuh",
        (NARROW,),
        before="8",
    ),
    rung(
        "9b",
        "the same in Triton",
        "W_hh stays in registers here, too, but sums over rows take more shuffles, and Triton places more"
        " barriers.",
        "rnnfast/kernels/resident.py",
        (NARROW,),
        before="9",
    ),
    rung(
        "10",
        "two buffers of the state, one barrier a step",
        "A barrier less, and the one that is left is where the threads meet anyway.",
        "csrc/cuda/resident/resident.cuh",
        (NARROW,),
        before="9",
    ),
    rung(
        "11",
        "the whole device, a counter as its barrier: a dead end",
        "The barrier takes longer than all the work of a step, and longer than the launch of rung 8 that it"
        " was to save. The latency was measured with a block on each of 132 multiprocessors, where this layer"
        " has 32 blocks: the prediction is on the high side.",
        "csrc/cuda/grid/grid.cuh",
        (WIDE,),
        before="8",
    ),
    rung(
        "12",
        "the data is its own flag",
        "One store and one load through L2 are all that is left of the exchange. The prediction has nobody"
        " look twice and nobody arrive late.",
        "csrc/cuda/grid/grid.cuh",
        (WIDE,),
        before="11",
    ),
)
