"""What the cores and caches of this machine do at most, by the probes of the native extension."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Optional

import torch

from rnnfast.native import DTYPES, MISSING, native

# Per core, where the system does not tell: the smallest in common use.
TYPICAL = {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20}


def unavailable() -> Optional[str]:
    """Why the machine's peaks cannot be measured, or None."""
    return None if MISSING is None else f"the roofline needs the probes of the compiled extension: {MISSING}"


class PeakMeter:
    """Measures the FMA peak once a call, as a contender that takes turns with the others (`alternate`):
    what a neighbour on the machine or its clock takes from them is taken from the peak, too.
    """

    def __init__(self, threads: int, dtype: str = "float32") -> None:
        self.threads = threads
        self.dtype = DTYPES.index(getattr(torch, dtype))
        self.rates: list[float] = []

    def __call__(self) -> None:
        self.rates.append(native.fma_peak(self.threads, 1e-3, self.dtype))

    @property
    def peak(self) -> float:
        """The median, flop/s."""
        return statistics.median(self.rates)


def cache_sizes(threads: int) -> dict[str, int]:
    """Bytes of data cache at each level that `threads` threads have between them."""
    sizes = {"L1": TYPICAL["L1"] * threads, "L2": TYPICAL["L2"] * threads, "L3": TYPICAL["L3"]}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        level = "L" + (index / "level").read_text().strip()
        size = int((index / "size").read_text().strip().removesuffix("K")) << 10
        if level in sizes:
            sizes[level] = size if level == "L3" else size * threads
    return sizes
