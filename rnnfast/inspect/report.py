"""What is known of one kernel, and what a provider of kernels has to offer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Optional, Protocol

from ..call import extras

DTYPES = ("fp32", "bf16", "fp16", "fp64")


@dataclass(frozen=True)
class Options:
    """What a kernel is specialised for. A provider raises ValueError for what it does not have."""

    arch: int = 90  # NVIDIA's compute capability, times ten
    dtype: str = "bf16"  # one of DTYPES
    hidden: int = 128
    nonlinearity: str = "tanh"
    packed: bool = False
    tf32: bool = True  # whether float32 products may be rounded to TF32
    cell: str = "elman"
    resets: bool = False  # whether some steps start from zero


@dataclass
class Report:
    kernel: str
    target: str  # "sm_90", "avx2", ...
    facts: dict[str, str]  # in the order in which they are printed
    loop: Counter[str] = field(default_factory=Counter)  # instructions of the main loop, by class
    loop_is: str = "one step"  # what one round of the main loop does
    floor: Optional[str] = None  # the latency floor of a step, with how it comes about
    spilled: int = 0  # bytes of local memory or stack a thread
    listings: dict[str, str] = field(default_factory=dict)  # by what --dump calls them

    def __str__(self) -> str:
        lines = [f"{self.kernel} for {self.target}"]
        lines += [f"  {name:<16} {value}" for name, value in self.facts.items()]
        if self.loop:
            lines.append(f"  main loop ({self.loop_is}), instructions of a warp or thread:")
            lines += [f"    {count:>5}  {name}" for name, count in self.loop.most_common()]
        if self.floor:
            lines.append(f"  latency floor of a step: {self.floor}")
        return "\n".join(lines)


class Provider(Protocol):
    def unavailable(self) -> Optional[str]:
        """Why the kernels of this family can't be inspected here, or None."""

    def kernels(self) -> dict[str, str]:
        """One line about each kernel, by its name without the family's."""

    def inspect(self, name: str, options: Options) -> Report:
        """Raises ValueError for options that the kernel is not made for."""


def require_plain(kernel: str, options: Options) -> None:
    """Raises ValueError unless the options are those of an RNN of torch's."""
    found = extras(options.nonlinearity, options.cell, False, options.resets)
    if found:
        raise ValueError(f"{kernel} is not compiled with {found}")
