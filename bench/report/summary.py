"""What a run prints at its end."""

from __future__ import annotations

from bench.cases.suites import MEMORY
from bench.machine import peaks, recurrence
from bench.report import losses, table, targets


def summary(data: dict, cells: dict[str, dict], with_targets: bool, losses_first: bool = False) -> str:
    """Everything a run prints at its end."""
    if losses_first:
        cells = losses.ordered(cells)
    blocks = [table.render(table.HEADER, (table.row(key, cell) for key, cell in cells.items()))]
    blocks += ["\n".join(table.problems(cells)), "\n".join(table.compile_times(cells))]
    blocks += ["\n".join(losses.shares(cells))] if losses_first else []
    blocks += [_peaks(where, machine) for where, machine in data["roofline"].items()]
    if any(cell["case"]["device"] == "cpu" for cell in cells.values()):
        blocks += [str(why) for why in (peaks.unavailable(), recurrence.unavailable()) if why]
    if data["memory"]:
        lines = [
            [name, _mebibytes(found, "live"), _mebibytes(found, "resident")]
            for name, found in data["memory"].items()
        ]
        what = f"peak memory, MiB: {MEMORY.mode} at {MEMORY.shape}"
        blocks.append(table.render((what, "live", "resident"), lines))
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
