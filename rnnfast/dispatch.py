"""Which backend solves a problem.

`choose(problem)` is the rule behind backend="auto", a pure function: the first backend of `PREFERENCE`
that is available, does not refuse the problem, and is not known to be slower there (`SLOWER`); those of
`FASTER` must even be known to be faster. A backend that is named either solves the problem or the call
raises, with the reason.

The environment variable RNNFAST_BACKEND, read when rnnfast is imported, names the backend that "auto"
stands for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import are_deterministic_algorithms_enabled

from . import crossovers
from .backends.aten import AtenBackend
from .backends.base import Backend, Problem
from .backends.cpu import CpuBackend
from .backends.cuda import CudaBackend
from .backends.eager import EagerBackend
from .backends.precision import tf32
from .backends.triton import TritonBackend
from .call import CPU, Call
from .native import native

UNBOUNDED = 2**63


@dataclass(frozen=True)
class Region:
    """A box of problems; every range is half open: low <= size < high."""

    kind: str
    grad: Optional[bool] = None  # None: both
    dtypes: Optional[frozenset[str]] = None  # None: all
    input_size: tuple[int, int] = (0, UNBOUNDED)
    hidden_size: tuple[int, int] = (0, UNBOUNDED)
    batch: tuple[int, int] = (0, UNBOUNDED)
    steps: tuple[int, int] = (0, UNBOUNDED)

    def __contains__(self, problem: Problem) -> bool:
        return (
            problem.kind == self.kind
            and self.grad in (None, problem.grad)
            and (self.dtypes is None or problem.dtype in self.dtypes)
            and all(
                low <= size < high
                for (low, high), size in (
                    (self.input_size, problem.input_size),
                    (self.hidden_size, problem.hidden_size),
                    (self.batch, problem.batch),
                    (self.steps, problem.steps),
                )
            )
        )


PREFERENCE = ("cuda", "triton", "cpu", "aten", "eager")

# Backends that "auto" takes only where they were measured to be ahead of those after them in PREFERENCE, and
# on the devices that are like the one it was measured on (`Backend.measured`).
FASTER: dict[str, tuple[Region, ...]] = {
    "cuda": tuple(
        Region(
            kind,
            grad,
            frozenset({dtype}),
            hidden_size=(least, largest + 1),
            batch=(0, batch + 1),
            steps=(steps, UNBOUNDED),
        )
        for kind, grad, dtype, least, largest, batch, steps in crossovers.CUDA
    ),
    "triton": (),
}

# Measured crossovers: where a backend loses to the next one in PREFERENCE by more than 3%, torch 2.13, two
# threads. To measure them anew: `python -m bench run --suite cpu --peers rnnfast-cpu rnnfast-aten`.
_REAL = frozenset({"float32", "float64"})
_HALF = frozenset({"bfloat16"})
# Where there is AMX (Intel Sapphire Rapids), float32 products of torch's own are fast, too.
_SLOWER_CPU_BESIDE_AMX = (
    # A training step, or a sequence of one, whose products are large enough to count: 0.8 to 0.91 of torch's
    # speed. Smaller ones run at 1.1 to 2 times.
    Region("step", True, hidden_size=(192, UNBOUNDED), batch=(32, UNBOUNDED)),
    Region("sequence", True, hidden_size=(192, UNBOUNDED), batch=(32, UNBOUNDED), steps=(0, 2)),
    # A few steps of a large layer read the weights more often than torch's hoisted product does: from 0.70.
    Region("sequence", False, _REAL, hidden_size=(384, UNBOUNDED), batch=(0, 4), steps=(2, 16)),
    Region("sequence", None, _REAL, hidden_size=(768, UNBOUNDED), batch=(64, UNBOUNDED), steps=(0, 5)),
    # torch multiplies bfloat16 on the matrix unit, and the cpu kernels do not: from 0.18.
    Region("sequence", dtypes=_HALF, hidden_size=(384, UNBOUNDED), batch=(16, UNBOUNDED)),
    Region("sequence", dtypes=_HALF, hidden_size=(384, UNBOUNDED), batch=(4, 16), steps=(0, 16)),
    Region("sequence", dtypes=_HALF, hidden_size=(96, UNBOUNDED), batch=(64, UNBOUNDED), steps=(0, 5)),
    Region("step", dtypes=_HALF, hidden_size=(384, UNBOUNDED), batch=(4, UNBOUNDED)),
    Region("step", dtypes=_HALF, hidden_size=(96, UNBOUNDED), batch=(64, UNBOUNDED)),
)
# AVX2 (AMD Zen 3). With AVX-512 but no AMX (AMD Zen 4) there is no such region.
_SLOWER_CPU_ON_AVX2 = (
    Region("step", True, _REAL, hidden_size=(768, UNBOUNDED), batch=(128, UNBOUNDED)),
    Region("sequence", True, _REAL, hidden_size=(768, UNBOUNDED), batch=(128, UNBOUNDED), steps=(0, 2)),
)


def _slower_cpu() -> tuple[Region, ...]:
    # A private name of torch: without it, the hardware is not there.
    if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return _SLOWER_CPU_BESIDE_AMX
    return _SLOWER_CPU_ON_AVX2 if native is not None and native.instruction_set() == "avx2" else ()


SLOWER: dict[str, tuple[Region, ...]] = {"cpu": _slower_cpu()}

AUTO = os.environ.get("RNNFAST_BACKEND", "auto")

_registry: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Adds a backend, or replaces the one of the same name."""
    _registry[backend.name] = backend
    _find.cache_clear()


