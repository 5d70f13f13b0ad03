"""The timer, on contenders whose cost is known because they move the clock themselves."""

from __future__ import annotations

import pytest

from bench.cases import timing


class Clock:
    """A clock that only contenders move. It notes who ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def contender(self, name: str, costs: list[float]):
        turns = iter(costs)

        def call() -> None:
            self.now += next(turns, costs[-1])
            self.log.append(name)

        return call


def test_timer_reports_median_and_quartiles():
    clock = Clock()
    # Two calls of warm-up, then one call a round: 1, 2, 3, 4 and an outlier.
    call = clock.contender("a", [9, 5, 1, 2, 3, 4, 1000])
    budget = timing.Budget(seconds=0, min_rounds=5, max_rounds=5)
    measured = timing.alternate({"a": call}, budget, clock=lambda: clock.now)["a"]
    assert (measured.median, measured.q1, measured.q3) == (3, 2, 4)
    assert (measured.rounds, measured.calls) == (5, 1)


def test_timer_alternates():
    clock = Clock()
    calls = {name: clock.contender(name, [1.0]) for name in "abc"}
    budget = timing.Budget(seconds=0, min_rounds=6, max_rounds=6)
    timing.alternate(calls, budget, clock=lambda: clock.now)
    turns = clock.log[-18:]
    rounds = [turns[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(once) == ["a", "b", "c"] for once in rounds)
    assert len({tuple(once) for once in rounds}) > 1, "the order is never shuffled"


def test_timer_batches_short_calls():
    clock = Clock()
    calls = {"short": clock.contender("short", [1e-6]), "long": clock.contender("long", [1e-2])}
    measured = timing.alternate(calls, timing.Budget(turn=1e-3), clock=lambda: clock.now)
    assert measured["short"].calls == pytest.approx(1000, abs=1)
    assert measured["long"].calls == 1
    assert measured["short"].median == pytest.approx(1e-6)
    assert measured["short"].rounds == measured["long"].rounds


def test_timer_settles_before_it_measures():
    clock = Clock()
    # In every turn the first call is disturbed; with settling it is never the timed one.
    costs = [1e-3, 1e-3] + [5e-3, 1e-3] * 10
    budget = timing.Budget(seconds=0, turn=1e-3, settle=1e-3, min_rounds=5, max_rounds=5)
    measured = timing.alternate({"a": clock.contender("a", costs)}, budget, clock=lambda: clock.now)["a"]
    assert measured.median == pytest.approx(1e-3)


def test_timer_waits_at_the_end_of_a_batch():
    clock = Clock()
    waited = []

    def wait(name: str, result: object) -> None:
        waited.append((name, result))
        clock.now += 10.0  # what a device still had to do

    budget = timing.Budget(seconds=0, turn=0, settle=0, min_rounds=3, max_rounds=3)
    measured = timing.alternate({"a": lambda: "last"}, budget, wait=wait, clock=lambda: clock.now)["a"]
    assert set(waited) >= {("a", "last")}
    assert measured.median == 10.0


def test_timer_needs_a_contender():
    with pytest.raises(ValueError, match="at least one"):
        timing.alternate({})


def test_single_calls_are_timed_each_by_itself():
    clock = Clock()
    call = clock.contender("a", [9, 9, 4, 1, 2, 3, 5])
    measured = timing.time_one(call, timing.single_calls(5), clock=lambda: clock.now)
    assert (measured.median, measured.q1, measured.rounds, measured.calls) == (3, 2, 5, 1)
    longer = timing.time_one(clock.contender("a", [1.0]), timing.single_calls(5, 8), clock=lambda: clock.now)
    assert longer.rounds == 8
