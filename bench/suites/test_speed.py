"""The cases of the suite `quick` under pytest-benchmark: `pytest bench/suites --benchmark-json FILE`.

Groups are shapes with their mode; extra_info has what is needed to read a figure later. A contender that
computes something wrong fails its test and is not timed. BENCH_SUITE chooses another suite. Threads are
those of the process.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.cases.case import Case
from bench.cases.inputs import make_inputs
from bench.cases.suites import select
from bench.machine import environment
from bench.peers import PEERS, default_peers
from bench.suites import cell

pytest.importorskip("pytest_benchmark")

HERE = environment.describe()
CASES = [
    replace(case, threads=torch.get_num_threads()) for case in select(os.environ.get("BENCH_SUITE", "quick"))
]


@pytest.mark.parametrize("name", default_peers(CASES[0].device))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_speed(benchmark: Any, case: Case, name: str) -> None:
    result, prepared = cell.check(case, PEERS[name], make_inputs(case))
    if result["status"] in ("unavailable", "refused"):
        pytest.skip(result["reason"])
    assert prepared is not None, f"{result['status']}: {result['reason']}"
    benchmark.group = case.key
    benchmark.name = f"{name} {case.key}"
    benchmark.extra_info.update(
        contender=name,
        device=HERE["gpu"] if case.device == "cuda" else HERE["cpu"],
        versions=HERE["versions"],
        threads=case.threads,
        dtype=case.dtype,
        commit=HERE["commit"],
        compile_seconds=result["compile_seconds"],
    )
    benchmark(prepared.call if case.device == "cpu" else prepared.complete)
