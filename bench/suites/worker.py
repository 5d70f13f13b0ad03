"""The process that measures: `bench.suites.run` starts one for each number of threads.

Threads are fixed before anything is imported, because XLA and OpenMP read them only once. Not meant to be
called by hand: the JSON file has to be there, and the environment set.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Optional, Union

import torch

from bench.cases.suites import SUITES, Suite
from bench.machine import gpu_roofline, peaks, roofline
from bench.peers import PEERS
from bench.report.store import Store
from bench.suites import cell
from bench.suites.options import chosen, parser
from bench.suites.progress import progress


def environment_for(threads: int) -> dict[str, str]:
    """The variables of a worker. RNNFAST_BACKEND would turn "auto" into something else."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    variables["NPROC"] = str(threads)  # XLA's thread pool
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flags}".strip()
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or JAX takes most of a GPU's memory for itself
    variables["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # or compile times depend on what ran before
    variables.pop("RNNFAST_BACKEND", None)
    return variables


def main(arguments: list[str]) -> int:
    p = parser()
    p.add_argument(
        "--pool", type=int, required=True, help="threads of this process: cases of others are left out"
    )
    options = p.parse_args(arguments)
    threads = options.pool
    torch.set_num_threads(threads)
    store = Store.open(Path(options.json))
    cases = [case for case in chosen(options) if case.threads == threads]
    suite = SUITES[options.suite]
    if options.seconds is not None:
        least = min(suite.budget.min_rounds, 3)
        suite = replace(suite, budget=replace(suite.budget, seconds=options.seconds, min_rounds=least))
    machine = find_machine(store, suite, threads, on_gpu=bool(cases) and cases[0].device == "cuda")
    for case in progress(cases, f"{threads} thread(s)", "cell", lambda case: case.key):
        if not store.finished(case.key, options.peers):
            peers = {name: PEERS[name] for name in options.peers}
            store.put("cells", case.key, cell.measure(case, peers, suite, machine))
    return 0


def find_machine(
    store: Store, suite: Suite, threads: int, on_gpu: bool
) -> Optional[Union[roofline.Machine, gpu_roofline.Gpu]]:
    """The peaks that the file has, or measured now; None where the suite or the machine does without."""
    known, name = store.data["roofline"], "gpu" if on_gpu else str(threads)
    if not suite.bounds or (not on_gpu and peaks.unavailable() is not None):
        return None
    if name not in known:
        found = (
            gpu_roofline.measure() if on_gpu else roofline.measure(threads, min(suite.budget.seconds, 0.3))
        )
        store.put("roofline", name, found.to_dict())
    return gpu_roofline.Gpu(**known[name]) if on_gpu else roofline.Machine(**known[name])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
