"""One cell: everybody who can run a case is checked against float64, and those who are right are timed
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Optional, Union

from bench.cases.case import Case
from bench.cases.inputs import Inputs, lengthened, make_inputs
from bench.cases.precision import products
from bench.cases.suites import Suite
from bench.cases.timing import HOST_CLOCK, alternate, cuda_clock
from bench.cases.truth import wrong
from bench.machine import gpu_roofline, recurrence, roofline
from bench.machine.peaks import PeakMeter
from bench.peers import Peer, Prepared

METER = "FMA peak"  # takes turns with the contenders


def measure(
    case: Case,
    peers: Mapping[str, Peer],
    suite: Suite,
    machine: Optional[Union[roofline.Machine, gpu_roofline.Gpu]] = None,
) -> dict:
    """The cell as it goes into the JSON file (see `bench.report.store`)."""
    with products(case.tf32):
        results, right = _check_all(case, peers, suite.checked_steps)
        cell = {"case": case.to_dict(), "flops": case.flops, "results": results}
        if right:
            cell |= _time(case, results, right, suite, machine)
        if machine and recurrence.applies(case):
            seconds, peak = recurrence.measure(case, suite.budget.seconds)
            flops = recurrence.flops(case)
            cell["recurrence"] = {"seconds": seconds, "fraction_of_peak": flops / seconds / peak}
    return cell


def _check_all(
    case: Case, peers: Mapping[str, Peer], checked_steps: Optional[int]
) -> tuple[dict[str, dict], dict[str, Prepared]]:
    """The start of each contender's result, and those who are right, prepared for all steps."""
    checked = replace(case, steps=min(case.steps, checked_steps or case.steps))
    few = inputs = make_inputs(checked)
    if checked != case:
        inputs = lengthened(few, case)
    results: dict[str, dict] = {}
    right: dict[str, Prepared] = {}
    for name, peer in peers.items():
        results[name], prepared = check(checked, peer, few)
        if prepared is not None and checked != case:
            try:
                prepared = peer.prepare(case, inputs)
                prepared.complete()
            except Exception as error:
                results[name], prepared = _failed(error), None
        if prepared is not None:
            right[name] = prepared
    return results, right


def _time(
    case: Case,
    results: dict[str, dict],
    right: Mapping[str, Prepared],
    suite: Suite,
    machine: Optional[Union[roofline.Machine, gpu_roofline.Gpu]],
) -> dict:
    """Adds the times to the results; what the cell says of its bound."""
    calls = {name: prepared.call for name, prepared in right.items()}
    bound: Optional[roofline.Bound] = None
    if isinstance(machine, roofline.Machine):
        meter = PeakMeter(case.threads, case.dtype)
        timed = alternate({**calls, METER: meter}, suite.budget)
        del timed[METER]
        machine = replace(machine, fma_peak=meter.peak)
        bound = roofline.bound(case, machine)
    else:
        clock = cuda_clock() if suite.device_clock and case.device == "cuda" else HOST_CLOCK
        timed = alternate(calls, suite.budget, wait=lambda name, last: right[name].wait(last), clock=clock)
        if machine is not None:
            bound = machine.bound(case)
    for name, measured in timed.items():
        results[name].update(vars(measured), gflops=case.flops / measured.median / 1e9)
        if bound:
            results[name]["fraction"] = bound.seconds / measured.median
    found: dict = {}
    if bound:
        found = {"bytes": bound.bytes, "bound": bound.name, "bound_seconds": bound.seconds}
    if isinstance(machine, roofline.Machine):
        found["fma_peak"] = machine.fma_peak
    return found


def check(case: Case, peer: Peer, inputs: Inputs) -> tuple[dict, Optional[Prepared]]:
    """The start of a result, and what to time: None unless the contender computes the right thing."""
    excluded = peer.excluded(case)
    if excluded is not None:
        return dict(zip(("status", "reason"), excluded, strict=True)), None
    try:
        prepared = peer.prepare(case, inputs)
        output, gradients = prepared.unpack(prepared.call())
    except Exception as error:  # other people's libraries raise what they like; the others are still measured
        return _failed(error), None
    why = wrong(case, output, gradients)
    if why is not None:
        return {"status": "wrong", "reason": why}, None
    return {"status": "timed", "compile_seconds": prepared.compile_seconds}, prepared


def _failed(error: Exception) -> dict:
    return {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
