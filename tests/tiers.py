"""Tiers: how much of the suite runs, as a plugin of pytest.

| `--tier` | command | of every test function |
|---|---|---|
| `check` | `make check` | two sets of parameters, as different as there are; none of what is marked `slow` |
| `test` | `make test`, the default | a pairwise cover: any two values of two parameters meet in a test |
| `all` | `make test-all` | all sets of parameters, and what is marked `thorough` |

Marks say what thinning can't know: `slow` for tests of more than a second, which `check` leaves out;
`thorough` for tests that only `all` runs, each with a short twin in `test`; `sample(n)` where n sets of
parameters, evenly spread, are enough for `test`. A test that is asked for by its id always runs. The choice
depends on the parameters alone: it is the same in every process.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import pytest

TIERS = ("check", "test", "all")

Pair = tuple[str, int, str, int]  # a parameter and its value, another one and its value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, default="test", help="how much to run (tests/tiers.py)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a second; not in the tier check")
    config.addinivalue_line("markers", "thorough: only in the tier all; a short twin is in the tier test")
    config.addinivalue_line("markers", "sample(n): the tier test runs n sets of parameters")
    config.addinivalue_line("markers", "threads: works on several threads, so that it runs apart from others")


@pytest.hookimpl(tryfirst=True)  # before -k and -m, so that these choose among what the tier holds
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier = config.getoption("--tier")
    if tier == "all" or any("::" in argument for argument in config.args):
        return
    left_out = {"thorough"} if tier == "test" else {"thorough", "slow"}
    functions: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not any(item.get_closest_marker(mark) for mark in left_out):
            functions[item.nodeid.split("[")[0]].append(item)
    kept: set[pytest.Item] = set()
    for group in functions.values():
        sample = group[0].get_closest_marker("sample")
        limit = sample.args[0] if sample else len(group)
        kept.update(group[i] for i in chosen([_values(item) for item in group], tier, limit))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def chosen(sets: list[dict[str, int]], tier: str, limit: int) -> list[int]:
    """Which of a test function's sets of parameters the tier runs, as indices; `limit` of them at most."""
    if tier == "check":
        return _two_apart(sets)[:limit]
    cover = _pairwise(sets)
    return [cover[i * len(cover) // limit] for i in range(limit)] if len(cover) > limit else cover


def _values(item: pytest.Item) -> dict[str, int]:
    """By parameter, which of its values the test has: the tests of a function share the objects."""
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else {name: id(value) for name, value in callspec.params.items()}


def _two_apart(sets: list[dict[str, int]]) -> list[int]:
    """The first, and the last of those that differ from it in most parameters."""
    if len(sets) < 3:
        return list(range(len(sets)))
    differences = [sum(sets[0][name] != value for name, value in one.items()) for one in sets]
    return [0, max(range(len(sets)), key=lambda i: (differences[i], i))]


def _pairwise(sets: list[dict[str, int]]) -> list[int]:
    """Greedy: the set that adds most pairs which were not met yet, until every pair that occurs was met."""
    if not sets or len(sets[0]) < 2:
        return list(range(len(sets)))  # a single list of values has nothing to thin
    pairs = [_pairs(one) for one in sets]
    missing: set[Pair] = set().union(*pairs)
    picked = []
    while missing:
        best = max(range(len(sets)), key=lambda i: (len(pairs[i] & missing), -i))
        picked.append(best)
        missing -= pairs[best]
    return sorted(picked)


def _pairs(one: dict[str, int]) -> set[Pair]:
    return {(a, x, b, y) for (a, x), (b, y) in combinations(sorted(one.items()), 2)}
