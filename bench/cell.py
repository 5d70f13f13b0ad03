"""One cell: everybody who can run a case is checked against float64, and those who are right are timed
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Optional, Union

from bench import gpu_roofline, recurrence, roofline
from bench.inputs import Inputs, make_inputs, wrong
from bench.peers.base import Peer, Prepared
from bench.shapes import Case
from bench.timing import Budget, alternate

METER = "FMA peak"  # takes turns with the contenders


def measure(
    case: Case,
    peers: Mapping[str, Peer],
    budget: Budget,
    machine: Optional[Union[roofline.Machine, gpu_roofline.Gpu]] = None,
) -> dict:
    """The cell as it goes into the JSON file (see `bench.store`)."""
    results: dict[str, dict] = {}
    right: dict[str, Prepared] = {}
    inputs = make_inputs(case)
    for name, peer in peers.items():
        results[name], prepared = check(case, peer, inputs)
        if prepared is not None:
            right[name] = prepared

    bound = None
    calls = {name: prepared.call for name, prepared in right.items()}
    if isinstance(machine, roofline.Machine) and calls:
        meter = roofline.PeakMeter(case.threads, case.dtype)
        timed = alternate({**calls, METER: meter}, budget)
        del timed[METER]
        machine = replace(machine, fma_peak=meter.peak)
        bound = roofline.bound(case, machine)
    else:
        timed = alternate(calls, budget, wait=lambda name, last: right[name].wait(last)) if calls else {}
        bound = machine.bound(case) if isinstance(machine, gpu_roofline.Gpu) else None
    for name, measured in timed.items():
        results[name].update(vars(measured), gflops=case.flops / measured.median / 1e9)
        if bound:
            results[name]["fraction"] = bound.seconds / measured.median

    cell = {"case": case.to_dict(), "flops": case.flops, "results": results}
    if bound:
        cell.update(bytes=bound.bytes, bound=bound.name, bound_seconds=bound.seconds)
    if isinstance(machine, roofline.Machine) and bound:
        cell["fma_peak"] = machine.fma_peak
    if machine and recurrence.applies(case):
        seconds, peak = recurrence.measure(case, budget.seconds)
        flops = recurrence.flops(case)
        cell["recurrence"] = {"seconds": seconds, "fraction_of_peak": flops / seconds / peak}
    return cell


def check(case: Case, peer: Peer, inputs: Inputs) -> tuple[dict, Optional[Prepared]]:
    """The start of a result, and what to time: None unless the contender computes the right thing."""
    excluded = peer.excluded(case)
    if excluded is not None:
        return dict(zip(("status", "reason"), excluded, strict=True)), None
    try:
        prepared = peer.prepare(case, inputs)
        output, gradients = prepared.unpack(prepared.call())
    except Exception as error:  # other people's libraries raise what they like; the others are still measured
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}, None
    why = wrong(case, output, gradients)
    if why is not None:
        return {"status": "wrong", "reason": why}, None
    return {"status": "timed", "compile_seconds": prepared.compile_seconds}, prepared
