"""What a cell says: who won, by how much, and how near to the bound; cells as rows of text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Optional

OURS, TORCH = "rnnfast", "torch-rnn"


def timed(cell: dict, name: str) -> Optional[dict]:
    """A contender's result, if it has a time."""
    result = cell["results"].get(name)
    return result if result and result["status"] == "timed" else None


def is_peer(name: str) -> bool:
    return not name.startswith(OURS)


def ours(cell: dict) -> str:
    """Which of ours a cell is about: "rnnfast", or the fastest named backend where that took no part."""
    if OURS in cell["results"]:
        return OURS
    names = [name for name in cell["results"] if timed(cell, name) and not is_peer(name)]
    return min(names, key=lambda name: cell["results"][name]["median"], default=OURS)


def best_peer(cell: dict) -> Optional[str]:
    """The fastest contender that is not ours; torch.nn.RNN counts."""
    rivals = [name for name in cell["results"] if is_peer(name) and timed(cell, name)]
    return min(rivals, key=lambda name: cell["results"][name]["median"], default=None)


def ratio(cell: dict, slower: Optional[str], faster: Optional[str] = None) -> Optional[float]:
    """How many times as long `slower` takes as `faster` does, which is ours unless it is named."""
    a, b = timed(cell, slower) if slower else None, timed(cell, faster or ours(cell))
    return a["median"] / b["median"] if a and b else None


def mode(cell: dict) -> str:
    return "training" if cell["case"]["training"] else "forward"


def per_step(cell: dict, name: str) -> Optional[float]:
    """Microseconds per time step."""
    result = timed(cell, name)
    return result["median"] / cell["case"]["steps"] * 1e6 if result else None


def number(value: Optional[float], digits: int = 3, suffix: str = "") -> str:
    """`digits` digits, fewer below one, no exponent; a dash for None."""
    if value is None:
        return "-"
    decimals = 0
    while decimals < digits - 1 and abs(value) * 10**decimals < 10 ** (digits - 1):
        decimals += 1
    return f"{value:.{decimals}f}{suffix}"


def percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


HEADER = (
    "case",
    "mode",
    "us/step",
    "spread",
    "torch",
    "x torch",
    "best peer",
    "x best",
    "GF/s",
    "bound",
    "of it",
)


def row(key: str, cell: dict) -> list[str]:
    name, best = ours(cell), best_peer(cell)
    result = cell["results"].get(name, {"status": "not run"})
    if result["status"] != "timed":
        figures = [result["status"].upper(), "-"]
    else:
        spread = (result["q3"] - result["q1"]) / result["median"]
        figures = [number(per_step(cell, name)), percent(spread)]
    return [
        key.rsplit(" ", 1)[0],
        mode(cell),
        *figures,
        number(per_step(cell, TORCH)),
        number(ratio(cell, TORCH)),
        best or "-",
        number(ratio(cell, best)),
        number(result.get("gflops")),
        cell.get("bound", "-"),
        percent(result.get("fraction")),
    ]


def render(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text; the first is flush left, the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(field.rjust(w) for field, w in zip(line[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for line in lines
    )


def problems(cells: dict[str, dict]) -> list[str]:
    """One line for every wrong or failed result, one for each contender that is not available."""
    lines, missing = [], {}
    for key, cell in cells.items():
        for name, result in cell["results"].items():
            if result["status"] in ("wrong", "failed"):
                lines.append(f"{result['status'].upper()}: {name} at {key}: {result['reason']}")
            elif result["status"] == "unavailable":
                missing[name] = result["reason"]
    return lines + [f"not available: {name}: {reason}" for name, reason in missing.items()]


def compile_times(cells: dict[str, dict]) -> list[str]:
    """One line for every contender that compiles for a shape: what that costs before the first call."""
    found: dict[str, list[float]] = {}
    for cell in cells.values():
        for name, result in cell["results"].items():
            if result.get("compile_seconds"):
                found.setdefault(name, []).append(result["compile_seconds"])
    return [
        f"compiling, {name}: median {statistics.median(seconds):.2g} s, at most {max(seconds):.2g} s a case"
        for name, seconds in found.items()
    ]
