"""How exact float32 products on the GPU are: as torch.nn.RNN's, which cuDNN may compute in TF32.

torch has one setting for the products of cuDNN's RNNs (`torch.backends.cudnn.allow_tf32`, on by default) and
one for its own (`torch.backends.cuda.matmul.allow_tf32`, off by default). A drop-in for nn.RNN follows the
first for everything that a layer computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def _read(backend: str, operator: str) -> str:
    settings = torch.backends.cudnn.rnn if operator == "rnn" else torch.backends.cuda.matmul
    return settings.fp32_precision  # type: ignore[attr-defined]


# What the public attributes read, in 0.2 us rather than 3; asked four times in a training call.
_precision = getattr(torch._C, "_get_fp32_precision_getter", _read)
_NOTHING = nullcontext()


def tf32() -> bool:
    """Whether torch.nn.RNN on CUDA may round the operands of float32 products to TF32 (10 bits)."""
    return _precision("cuda", "rnn") == "tf32"


def products_as_cudnn(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Within, torch's matrix products of `dtype` on CUDA follow cuDNN's setting, which is the process's."""
    if dtype is not torch.float32:
        return _NOTHING
    before, wanted = _precision("cuda", "matmul"), "tf32" if tf32() else "ieee"
    if before == wanted or (before == "none" and wanted == "ieee"):
        return _NOTHING
    return _multiplying(wanted, before)


@contextmanager
def _multiplying(wanted: str, before: str) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = wanted
    try:
        yield
    finally:
        matmul.fp32_precision = before
