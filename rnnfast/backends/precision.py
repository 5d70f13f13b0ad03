"""How exact float32 products on the GPU are: as torch.nn.RNN's, which cuDNN may compute in TF32.

torch has one setting for the products of cuDNN's RNNs (`torch.backends.cudnn.allow_tf32`, on by default) and
one for its own (`torch.backends.cuda.matmul.allow_tf32`, off by default). A drop-in for nn.RNN follows the
first for everything that a layer computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def tf32() -> bool:
    """Whether torch.nn.RNN on CUDA may round the operands of float32 products to TF32 (10 bits)."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]


@contextmanager
def products_as_cudnn(dtype: torch.dtype) -> Iterator[None]:
    """Within, torch's matrix products of `dtype` on CUDA follow cuDNN's setting, which is the process's."""
    if dtype is not torch.float32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, wanted = matmul.fp32_precision, "tf32" if tf32() else "ieee"
    if before == wanted or (before == "none" and wanted == "ieee"):
        yield
        return
    matmul.fp32_precision = wanted
    try:
        yield
    finally:
        matmul.fp32_precision = before
