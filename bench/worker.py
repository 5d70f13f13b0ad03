"""The process that measures: `bench.run` starts one for each number of threads.

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
from tqdm import tqdm

from bench import cell, gpu_roofline, roofline
from bench.gpu_check import products
from bench.options import parser
from bench.peers import PEERS
from bench.shapes import BUDGETS, select
from bench.store import Store


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
    cases = [c for c in select(options.suite, options.threads, options.filter) if c.threads == threads]
    budget = BUDGETS[options.suite]
    if options.seconds is not None:
        budget = replace(budget, seconds=options.seconds, min_rounds=min(budget.min_rounds, 3))

    machine: Optional[Union[roofline.Machine, gpu_roofline.Gpu]] = None
    known = store.data["roofline"]
    if options.suite == "gpu":
        if "gpu" not in known:
            store.put("roofline", "gpu", gpu_roofline.measure().to_dict())
        machine = gpu_roofline.Gpu(**known["gpu"])
    elif roofline.unavailable() is None:
        if str(threads) not in known:
            seconds = min(budget.seconds, 0.3)
            store.put("roofline", str(threads), roofline.measure(threads, seconds).to_dict())
        machine = roofline.Machine(**known[str(threads)])

    # float32 is float32 for everybody: with torch's defaults cuDNN would round the operands to TF32.
    with products(tf32=False), tqdm(cases, unit="cell", disable=None, desc=f"{threads} thread(s)") as bar:
        for case in bar:
            bar.set_postfix_str(case.key, refresh=True)
            if not store.finished(case.key, options.peers):
                peers = {name: PEERS[name] for name in options.peers}
                store.put("cells", case.key, cell.measure(case, peers, budget, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
