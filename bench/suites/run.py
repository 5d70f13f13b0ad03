"""Measure rnnfast against everything else that computes the same recurrence.

Every contender is checked against a float64 reference before it is timed; a wrong result is reported as
wrong and has no time. Results are kept in the JSON file cell by cell: run the same command again to go on
after an interruption. Exit status: 0, or 1 when a backend of ours computed something wrong or failed, or a
worker died.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from bench.cases.suites import MEMORY, SUITES
from bench.machine import environment
from bench.peers import OURS, PEERS, default_peers
from bench.report.store import Store
from bench.report.summary import summary
from bench.suites import memory
from bench.suites.options import chosen, parser
from bench.suites.progress import progress
from bench.suites.worker import environment_for


def main(arguments: list[str]) -> int:
    p = parser(__doc__)
    options = p.parse_args(arguments)
    drawn = SUITES[options.suite].drawn
    name = f"{options.suite}-{options.seed}" if drawn else options.suite
    options.json = options.json or f"out/bench-{name}.json"
    if options.count < 1:
        p.error("--count must be at least 1")
    cases = chosen(options)
    if not cases:
        p.error(f"no case of suite {options.suite} has all of the words {options.filter!r}")
    device = cases[0].device  # a suite has one
    if device == "cuda" and not torch.cuda.is_available():
        p.error(f"the suite {options.suite} needs a CUDA device, and torch sees none")
    options.peers = options.peers or list(SUITES[options.suite].peers) or default_peers(device)
    path = Path(options.json)
    try:
        Store.begin(path, environment.describe())
    except ValueError as error:
        p.error(str(error))

    died = []
    for threads in sorted({case.threads for case in cases}):
        if subprocess.run(_worker(options, threads), env=environment_for(threads)).returncode != 0:
            died.append(threads)
    store = Store.open(path)
    if options.suite in ("core", "cpu") and not options.no_memory:
        _measure_memory(store, options.peers)

    wanted = {case.key for case in cases}
    cells = {key: cell for key, cell in store.data["cells"].items() if key in wanted}
    print(summary(store.data, cells, options.suite == "core", drawn))
    print(f"\nresults: {path}")
    for threads in died:
        print(f"the worker with {threads} thread(s) died: the same command takes up where it stopped")
    broken = [r for cell in cells.values() for n, r in cell["results"].items() if n in OURS]
    return int(bool(died) or any(r["status"] in ("wrong", "failed") for r in broken))


def _worker(options: argparse.Namespace, threads: int) -> list[str]:
    command = [sys.executable, "-m", "bench.suites.worker", "--pool", str(threads), "--json", options.json]
    command += ["--seed", str(options.seed), "--count", str(options.count)]
    command += ["--suite", options.suite, "--filter", options.filter, "--peers", *options.peers]
    command += ["--threads", *map(str, options.threads)] if options.threads else []
    command += ["--seconds", str(options.seconds)] if options.seconds is not None else []
    return command


def _measure_memory(store: Store, names: list[str]) -> None:
    if memory.unavailable():
        return
    able = [name for name in names if PEERS[name].excluded(MEMORY) is None]
    for name in progress(able, "memory", "process"):
        if name not in store.data["memory"]:
            threads = MEMORY.threads
            store.put("memory", name, memory.of(name, threads, environment_for(threads)))
