"""Which arguments a kernel may be given, and what becomes of the others.

Every way to a kernel passes one of the checks below: functions, modules and registered operators, and through
the operators every captured graph; plain calls pass the same check in C (csrc/cpu/plain.cpp).

What a forward pass can't take goes to torch's own operator: it takes more than the kernels do (complex
numbers, sparse tensors), and what it rejects it rejects in its own words. A backward pass has no such
counterpart; there the error names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from .backends.base import Needs
from .backends.eager import DTYPES
from .interchange import TorchRNN

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Optional[Tensor], Optional[Tensor]]

_DTYPES = frozenset(getattr(torch, name) for name in DTYPES)


def strided(*arguments: Any) -> bool:
    """Whether no tensor among them is anything but memory and strides.

    That is: sparse, of mkldnn, nested, or torch's zeros without memory. What is no tensor is not looked at.
    """
    if torch.compiler.is_compiling():  # it knows no others, and not the last of these questions
        return True
    for t in arguments:
        if isinstance(t, Tensor) and (t.layout is not torch.strided or t.is_nested or t._is_zerotensor()):
            return False
    return True


def fits_step(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
) -> bool:
    """Whether a kernel may be given these arguments of `rnn_step`."""
    return x.dim() == 2 and _fits(x, h, weight_ih, weight_hh, bias_ih, bias_hh) and x.shape[0] == h.shape[0]


def fits_sequence(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
    packed: bool,
) -> bool:
    """Whether a kernel may be given these arguments of `rnn_sequence`; see `check_packed`, too."""
    return (
        x.dim() == (2 if packed else 3)
        and _fits(x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
        and x.shape[0] > 0
        and (packed or x.shape[1] == h0.shape[0])
    )


def _fits(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Optional[Tensor],
    bias_hh: Optional[Tensor],
) -> bool:
    """One supported dtype, one device, dense or strided, shapes that fit but for the batch."""
    # Flat rather than in loops: this is on the path of every call.
    dtype, device = x.dtype, x.device
    if (
        dtype not in _DTYPES
        or h.dim() != 2
        or h.dtype is not dtype
        or h.device != device
        or weight_ih.dtype is not dtype
        or weight_ih.device != device
        or weight_hh.dtype is not dtype
        or weight_hh.device != device
    ):
        return False
    if not strided(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
        return False
    hidden_size = h.shape[1]
    if weight_ih.shape != (hidden_size, x.shape[-1]) or weight_hh.shape != (hidden_size, hidden_size):
        return False
    if bias_ih is not None and (
        bias_ih.dtype is not dtype or bias_ih.device != device or bias_ih.shape != (hidden_size,)
    ):
        return False
    return bias_hh is None or (
        bias_hh.dtype is dtype and bias_hh.device == device and bias_hh.shape == (hidden_size,)
    )


def left_to_torch(result: Any, backend: str, tensors: Sequence[Optional[Tensor]]) -> Any:
    """What torch's operator has made of arguments that no kernel takes.

    Raises:
        RuntimeError: the caller asked for another backend.
    """
    if backend not in ("auto", "aten"):
        raise RuntimeError(
            f"backend '{backend}' takes dense tensors of one dtype ({', '.join(sorted(DTYPES))}) on one"
            f" device, with shapes that fit; got {', '.join(_described(t) for t in tensors if t is not None)}"
        )
    return result


def check_names(nonlinearity: Any, backend: Any) -> None:
    """Raises torch's own error for an unknown nonlinearity, TypeError for a backend that is no str."""
    if nonlinearity not in ("tanh", "relu"):
        TorchRNN(1, 1, nonlinearity=nonlinearity)
    if not isinstance(backend, str):
        raise TypeError(f"argument 'backend' must be str, not {type(backend).__name__}")


def check_packed(batch_sizes: Tensor, x: Tensor, h0: Tensor) -> None:
    """Raises as `check_batch_sizes` does, and RuntimeError where `x` or `h0` isn't a matrix."""
    for name, tensor in (("input", x), ("h0", h0)):
        if tensor.dim() != 2:
            raise RuntimeError(f"{name} must have 2 dimensions beside batch_sizes, got {tensor.dim()}")
    check_batch_sizes(batch_sizes, x.shape[0], h0.shape[0])


def check_fake_batch_sizes(batch_sizes: Optional[Tensor], x: Tensor) -> None:
    """The part of `check_batch_sizes` that can be told without values; on the meta device `x` is, it may be.

    Raises:
        ValueError: of another dtype, shape or device.
    """
    if batch_sizes is not None and (
        batch_sizes.dtype is not torch.int64
        or batch_sizes.dim() != 1
        or batch_sizes.device.type not in ("cpu", x.device.type if x.is_meta else "cpu")
    ):
        raise ValueError(
            f"batch_sizes must be [T], dense, of torch.int64 and on the CPU, got {_described(batch_sizes)}"
        )


