"""Measure: `python -m bench.run [--suite core|quick|cpu|gpu] [--peers ...] [--threads ...] [--filter ...]
[--json FILE]`.

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
from tqdm import tqdm

from bench import environment, memory, recurrence, roofline, table, targets
from bench.options import parser
from bench.peers import OURS, PEERS, default_peers
from bench.shapes import Case, select
from bench.store import Store
from bench.worker import environment_for


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    options.json = options.json or f"out/bench-{options.suite}.json"
    cases = select(options.suite, options.threads, options.filter)
    if not cases:
        parser().error(f"no case of suite {options.suite} has all of the words {options.filter!r}")
    device = cases[0].device  # a suite has one
    if device == "cuda" and not torch.cuda.is_available():
        parser().error("the suite gpu needs a CUDA device, and torch sees none")
    options.peers = options.peers or default_peers(device)
    path = Path(options.json)
    try:
        Store.begin(path, environment.describe())
    except ValueError as error:
        parser().error(str(error))

    died = []
    for threads in sorted({case.threads for case in cases}):
        if subprocess.run(_worker(options, threads), env=environment_for(threads)).returncode != 0:
            died.append(threads)
    store = Store.open(path)
    if options.suite in ("core", "cpu") and not options.no_memory:
        _measure_memory(store, options.peers)

    wanted = {case.key for case in cases}
    cells = {key: cell for key, cell in store.data["cells"].items() if key in wanted}
    print(summary(store.data, cells, options.suite == "core"))
    print(f"\nresults: {path}")
    for threads in died:
        print(f"the worker with {threads} thread(s) died: the same command takes up where it stopped")
    broken = [r for cell in cells.values() for n, r in cell["results"].items() if n in OURS]
    return int(bool(died) or any(r["status"] in ("wrong", "failed") for r in broken))


def _worker(options: argparse.Namespace, threads: int) -> list[str]:
    command = [sys.executable, "-m", "bench.worker", "--pool", str(threads), "--json", options.json]
    command += ["--suite", options.suite, "--filter", options.filter, "--peers", *options.peers]
    command += ["--threads", *map(str, options.threads)] if options.threads else []
    command += ["--seconds", str(options.seconds)] if options.seconds is not None else []
    return command


def _measure_memory(store: Store, names: list[str]) -> None:
    if memory.unavailable():
        return
    able = [name for name in names if PEERS[name].excluded(memory.CASE) is None]
    for name in tqdm(able, desc="memory", unit="process", disable=None):
        if name not in store.data["memory"]:
            threads = memory.CASE.threads
            store.put("memory", name, memory.of(name, threads, environment_for(threads)))


def summary(data: dict, cells: dict[str, dict], with_targets: bool) -> str:
    """Everything a run prints at its end."""
    blocks = [table.render(table.HEADER, (table.row(key, cell) for key, cell in cells.items()))]
    blocks += ["\n".join(table.problems(cells)), "\n".join(table.compile_times(cells))]
    blocks += [_peaks(where, machine) for where, machine in data["roofline"].items()]
    if not data["roofline"]:
        blocks.append(str(roofline.unavailable()))
    if "gpu" not in data["roofline"] and recurrence.unavailable():
        blocks.append(str(recurrence.unavailable()))
    if data["memory"]:
        lines = [
            [name, _mebibytes(found, "live"), _mebibytes(found, "resident")]
            for name, found in data["memory"].items()
        ]
        blocks.append(table.render((f"peak memory, MiB: {_plain(memory.CASE)}", "live", "resident"), lines))
    if with_targets:
        blocks.append(table.render(("target", "wanted", "measured", ""), targets.check(data)))
    return "\n\n".join(block for block in blocks if block)


def _peaks(where: str, machine: dict) -> str:
    step = f"a step of nothing {machine['step_latency'] * 1e9:.0f} ns"
    if where == "gpu":
        rates = ", ".join(f"{dtype} {rate / 1e12:.0f}" for dtype, rate in machine["products"].items())
        exchange = machine["exchange"]
        between = "not measured: no nvcc" if exchange is None else f"{exchange * 1e9:.0f} ns"
        return (
            f"measured peaks: copies {machine['bandwidth'] / 1e9:.0f} GB/s; products, TFLOP/s: {rates}; "
            f"{step}; two multiprocessors exchange data: {between}"
        )
    rates = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in machine["bandwidth"].items())
    peak = machine["fma_peak"] / 1e9
    return f"measured peaks, {where} thread(s): {peak:.0f} GF/s FMA; reading, GB/s: {rates}; {step}"


def _mebibytes(found: dict, kind: str) -> str:
    return f"{found[kind] / 2**20:.0f}" if kind in found else "-"


def _plain(case: Case) -> str:
    return f"{case.mode} at {case.shape}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
