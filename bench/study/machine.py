"""The quantities of this machine that predictions are made from, each measured once, when it is asked for.

probe.cpp times loops of its own; calls and products of torch's go through the bench's timer.
"""

from __future__ import annotations

import ctypes
import math
import statistics
from collections.abc import Callable
from functools import lru_cache

import torch

from bench.cases.timing import Budget, time_one
from bench.study.build import FOLDER, load

REPEATS = 7  # a quantity is the median of so many runs
BUDGET = Budget(seconds=0.02, turn=2e-3, settle=1e-3, min_rounds=5, max_rounds=20)


class Machine:
    """`measured` has every quantity that was asked for: its name and unit, and its value."""

    def __init__(self) -> None:
        self.measured: dict[str, float] = {}

    def _once(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self.measured:
            self.measured[name] = measure()
        return self.measured[name]

    def call(self) -> float:
        """us: a call of an operator of torch's that computes next to nothing, the mean of addmm and tanh."""
        one, matrix = torch.ones(1, 1), torch.ones(1, 1)

        def calls() -> None:
            torch.tanh(torch.addmm(one, one, matrix))

        return self._once("a call of an operator of torch's, us", lambda: _micro(calls) / 2)

    def native_call(self) -> float:
        """us: a call of a C function with ten arguments by ctypes."""
        function = _probe().lanes
        return self._once("a call by ctypes, us", lambda: _micro(lambda: function(*[0] * 8)))

    def product(self, rows: int, n: int) -> float:
        """us: torch's product of [rows, n + 64] with a square matrix, scaled from n + 64 to n."""
        a, w, add = torch.ones(rows, n + 64), torch.ones(n + 64, n + 64), torch.ones(rows, n + 64)
        name = f"torch's product of {rows} rows with [{n + 64}, {n + 64}], us"
        taken = self._once(name, lambda: _micro(lambda: torch.addmm(add, a, w.t())))
        return max(0.0, taken - self.call()) * (n / (n + 64)) ** 2

    def torch_tanh(self) -> float:
        """ns a value of torch.tanh, its call apart."""
        x = torch.randn(1 << 14)
        return self._once(
            "torch's tanh, ns a value", lambda: 1e3 * (_micro(lambda: torch.tanh(x)) - self.call()) / len(x)
        )

    def multiply_adds(self) -> float:
        """Multiply-adds a ns, one thread."""
        return self._once(
            "multiply-adds a ns", lambda: 8 * _probe().lanes() / _nano("multiply_adds", 100_000)
        )

    def read(self, size: float) -> float:
        """Bytes a ns that one thread reads of `size` bytes again and again."""
        block = 8 * _probe().lanes()
        n = max(1, round(size / 4 / block)) * block
        buffer = torch.ones(n)
        rounds = max(2, (1 << 20) // n)
        return self._once(
            f"bytes a ns, of {n >> 8} KB", lambda: 4 * n / _nano("read", _at(buffer), n, rounds)
        )

    def update(self) -> float:
        """Multiply-adds a ns of a loop whose sums are in memory."""
        x, y, n = torch.ones(256), torch.zeros(256), 256
        name = "multiply-adds a ns, sums in memory"
        return self._once(name, lambda: n / _nano("update", _at(x), _at(y), n, 2000))

    def scalar_tanh(self) -> float:
        """ns a value of the C library's tanhf."""
        n = 1 << 15  # more values than a branch predictor remembers
        x, y = torch.randn(n), torch.zeros(n)
        return self._once("tanhf, ns a value", lambda: _nano("scalar_tanh", _at(x), _at(y), n, 2) / n)

    def vector_tanh(self) -> float:
        """ns a value of rung 5's tanh."""
        x, y, n = torch.randn(1024), torch.zeros(1024), 1024
        return self._once(
            "a vector tanh, ns a value", lambda: _nano("vector_tanh", _at(x), _at(y), n, 200) / n
        )

    def outer(self, rows: int, n: int) -> float:
        """us: torch's sum of [n + 64, rows] by [rows, n + 64] into a matrix, scaled from n + 64 to n."""
        g, to = torch.ones(rows, n + 64), torch.zeros(n + 64, n + 64)
        name = f"torch's [{n + 64}, {n + 64}] += product of {rows} rows, us"
        taken = self._once(name, lambda: _micro(lambda: to.addmm_(g.t(), g)))
        return max(0.0, taken - self.call()) * (n / (n + 64)) ** 2

    def pack(self, n: int) -> float:
        """us to transpose [n, n] into memory of its own."""
        w, rounds = torch.ones(n, n), max(2, 200_000 // n**2)
        return self._once(f"packing [{n}, {n}], us", lambda: _nano("pack", _at(w), n, rounds) / 1e3)

    def fresh(self, size: int) -> float:
        """us by which writing a new tensor of `size` bytes takes longer than writing an old one."""
        n = size // 4
        old = torch.ones(n)
        return self._once(
            f"first touch of {size >> 10} KB, us",
            lambda: max(0.0, _micro(lambda: torch.empty(n).fill_(1.0)) - _micro(lambda: old.fill_(1.0))),
        )

    def barrier(self) -> float:
        """ns that two threads take to meet."""
        return self._once("two threads meet, ns", lambda: _nano("barrier", 10_000))

    def thread_start(self) -> float:
        """us to start a thread and wait for its end."""
        return self._once("starting a thread, us", lambda: _nano("thread_start", 50) / 1e3)


def _micro(call: Callable[[], object]) -> float:
    return time_one(call, BUDGET).median * 1e6


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _nano(function: str, *arguments: object) -> float:
    """ns a round; the last argument is the number of rounds."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    call = getattr(_probe(), function)
    call.restype = ctypes.c_double
    rounds = arguments[-1]
    assert isinstance(rounds, int)
    taken = statistics.median(call(*converted) for _ in range(REPEATS))
    return max(1e9 * taken / rounds, math.ulp(1.0))


@lru_cache(maxsize=1)
def _probe() -> ctypes.CDLL:
    return load(FOLDER / "probe.cpp")
