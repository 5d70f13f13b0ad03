"""What a GPU allows: measured peaks, and the time that a case cannot be faster than. As `roofline`,
which is about CPUs.

The bound of a case is the largest of three times:

- arithmetic: its flops over the measured rate of large products of its kind;
- memory: every tensor is read or written once in each pass, bytes over the measured rate of copies; W_hh
  once a pass, as it may stay in the device;
- latency: T times the shortest step, as each waits for the one before. Where one multiprocessor's registers
  and shared memory can hold W_hh that is a measured step with almost no work in it (B = 1, H = 16), by the
  fastest of our kernels; a larger W_hh is spread over several, and then it is the fastest way, measured by
  `gpu_latency`, for two of them to exchange data, if that is longer.

The price of a Python call is not part of it. On CUDA devices calls may overlap, so a bound is one on
throughput.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Optional

import torch

from bench.cases.case import Case
from bench.cases.precision import KINDS
from bench.cases.timing import Call, seconds_on_gpu
from bench.machine import gpu_latency
from bench.machine.gpu_peaks import peaks
from bench.machine.roofline import BYTES, Bound, traffic
from rnnfast import dispatch
from rnnfast.functional import rnn_sequence


@dataclass(frozen=True)
class Gpu:
    """Peaks of one device."""

    products: dict[str, float]  # flop/s, by kind (`cases.precision`)
    bandwidth: float  # byte/s of copies, read and written together
    step_latency: float  # seconds of a step within a multiprocessor; 0 where no kernel of ours could be timed
    exchange: Optional[float]  # seconds for two multiprocessors; None without nvcc to build the measurement
    multiprocessor: int  # bytes of registers and shared memory of one

    def to_dict(self) -> dict:
        return asdict(self)

    def bound(self, case: Case) -> Bound:
        _, streams, _ = traffic(case)
        step = self.step_latency
        if case.hidden_size**2 * BYTES[case.dtype] > self.multiprocessor:
            step = max(step, self.exchange or 0.0)
        passes = 2 if case.training else 1
        bounds = {
            "arithmetic": case.flops / self.products["tf32" if case.tf32 else case.dtype],
            "memory": streams / self.bandwidth,
            "latency": case.steps * case.layers * passes * step,
        }
        name = max(bounds, key=lambda key: bounds[key])
        return Bound(bounds[name], name, streams)


def measure() -> Gpu:
    """Takes some twenty seconds, most of them nvcc's."""
    found: dict[str, dict] = {}
    peaks(found.__setitem__)
    properties = torch.cuda.get_device_properties()
    registers = 4 * properties.regs_per_multiprocessor
    return Gpu(
        {kind: found[kind]["TFLOP/s"] * 1e12 for kind in KINDS},
        found["copy"]["GB/s"] * 1e9,
        min(
            (step_latency(name) for name in ("cuda", "triton") if dispatch.unavailable(name) is None),
            default=0,
        ),
        exchange(),
        registers + properties.shared_memory_per_multiprocessor,
    )


def step_latency(
    backend: str, device: str = "cuda", timer: Callable[[Call], float] = seconds_on_gpu, steps: int = 4096
) -> float:
    """Seconds: what half of the steps of a small layer take, divided by their number."""
    with torch.no_grad():
        tensors = [
            torch.randn(shape, device=device) / 4 for shape in ((1, 16), (16, 16), (16, 16), (16,), (16,))
        ]

        def seconds(length: int) -> float:
            x = torch.randn(length, 1, 16, device=device)
            call = lambda: rnn_sequence(x, *tensors, backend=backend)  # noqa: E731
            call()
            return timer(call)

        return (seconds(steps) - seconds(steps // 2)) / (steps - steps // 2)


def exchange() -> Optional[float]:
    try:
        figures = gpu_latency.run()["latency"]
    except RuntimeError:
        return None
    ways = [
        f["ns"]
        for name, f in figures.items()
        if name.startswith(("exchange", "grid barrier")) and f and "ns" in f
    ]
    return min(ways) * 1e-9 if ways else None
