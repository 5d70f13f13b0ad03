"""The smallest problem that shows a finding: greedy, one field at a time, each try in a child."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from .child import Report
from .problem import Problem


def smaller(p: Problem) -> Iterator[Problem]:
    """Simpler forms of a problem, the simplest first."""
    for field in dataclasses.fields(p):
        value, default = getattr(p, field.name), field.default
        if field.name in ("seed", "target") or value == default:
            continue
        for simpler in _simpler(value, default):
            changes: dict[str, Any] = {field.name: simpler}
            if field.name == "lengths" and simpler:
                changes.update(batch=len(simpler), steps=simpler[0])
            if field.name in ("steps", "batch") and p.lengths:
                continue
            yield dataclasses.replace(p, **changes)


def _simpler(value: Any, default: Any) -> Iterator[Any]:
    yield default
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        for number in (value // 2, value - 1):
            if number > 1:
                yield number
    elif isinstance(value, tuple) and len(value) > 1:
        for i in range(len(value)):
            yield value[:i] + value[i + 1 :]


def shrink(
    p: Problem, report: Report, judge: Callable[[Problem], Report], seconds: float = 20.0
) -> tuple[Problem, Report]:
    """The smallest form of `p` that `judge` finds the same kind of thing in, and its report."""
    limit = time.monotonic() + seconds
    progress = True
    while progress:
        progress = False
        for candidate in smaller(p):
            if time.monotonic() > limit:
                return p, report
            found = judge(candidate)
            if _alike(found, report):
                p, report, progress = candidate, found, True
                break
    return p, report


def _alike(one: Report, other: Report) -> bool:
    if one.kind != other.kind:
        return False
    # Of two errors, the one is not the smaller form of the other.
    return one.kind not in ("raises", "exception", "accepts") or one.text[:25] == other.text[:25]
