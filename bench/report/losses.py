"""How often `auto` is ahead, and where it is not: for suites of cases that nobody has chosen."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import geometric_mean

from bench.report import table


def behind(cell: dict, peer: str) -> bool:
    """Whether ours took longer than `peer` by more than the spread: interquartile ranges don't overlap."""
    theirs, ours = table.timed(cell, peer), table.timed(cell, table.ours(cell))
    return bool(theirs and ours) and theirs["q3"] < ours["q1"]  # type: ignore[index]


def lost(cell: dict) -> bool:
    """Whether any peer, torch among them, is ahead beyond the spread."""
    return any(table.is_peer(name) and behind(cell, name) for name in cell["results"])


def ordered(cells: dict[str, dict]) -> dict[str, dict]:
    """Cells without a time of ours first, then those that were lost, the worst first, then the others."""

    def place(item: tuple[str, dict]) -> tuple[bool, bool, float]:
        cell = item[1]
        value = table.ratio(cell, table.best_peer(cell))
        timed = table.timed(cell, table.ours(cell)) is not None
        return timed, not lost(cell), float("inf") if value is None else value

    return dict(sorted(cells.items(), key=place))


def shares(cells: dict[str, dict]) -> list[str]:
    """A line for each peer: in how many cells ours is not behind, and the mean of its time over ours."""
    peers = dict.fromkeys(name for cell in cells.values() for name in cell["results"] if table.is_peer(name))
    return [line for peer in peers for line in _share(cells.values(), peer)]


def _share(cells: Iterable[dict], peer: str) -> Iterable[str]:
    pairs = [(cell, table.ratio(cell, peer)) for cell in cells]
    ratios = [(cell, value) for cell, value in pairs if value is not None]
    if not ratios:
        return
    count = len(ratios)
    ahead = sum(value >= 1 for _, value in ratios)
    losses = sum(behind(cell, peer) for cell, _ in ratios)
    means = []
    for mode in ("forward", "training"):
        some = [value for cell, value in ratios if table.mode(cell) == mode]
        means.append(f"{mode} {table.number(geometric_mean(some)) if some else '-'}")
    yield (
        f"{peer}: ours is ahead in {ahead} of {count} cells ({table.percent(ahead / count)}), behind beyond"
        f" the spread in {losses}; {peer}'s time over ours, geometric mean: {', '.join(means)}"
    )
