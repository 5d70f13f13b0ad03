"""The suite `random`: cases that nobody has chosen, drawn from the shapes that users may have.

Sizes are log-uniform over `RANGES`, under bounds on the work and the memory of a call. A draw beyond a bound
is thrown away, so that within the bounds sizes stay log-uniform. The first cases of a seed are the same
whatever their number.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from bench.cases.case import Case

RANGES = {"steps": (1, 2000), "batch": (1, 100_000), "input_size": (1, 100_000), "hidden_size": (1, 8192)}

# Two contenders call a case about eight times each, and float64 once: 200 cells take less than 20 minutes on
# two cores.
MOST_FLOPS = 5e9
MOST_NUMBERS = 1e8  # of all tensors of a call, gradients included
MOST_READ = 1e9  # numbers of W_hh, which every step reads

# How often each value is drawn.
KINDS = {"sequence": 3, "step": 1}
DTYPES = {"float32": 8, "bfloat16": 1, "float64": 1}
LAYOUTS = {"dense": 4, "packed": 1}


def draw(seed: int, count: int) -> list[Case]:
    """`count` different cases."""
    found: dict[Case, None] = {}
    cases = _endless(random.Random(seed))
    while len(found) < count:
        found[next(cases)] = None
    return list(found)


def numbers(case: Case) -> float:
    """Numbers in the tensors of a call: input, output, state, parameters, gradients."""
    H, I = case.hidden_size, case.input_size  # noqa: E741
    parameters = H * (I + H + 2)
    rows = case.steps * case.batch
    return parameters * (1 + case.training) + rows * (I + H * (1 + case.training)) + case.batch * H


def affordable(case: Case) -> bool:
    read = case.steps * case.hidden_size**2 * (1 + case.training)
    return case.flops <= MOST_FLOPS and numbers(case) <= MOST_NUMBERS and read <= MOST_READ


def _endless(generator: random.Random) -> Iterator[Case]:
    def one_of(weights: dict[str, int]) -> str:
        return generator.choices(list(weights), list(weights.values()))[0]

    while True:
        kind = one_of(KINDS)
        sizes = {name: _log_uniform(generator, *bounds) for name, bounds in RANGES.items()}
        layout = one_of(LAYOUTS)
        case = Case(
            **(sizes if kind == "sequence" else {**sizes, "steps": 1}),
            training=generator.random() < 0.5,
            kind=kind,
            layout=layout if kind == "sequence" else "dense",
            dtype=one_of(DTYPES),
            threads=generator.choice((1, 2)),
        )
        if affordable(case):
            yield case


def _log_uniform(generator: random.Random, low: int, high: int) -> int:
    """An integer whose logarithm is as likely to be in one place as in another; both ends included."""
    return int(math.exp(generator.uniform(math.log(low), math.log(high + 1))))