@contextmanager
def replaced(*backends: Backend, slower: Optional[dict[str, tuple[Region, ...]]] = None) -> Iterator[None]:
    """Within, these backends are known, in place of those of their names, and `slower` is `SLOWER`."""
    registry, regions = dict(_registry), dict(SLOWER)
    try:
        for backend in backends:
            register(backend)
        if slower is not None:
            _put(SLOWER, slower)
        yield
    finally:
        _put(_registry, registry)
        _put(SLOWER, regions)


def _put(table: dict[str, Any], content: dict[str, Any]) -> None:
    """Gives `content` to a table that `_find` has looked at."""
    table.clear()
    table.update(content)
    _find.cache_clear()


def names() -> tuple[str, ...]:
    """The names of all registered backends, whether or not they are available here."""
    return tuple(_registry)


def get(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it is not available on this machine; the message says why.
    """
    if name not in _registry:
        raise ValueError(
            f"Unknown backend '{name}'. Select from {', '.join(map(repr, ('auto', *_registry)))}."
        )
    reason = unavailable(name)
    if reason is not None:
        raise RuntimeError(f"backend '{name}' is not available: {reason}")
    return _registry[name]


def check_name(name: str) -> None:
    """Raises what `get` raises for a backend that can't be used here; accepts "auto"."""
    if not means_auto(name):
        get(AUTO if name == "auto" else name)


def means_auto(name: str) -> bool:
    """Whether `name` leaves the choice to `choose`."""
    return name == "auto" and AUTO == "auto"


def unavailable(name: str) -> Optional[str]:
    """Why backend `name` can't run on this machine at all, or None when it can."""
    return _registry[name].unavailable()


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `Problem` has for a dtype."""
    return str(dtype).removeprefix("torch.")


def why_not(name: str, problem: Problem) -> Optional[str]:
    """Why backend `name` can't solve `problem`, or None when it can."""
    reason = unavailable(name)
    return _registry[name].refuses(problem) if reason is None else f"not available: {reason}"


def slower(name: str, problem: Problem) -> bool:
    """Whether `problem` lies where backend `name` was measured to lose to the next in PREFERENCE.

    That is torch's own, so never where torch has no operator for the problem.

    Never under `torch.use_deterministic_algorithms(True)`: PREFERENCE begins with the backend whose bits
    depend neither on the batch nor on the number of threads.
    """
    if problem.deterministic or problem.extras:
        return False
    return any(problem in region for region in SLOWER.get(name, ()))


def unproven(name: str, problem: Problem) -> bool:
    """Whether "auto" waits for a measurement before it takes backend `name` for `problem`.

    What it would be measured against is torch's own, which doesn't have every problem.
    """
    if name not in FASTER or problem.extras:
        return False
    return not (_registry[name].measured() and any(problem in region for region in FASTER[name]))


def choose(problem: Problem) -> str:
    """The name of the backend that "auto" takes for `problem`."""
    able = [name for name in PREFERENCE if name in _registry and why_not(name, problem) is None]
    if not able:
        raise RuntimeError(f"no backend can solve {problem}")
    return next((name for name in able if not (slower(name, problem) or unproven(name, problem))), able[-1])


def find(backend: str, call: Call, grad: bool) -> Backend:
    """The backend for a call: `backend` itself or, for "auto", the chosen one.

    Raises:
        TypeError: `backend` is no str.
        ValueError: there is no such backend.
        RuntimeError: the backend is not available, or refuses the problem; the message says why.
    """
    problem = call.problem
    device = problem[1]
    rounds = device is not CPU and device.type == "cuda" and tf32()
    try:
        return _find(backend, problem, grad, are_deterministic_algorithms_enabled(), rounds)
    except TypeError:
        if isinstance(backend, str):
            raise
        raise TypeError(f"argument 'backend' must be str, not {type(backend).__name__}") from None


# Keyed on plain values rather than on a Problem: this is on the path of every call, and building the
# dataclass would cost more than the look-up. Bounded, as T and B may vary without end.
@lru_cache(maxsize=4096)
def _find(backend: str, sizes: tuple[Any, ...], grad: bool, deterministic: bool, rounds: bool) -> Backend:
    kind, device, dtype = sizes[:3]
    around: tuple[Any, ...] = (grad, deterministic, rounds)
    problem = Problem(kind, device.type, dtype_name(dtype), *sizes[3:10], *around, *sizes[10:])
    if not isinstance(backend, str):
        raise TypeError
    name = AUTO if backend == "auto" else backend
    if name == "auto":
        return _registry[choose(problem)]
    solver = get(name)
    reason = solver.refuses(problem)
    if reason is not None:
        raise RuntimeError(f"backend '{name}' can't run this problem: {reason}")
    return solver


for _backend in (EagerBackend(), AtenBackend(), CpuBackend(), TritonBackend(), CudaBackend()):
    register(_backend)
