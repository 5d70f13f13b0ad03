"""Cells for tests, with times that are made up."""

from __future__ import annotations

from bench.cases.case import Case

SMALL = Case(5, 2, 3, 4, threads=1)


def timed_cell(case: Case, **times: tuple[float, float, float]) -> dict:
    """Times by contender: first quartile, median, third quartile."""
    results = {
        name.replace("_", "-"): {"status": "timed", "q1": q1, "median": median, "q3": q3}
        for name, (q1, median, q3) in times.items()
    }
    return {"case": case.to_dict(), "results": results}