def check_batch_sizes(batch_sizes: Tensor, rows: int, batch: int) -> None:
    """Looks at values, which graphs know only when they run.

    Raises:
        TypeError: not a tensor.
        ValueError: not those of a PackedSequence of so many rows and sequences.
    """
    if not isinstance(batch_sizes, Tensor):
        raise TypeError(f"argument 'batch_sizes' must be Tensor, not {type(batch_sizes).__name__}")
    if (
        batch_sizes.dtype is not torch.int64
        or not batch_sizes.is_cpu
        or batch_sizes.dim() != 1
        or batch_sizes.layout is not torch.strided
        or batch_sizes.is_neg()
    ):
        raise ValueError(
            f"batch_sizes must be [T], dense, of torch.int64 and on the CPU, got {_described(batch_sizes)}"
        )
    sizes = batch_sizes.tolist()
    if (
        sizes[:1] != [batch]
        or sum(sizes) != rows
        or sizes[-1] < 1
        or sizes != sorted(sizes, reverse=True)
        or not batch_sizes.is_contiguous()
    ):
        raise ValueError(
            "batch_sizes must be contiguous, positive and non-increasing, begin with the number of"
            f" sequences in h0 ({batch}) and add up to the rows of input ({rows}), got"
            f" {sizes[:20]}{' and more' if len(sizes) > 20 else ''}"
        )


def check_needs(needs: Sequence[bool]) -> Needs:
    """The flags of a backward operator; raises ValueError for another number of them."""
    if len(needs) != len(Needs._fields):
        raise ValueError(
            f"needs must have {len(Needs._fields)} flags, for {', '.join(Needs._fields)}; got {len(needs)}"
        )
    return Needs(*needs)


def check_backward(
    x: Tensor,  # [B, I] of a step, [T, B, I], or [R, I] of packed sequences
    h0: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    out: Tensor,  # like x but for its last dimension, H
    grad_out: Optional[Tensor],  # like out
    grad_hn: Optional[Tensor],  # [B, H]
    dims: int,  # of x
    packed: bool,
) -> None:
    """Raises RuntimeError, naming it, for a tensor of a backward pass that no kernel may be given.

    Gradients may have any layout; see `dense_gradient`.
    """
    dtype, device = x.dtype, x.device
    if dtype not in _DTYPES or x.dim() != dims or (not packed and x.shape[0] == 0 and dims == 3):
        shape = "[B, I]" if dims == 2 and not packed else "[R, I]" if packed else "[T, B, I] with T > 0"
        raise RuntimeError(
            f"x must be {shape} of one dtype of {', '.join(sorted(DTYPES))}, got {_described(x)}"
        )
    if weight_ih.dim() != 2 or h0.dim() != 2:
        name, wrong = ("weight_ih", weight_ih) if weight_ih.dim() != 2 else ("h0", h0)
        raise RuntimeError(f"{name} must have 2 dimensions, got {_described(wrong)}")
    *rows, input_size = x.shape
    hidden_size = weight_ih.shape[0]
    batch = h0.shape[0] if packed else rows[-1]
    for name, tensor, size, layouts in (
        ("x", x, x.shape, False),
        ("h0", h0, (batch, hidden_size), False),
        ("weight_ih", weight_ih, (hidden_size, input_size), False),
        ("weight_hh", weight_hh, (hidden_size, hidden_size), False),
        ("out", out, (*rows, hidden_size), False),
        ("the gradient of out", grad_out, (*rows, hidden_size), True),
        ("the gradient of h_n", grad_hn, (batch, hidden_size), True),
    ):
        if tensor is not None and (
            tensor.dtype is not dtype
            or tensor.device != device
            or tensor.shape != size
            or not (layouts or strided(tensor))
        ):
            raise RuntimeError(
                f"{name} must be {list(size)}, dense, of {dtype} on {device}, as x is;"
                f" got {_described(tensor)}"
            )


def dense(tensor: Any) -> Any:
    """As backends get it: contiguous, and not a view that torch negates when it is read."""
    return None if tensor is None else tensor.resolve_neg().contiguous()


def dense_gradient(tensor: Any) -> Any:
    """`dense` of what autograd sends, which may have any layout."""
    if tensor is None:
        return None
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return dense(tensor)


def _described(tensor: Any) -> str:
    if tensor.is_nested:
        return f"a nested tensor of {tensor.dtype} on {tensor.device}"
    layout = "" if tensor.layout is torch.strided else f", {tensor.layout}"
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}{layout}"
