"""The precision of float32 products on the GPU: that of torch.nn.RNN's, which cuDNN may compute in TF32.

torch has one setting for the products of cuDNN's RNNs (`torch.backends.cudnn.allow_tf32`, on by default) and
one for its own (`torch.backends.cuda.matmul.allow_tf32`, off by default). A drop-in for nn.RNN follows the
first for everything that a layer computes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def _read(backend: str, operator: str) -> str:
    settings = torch.backends.cudnn.rnn if operator == "rnn" else torch.backends.cuda.matmul
    return settings.fp32_precision  # type: ignore[attr-defined]


def _write(backend: str, operator: str, precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


# These read and write what the public attributes do, in 0.2 us rather than 3, four times in a training call.
_precision = getattr(torch._C, "_get_fp32_precision_getter", _read)
_set_precision = getattr(torch._C, "_set_fp32_precision_setter", _write)
_NOTHING = nullcontext()


def tf32() -> bool:
    """Whether torch.nn.RNN on CUDA may round the operands of float32 products to TF32 (10 bits)."""
    return _precision("cuda", "rnn") == "tf32"


def unrecorded() -> AbstractContextManager[None]:
    """torch.no_grad() if autograd is recording, else nothing, as in the methods of an autograd Function."""
    return torch.no_grad() if torch.is_grad_enabled() else _NOTHING


def products_as_cudnn(dtype: torch.dtype) -> AbstractContextManager[None]:
    """A context in which torch's products of `dtype` on CUDA follow cuDNN's setting, process-wide."""
    if dtype is not torch.float32:
        return _NOTHING
    before, wanted = _precision("cuda", "matmul"), "tf32" if tf32() else "ieee"
    if before == wanted or (before == "none" and wanted == "ieee"):
        return _NOTHING
    return _Multiplying(wanted, before)


class _Multiplying(AbstractContextManager[None]):
    """The context of `products_as_cudnn`; contextlib's decorator would take 2 us more."""

    def __init__(self, wanted: str, before: str) -> None:
        self._wanted, self._before = wanted, before

    def __enter__(self) -> None:
        _set_precision("cuda", "matmul", self._wanted)

    def __exit__(self, *exception: object) -> None:
        _set_precision("cuda", "matmul", self._before)
