"""The forward recurrence alone, without the input product: how much of the FMA peak the kernel itself
reaches.
"""

from __future__ import annotations

from typing import Optional

import torch

from bench.cases.case import Case
from bench.cases.inputs import make_inputs
from bench.cases.timing import Budget, alternate
from bench.cases.truth import wrong
from bench.machine.peaks import PeakMeter
from rnnfast.backends.cpu import CpuBackend
from rnnfast.native import MISSING


def applies(case: Case) -> bool:
    """The target is on dense float32 sequences with 8 rows or more."""
    plain = case.kind == "sequence" and case.layout == "dense" and case.dtype == "float32"
    return plain and not case.training and case.batch >= 8 and case.steps > 1 and case.device == "cpu"


def unavailable() -> Optional[str]:
    return None if MISSING is None else f"no recurrence kernel: {MISSING}"


def flops(case: Case) -> float:
    return 2.0 * case.steps * case.batch * case.hidden_size**2


def measure(case: Case, seconds: float) -> tuple[float, float]:
    """Median time of one call, and the FMA peak (flop/s) measured in turns with it.

    Raises RuntimeError when the result is wrong.
    """
    inputs = make_inputs(case)
    w_ih, w_hh, b_ih, b_hh = inputs.layer(0, 0)
    h0, kernel = inputs.h0[0], CpuBackend().recurrence_forward
    rows = torch.nn.functional.linear(inputs.x, w_ih, b_ih + b_hh).flatten(0, 1)
    kernel(rows, h0, w_hh, case.nonlinearity)
    problem = wrong(case, rows.view(case.steps, case.batch, case.hidden_size), [])
    if problem:
        raise RuntimeError(f"the recurrence kernel at {case.key}: {problem}")
    # The result overwrites the input. Feeding it back in costs the same: values stay in range.
    meter = PeakMeter(case.threads)
    calls = {"recurrence": lambda: kernel(rows, h0, w_hh, case.nonlinearity), "peak": meter}
    return alternate(calls, Budget(seconds=seconds))["recurrence"].median, meter.peak
