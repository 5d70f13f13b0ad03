"""The one timer: all contenders of a cell take turns in one process.

What doesn't go through it measures something that can't be repeated or that the host doesn't see: the first
call of a compiler (`compile_seconds`), training (`bench.lm` and `bench.neuro`, where a step changes the
weights), the probes of the native extension and of gpu_latency.cu, which time loops of their own, and
torch's profiler.

A round gives every contender one turn, in an order shuffled anew. A turn is a few untimed calls, in which
the caches fill and the thread pool of whoever ran before goes to sleep, and then one timed batch: as many
calls as fill `turn` seconds, so that a call of a microsecond is not measured by a clock that ticks in
tenths of one. A contender's figure is the median over the rounds of the time per call; the quartiles are
its spread. Drift of the machine (frequency, neighbours) hits all contenders of a round alike. The garbage
collector is off.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Wait = Callable[[str, object], object]
Clock = Callable[[], float]
HOST_CLOCK: Clock = time.perf_counter


@dataclass(frozen=True)
class Measurement:
    """Seconds per call: median and quartiles over `rounds` turns of `calls` calls each."""

    median: float
    q1: float
    q3: float
    rounds: int
    calls: int


@dataclass(frozen=True)
class Budget:
    """How long to measure. `seconds` is per contender; the bounds on rounds win over it."""

    seconds: float = 0.3
    turn: float = 5e-3
    settle: float = 2e-3
    min_rounds: int = 5
    max_rounds: int = 60


def alternate(
    contenders: Mapping[str, Call],
    budget: Budget = Budget(),
    *,
    wait: Wait = lambda name, result: None,
    clock: Clock = HOST_CLOCK,
) -> dict[str, Measurement]:
    """Time the contenders against each other.

    `wait` is told who ran and what the last call of a batch returned, and waits until an asynchronous device
    has done it all.

    Raises whatever a contender raises, and ValueError when there is nobody to time.
    """
    if not contenders:
        raise ValueError("alternate() needs at least one contender")
    with _no_garbage_collection():
        cost = {name: _warm_up(name, call, budget, wait, clock) for name, call in contenders.items()}
        calls = {name: max(1, math.ceil(budget.turn / cost[name])) for name in contenders}
        settling = {name: _settling_calls(cost[name], budget) for name in contenders}
        per_round = sum(cost[name] * (calls[name] + settling[name]) for name in contenders)
        wanted = int(budget.seconds * len(contenders) / per_round)
        rounds = min(max(wanted, budget.min_rounds), budget.max_rounds)

        order = list(contenders)
        shuffle = random.Random(0).shuffle
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                _batch(name, contenders[name], settling[name], wait, clock)
                elapsed = _batch(name, contenders[name], calls[name], wait, clock)
                samples[name].append(elapsed / calls[name])
    return {name: _summary(samples[name], calls[name]) for name in contenders}


def single_calls(rounds: int, seconds: float = 0.0) -> Budget:
    """A budget of `rounds` timed calls by themselves, or more to fill `seconds`: for what is long enough."""
    return Budget(seconds, turn=0.0, settle=0.0, min_rounds=rounds, max_rounds=max(rounds, 10**6))


def time_one(call: Call, budget: Budget, clock: Clock = HOST_CLOCK) -> Measurement:
    """The same for one contender; `clock` has to wait for what the call has started."""
    return alternate({"": call}, budget, clock=clock)[""]


def cuda_clock() -> Clock:
    """A clock by CUDA events: the seconds that the current stream has worked since the clock was made."""
    start = torch.cuda.Event(enable_timing=True)
    start.record()

    def now() -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return start.elapsed_time(event) / 1e3

    return now


def seconds_on_gpu(call: Call) -> float:
    """The median of 20 calls, each by itself, by CUDA events."""
    return time_one(call, single_calls(20), cuda_clock()).median


def _batch(name: str, call: Call, times: int, wait: Wait, clock: Clock) -> float:
    result: object = None
    start = clock()
    for _ in range(times):
        result = call()
    wait(name, result)
    return clock() - start


def _warm_up(name: str, call: Call, budget: Budget, wait: Wait, clock: Clock) -> float:
    """Seconds that one call takes, the best of a few after the first."""
    _batch(name, call, 1, wait, clock)
    best, spent = math.inf, 0.0
    while best == math.inf or (spent < budget.turn and spent < budget.seconds):
        elapsed = _batch(name, call, 1, wait, clock)
        best, spent = min(best, elapsed), spent + elapsed
    return max(best, 1e-9)


def _settling_calls(cost: float, budget: Budget) -> int:
    # A call that lasts much longer than the disturbance does not notice it.
    return 0 if cost > 10 * budget.settle else math.ceil(budget.settle / cost)


def _summary(samples: list[float], calls: int) -> Measurement:
    if len(samples) == 1:
        q1 = q3 = samples[0]
    else:
        q1, _, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Measurement(statistics.median(samples), q1, q3, len(samples), calls)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
