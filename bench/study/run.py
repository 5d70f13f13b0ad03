"""Climbs the ladder: builds each rung, checks it, then times all that are right, in turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import torch

from bench.cases.timing import Budget, alternate
from bench.machine.environment import describe
from bench.study.build import Unavailable
from bench.study.machine import Machine
from bench.study.problem import Shape, Solve, make, wrong
from bench.study.rung import Rung

ROUNDS = 5  # of quantities and times, in turns


def climb(rungs: tuple[Rung, ...], seconds: float, timed: bool = True) -> dict:
    """JSON-ready: the environment, the machine's quantities, and for every rung its state ("right", "wrong"
    or "unavailable"), the reason, and times and predictions by shape in us a step.
    """
    with one_thread():
        solves: dict[str, Solve] = {}
        found: dict[str, dict] = {}
        for rung in rungs:
            state, why, solve = examine(rung)
            found[rung.label] = {
                "file": rung.file,
                "idea": rung.idea,
                "state": state,
                "why": why,
                "times": {},
            }
            print(f"rung {rung.label}: {state}{'' if why is None else f': {why}'}", file=sys.stderr)
            if state == "right" and solve is not None and timed:
                solves[rung.label] = solve
        runners = {rung.label: rung for rung in rungs if rung.label in solves}
        for rung in list(runners.values()):
            why = rung.untimed()
            if why is not None:
                found[rung.label]["why"] = why
                del runners[rung.label]
        rounds = [one_round(runners, solves, seconds / ROUNDS) for _ in range(ROUNDS)] if runners else []
        for label, rung in runners.items():
            for shape in rung.shapes:
                found[label]["times"][str(shape)] = median([times[label, shape] for _, times in rounds])
    return {"environment": describe(), "machine": median([m for m, _ in rounds]), "rungs": found}


def one_round(runners: dict[str, Rung], solves: dict[str, Solve], seconds: float) -> tuple[dict, dict]:
    """The machine's quantities, and right after them the times that they explain: its speed drifts."""
    machine, times = Machine(), {}
    for shape in sorted({shape for rung in runners.values() for shape in rung.shapes}):
        terms = {n: rung.predict(machine, shape) for n, rung in runners.items() if shape in rung.shapes}
        for label, time in measure(runners, solves, shape, seconds).items():
            times[label, shape] = {**time, "terms": terms[label]}
    return machine.measured, times


def median(rounds: list[dict]) -> dict:
    """The median of every number of dictionaries that are built alike."""
    if not rounds:
        return {}
    return {
        key: median([r[key] for r in rounds])
        if isinstance(value, dict)
        else statistics.median(r[key] for r in rounds)
        for key, value in rounds[0].items()
    }


def examine(rung: Rung) -> tuple[str, Optional[str], Optional[Solve]]:
    """Whether a rung is right, the reason if it isn't, and what solves a problem by it."""
    try:
        solve = rung.load()
    except Unavailable as error:
        return "unavailable", str(error), None
    try:
        problem = wrong(solve, rung.backward, rung.checked)
    except Exception as error:  # no fault of one rung may stop another
        return "wrong", f"{type(error).__name__}: {error}", None
    return ("right", None, solve) if problem is None else ("wrong", problem, None)


def measure(
    rungs: dict[str, Rung], solves: dict[str, Solve], shape: Shape, seconds: float
) -> dict[str, dict]:
    """Median and quartiles, us a step."""
    problem = make(shape)
    calls = {
        label: (lambda solve=solves[label]: solve(problem))
        for label, rung in rungs.items()
        if shape in rung.shapes
    }
    if not calls:
        return {}
    scale = 1e6 / shape.steps
    return {
        label: {"us": m.median * scale, "q1": m.q1 * scale, "q3": m.q3 * scale}
        for label, m in alternate(calls, Budget(seconds=seconds)).items()
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one thread, as all rungs but those about threads do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
