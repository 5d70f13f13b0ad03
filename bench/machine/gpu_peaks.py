"""What the device does at most, copies in its memory and products of large matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.cases.precision import KINDS, products
from bench.cases.timing import Call, seconds_on_gpu
from rnnfast.backends.precision import products_as_cudnn


def peaks(
    put: Callable[[str, Any], None],
    device: str = "cuda",
    copied: int = 1 << 30,
    side: int = 8192,
    timer: Callable[[Call], float] = seconds_on_gpu,
) -> None:
    """GB/s, read and written together, of a copy of `copied` bytes; TFLOP/s of `side`^3 products of random
    numbers, by kind: on zeros some devices are faster."""
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = timer(lambda: target.copy_(source))
    put("copy", {"status": "timed", "GB/s": 2 * copied / seconds / 1e9})
    for kind, (dtype, tf32) in KINDS.items():
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        with products(tf32), products_as_cudnn(getattr(torch, dtype)):
            seconds = timer(lambda a=a, b=b: a @ b)
        put(kind, {"status": "timed", "TFLOP/s": 2 * side**3 / seconds / 1e12})
