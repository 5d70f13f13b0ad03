"""What the machine allows: measured peaks, and the time that a case cannot be faster than.

The bound of a case is the largest of three times:

- arithmetic: its flops over the measured FMA peak;
- traffic: W_hh is read once a step (and once more a step in backward), from the smallest cache level that
  holds it, all threads' caches taken together; every other tensor is read or written once in each pass,
  from the level that holds them all, and what lies between input and output (the hoisted input product)
  never leaves the caches. Bytes over the measured read bandwidth of these levels;
- latency: T times the measured time of a step with almost no work in it (B = H = 1), as each step waits for
  the one before.

It is a bound on the sequence as a whole, input product included. The price of a Python call is not part of
it, so the fraction reached is low where T is 1. A cell's FMA peak is that of its dtype: the multiply-adds
that the kernels use for it, which for bfloat16 may be pairs at twice the rate. A peer with other hardware
(AMX) can exceed it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bench.cases.case import Case
from bench.machine import recurrence
from bench.machine.peaks import cache_sizes
from rnnfast.native import native

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
LEVELS = ("L1", "L2", "L3", "DRAM")


@dataclass(frozen=True)
class Machine:
    """Peaks at one thread count. `capacity` in bytes, over all threads; DRAM has none."""

    threads: int
    fma_peak: float  # flop/s; float32's, or that of a cell's dtype
    bandwidth: dict[str, float]  # byte/s, by level
    capacity: dict[str, int]
    step_latency: float  # seconds

    def level(self, size: float) -> str:
        """The smallest level that holds `size` bytes."""
        return next((name for name in LEVELS[:-1] if size <= self.capacity[name]), "DRAM")

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Bound:
    seconds: float
    name: str  # "arithmetic", "latency" or the level whose bandwidth it is
    bytes: float


def measure(threads: int, seconds: float = 0.3) -> Machine:
    """Takes about ten times `seconds`."""
    capacity = cache_sizes(threads)
    # Half of a level for each private cache; well out of L2 but far from filling a shared L3; beyond it.
    probes = {
        "L1": capacity["L1"] // 2,
        "L2": capacity["L2"] // 2,
        "L3": min(capacity["L3"] // 2, 8 * capacity["L2"]),
        "DRAM": min(2 * capacity["L3"], 1 << 30),
    }
    return Machine(
        threads=threads,
        # The best of three: a core needs a moment of work before it runs at the frequency that it will keep.
        fma_peak=max(native.fma_peak(threads, seconds) for _ in range(3)),
        bandwidth={level: native.read_bandwidth(size, threads, seconds) for level, size in probes.items()},
        capacity=capacity,
        step_latency=_step_latency(seconds),
    )


def traffic(case: Case) -> tuple[float, float, float]:
    """Bytes: of the parameters; of all that a call reads or writes, once a pass; of W_hh at every step."""
    item = BYTES[case.dtype]
    T, H, D = case.steps, case.hidden_size, case.directions
    weights, streams, recurrent = 0.0, 0.0, 0.0
    for layer in range(case.layers):
        width = case.input_size if layer == 0 else H * D
        weights += D * H * (width + H + 2) * item
        per_row = width + H  # x in, h out
        if case.training:
            per_row += width + 2 * H  # x, h and the gradient of h in
            per_row += width if layer > 0 else 0  # the gradient of the layer below out
        streams += D * case.rows * per_row * item
        recurrent += D * T * H * H * item * (2 if case.training else 1)
    return weights, streams + weights * (2 if case.training else 1), recurrent


def bound(case: Case, machine: Machine) -> Bound:
    weights, streams, recurrent = traffic(case)
    w_level = machine.level(case.hidden_size**2 * BYTES[case.dtype])
    s_level = machine.level(weights + streams)
    w_time = recurrent / machine.bandwidth[w_level]
    s_time = streams / machine.bandwidth[s_level]
    # A layer above one of a single direction follows it by a step; above two it waits for both.
    waited = case.steps * case.layers if case.directions == 2 else case.steps + case.layers - 1
    chain = waited * machine.step_latency * (2 if case.training else 1)
    bounds = {
        "arithmetic": case.flops / machine.fma_peak,
        (w_level if w_time >= s_time else s_level): w_time + s_time,
        "latency": chain,
    }
    name = max(bounds, key=lambda key: bounds[key])
    return Bound(bounds[name], name, recurrent + streams)


def _step_latency(seconds: float) -> float:
    steps = 1000
    return recurrence.measure(Case(steps, 1, 1, 1, threads=1), seconds)[0] / steps
