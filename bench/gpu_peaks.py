"""For `bench.gpu`: what the device does at most, copies in its memory and products of large matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.gpu_check import KINDS, Put, products
from bench.gpu_graphs import elapsed
from rnnfast.backends.precision import products_as_cudnn


def peaks(
    put: Put,
    device: str = "cuda",
    copied: int = 1 << 30,
    side: int = 8192,
    clock: Callable[[Callable[[], object]], float] = elapsed,
) -> None:
    """GB/s, read and written together, of a copy of `copied` bytes; TFLOP/s of `side`^3 products of random
    numbers, by kind: on zeros some devices are faster."""
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = clock(lambda: target.copy_(source))
    put("copy", {"status": "timed", "GB/s": 2 * copied / seconds / 1e9})
    for kind, (dtype, tf32) in KINDS.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with products(tf32), products_as_cudnn(dtype):
            seconds = clock(lambda a=a, b=b: a @ b)
        put(kind, {"status": "timed", "TFLOP/s": 2 * side**3 / seconds / 1e12})
