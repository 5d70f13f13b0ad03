"""The kinds of products on a GPU, and how to tell everybody which one a case wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A name, a dtype, and whether products of float32 may be rounded to TF32.
KINDS: dict[str, tuple[str, bool]] = {
    "bfloat16": ("bfloat16", False),
    "float16": ("float16", False),
    "tf32": ("float32", True),
    "float32": ("float32", False),
}


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Within, torch.nn.RNN on CUDA and rnnfast multiply float32 in TF32, or exactly.

    torch's default is TF32 for cuDNN, so that cases of exact float32 need this as well.
    """
    cudnn = torch.backends.cudnn
    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with cudnn.flags(**kept, allow_tf32=tf32):
        yield
