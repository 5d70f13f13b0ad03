"""Which arguments a kernel may be given, and what becomes of the others.

Every way to a kernel passes `fits` or its twin in C (csrc/cpu/python/call.cpp): modules, functions and
registered operators, and through the operators every captured graph.

What a forward pass can't take goes to torch's own operator: it takes more than the kernels do (complex
numbers, sparse tensors), and what it rejects it rejects in its own words. A backward pass has no such
counterpart; there the error names the argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from .call import CELLS, NONLINEARITIES, Network
from .interchange import TorchRNN
from .native import DTYPES

_DTYPES = frozenset(DTYPES)
_NAMES = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))


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


def fits(
    network: Network,
    x: Tensor,
    h0: Optional[Tensor],
    weights: Sequence[Tensor],
    packed: bool,
    resets: Optional[Tensor] = None,
) -> bool:
    """Whether a kernel may be given these, time-major and with a batch; see `check_packed`, too."""
    if x.dim() != (2 if network.step or packed else 3) or x.dtype not in _DTYPES:
        return False
    if not (network.step or x.shape[0] > 0) or weights[1].dim() != 2:
        return False
    hidden_size = weights[1].shape[0]
    if len(weights) != network.layers * len(network.reverse) * network.per:
        return False
    for tensor in weights if h0 is None else (h0, *weights):
        if tensor.dtype is not x.dtype or tensor.device != x.device:
            return False
    if not strided(x, h0, *weights):
        return False
    if h0 is not None:
        leading = h0.shape[:-2]
        if h0.dim() != (3 if network.module and not network.step else 2) or h0.shape[-1] != hidden_size:
            return False
        if leading and leading[0] != network.layers * len(network.reverse):
            return False
        if not packed and h0.shape[-2] != x.shape[-2]:
            return False
    elif not network.module:
        return False
    rows = row_count(network, x, packed)
    for i, weight in enumerate(weights):
        if weight.shape != weight_shape(network, i, x.shape[-1], hidden_size, rows):
            return False
    if resets is None:
        return not network.resets
    return network.resets and not packed and _are_resets(resets, x, rows)


def _are_resets(resets: Tensor, x: Tensor, rows: int) -> bool:
    return (
        strided(resets)
        and resets.dtype is torch.bool
        and resets.device == x.device
        and resets.shape == (rows,)
    )


def row_count(network: Network, x: Tensor, packed: bool) -> int:
    """R, of an input that has as many dimensions as it should."""
    return x.shape[0] if network.step or packed else x.shape[0] * x.shape[1]


def weight_shape(network: Network, i: int, input_size: int, hidden_size: int, rows: int) -> tuple[int, ...]:
    """Of weight `i` of a network's."""
    layer, part = divmod(i, network.per)
    name, directions = network.parts[part], len(network.reverse)
    if name == "weight_ih":
        return hidden_size, input_size if layer < directions else directions * hidden_size
    if name == "weight_hh":
        return hidden_size, hidden_size
    return (rows, hidden_size) if name == "noise" else (hidden_size,)


def left_to_torch(result: Any, backend: str, tensors: Iterable[Optional[Tensor]]) -> Any:
    """What torch's operator has made of arguments that no kernel takes.

    Raises:
        RuntimeError: the caller asked for another backend.
    """
    if backend not in ("auto", "aten"):
        raise RuntimeError(
            f"backend '{backend}' takes dense tensors of one dtype ({_NAMES}) on one device, with shapes that"
            f" fit; got {', '.join(described(t) for t in tensors if t is not None)}"
        )
    return result


def check_names(nonlinearity: Any, backend: Any, step: bool = False) -> None:
    """Raises ValueError for an unknown nonlinearity, as torch does, TypeError if backend is no str."""
    if step and nonlinearity not in ("tanh", "relu"):
        TorchRNN(1, 1, nonlinearity=nonlinearity)
    check_nonlinearity(nonlinearity)
    if not isinstance(backend, str):
        raise TypeError(f"argument 'backend' must be str, not {type(backend).__name__}")


def check_nonlinearity(nonlinearity: Any) -> None:
    """Raises ValueError for one that sequences don't have."""
    if nonlinearity not in NONLINEARITIES:
        known = ", ".join(map(repr, NONLINEARITIES))
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from {known}.")


def check_network(network: Network) -> None:
    """Raises ValueError for a cell, layers and directions that no network has; two are in torch's order."""
    if network.cell not in CELLS:
        raise ValueError(f"Unknown cell '{network.cell}'. Select from {', '.join(map(repr, CELLS))}.")
    if network.step and network.extras:
        raise ValueError(f"a single step has no {network.extras}")
    layers, reverse = network.layers, tuple(network.reverse)
    known = layers >= 1 and reverse in ((False,), (True,), (False, True))
    if not known or (network.step and (layers, reverse) != (1, (False,))):
        raise ValueError(f"there is no network of {layers} layers and the directions {list(reverse)}")


def check_alpha(alpha: Any) -> None:
    """Raises TypeError for what is no number, ValueError for one outside of (0, 1]."""
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise TypeError(f"argument 'alpha' must be float or Tensor, not {type(alpha).__name__}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}")


def check_extras(
    network: Network, x: Tensor, weights: Sequence[Any], resets: Optional[Tensor], packed: bool
) -> None:
    """Raises RuntimeError, naming it, for an alpha, noise or resets that don't go with x, and W_hh [H, H]."""
    rows = row_count(network, x, packed)
    for i, weight in enumerate(weights):
        name = network.parts[i % network.per]
        shape = weight_shape(network, i, x.shape[-1], weights[1].shape[0], rows)
        if name in ("alpha", "noise") and (
            weight.shape != shape
            or weight.dtype is not x.dtype
            or weight.device != x.device
            or not strided(weight)
        ):
            raise RuntimeError(
                f"{name} must be {list(shape)}, dense, of {x.dtype} on {x.device}, as x is;"
                f" got {described(weight)}"
            )
    if resets is not None and not _are_resets(resets, x, rows):
        raise RuntimeError(
            f"resets must be one bool for each of the {rows} rows of x, dense, on {x.device};"
            f" got {described(resets)}"
        )


def check_resets(resets: Any, x: Any, packed: bool) -> None:
    """Looks at what says where x starts from zero: one bool for each of its rows, in its layout.

    Raises:
        TypeError: not a tensor.
        ValueError: beside packed sequences.
        RuntimeError: of another dtype, shape or device.
    """
    if resets is None:
        return
    if not isinstance(resets, Tensor):
        raise TypeError(f"argument 'resets' must be Tensor, not {type(resets).__name__}")
    if packed:
        raise ValueError(
            "resets and packed sequences don't go together: pad the batch, or cut sequences at their resets"
        )
    if (
        not strided(resets)
        or resets.dtype is not torch.bool
        or resets.shape != x.shape[:-1]
        or resets.device != x.device
    ):
        raise RuntimeError(
            f"resets must be {list(x.shape[:-1])}, dense, of torch.bool and on {x.device}, beside an input of"
            f" {list(x.shape)}; got {described(resets)}"
        )


def check_packed(batch_sizes: Tensor, x: Tensor, h0: Optional[Tensor]) -> None:
    """Raises as `check_batch_sizes` does, and RuntimeError where `x` isn't a matrix or `h0` no matrices."""
    if x.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions beside batch_sizes, got {x.dim()}")
    if h0 is not None and h0.dim() not in (2, 3):
        raise RuntimeError(f"h0 must have 2 dimensions beside batch_sizes, got {h0.dim()}")
    check_batch_sizes(batch_sizes, x.shape[0], None if h0 is None else h0.shape[-2])


def check_fake_batch_sizes(batch_sizes: Optional[Tensor], x: Tensor) -> None:
    """The part of `check_batch_sizes` that can be told without values; on the meta device `x` is, it may be.

    Raises:
        ValueError: of another dtype, shape or device.
    """
    if batch_sizes is not None and (
        batch_sizes.dtype is not torch.int64
        or batch_sizes.dim() != 1
        or batch_sizes.shape[0] == 0
        or batch_sizes.device.type not in ("cpu", x.device.type if x.is_meta else "cpu")
    ):
        raise ValueError(
            f"batch_sizes must be [T], dense, of torch.int64 and on the CPU, got {described(batch_sizes)}"
        )


def check_batch_sizes(batch_sizes: Tensor, rows: int, batch: Optional[int]) -> None:
    """Looks at values, which graphs know only when they run. `batch`: that of the states, if there are some.

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
            f"batch_sizes must be [T], dense, of torch.int64 and on the CPU, got {described(batch_sizes)}"
        )
    sizes = batch_sizes.tolist()
    if (
        not sizes
        or (batch is not None and sizes[0] != batch)
        or sum(sizes) != rows
        or sizes[-1] < 1
        or sizes != sorted(sizes, reverse=True)
        or not batch_sizes.is_contiguous()
    ):
        begin = "" if batch is None else f", begin with the number of sequences in h0 ({batch})"
        raise ValueError(
            f"batch_sizes must be contiguous, positive and non-increasing{begin} and add up to the rows of"
            f" input ({rows}), got {sizes[:20]}{' and more' if len(sizes) > 20 else ''}"
        )


def check_backward(
    network: Network,
    inputs: tuple[Any, ...],  # x, h0, weights, batch_sizes and resets, as those of a Call
    outputs: tuple[Tensor, Optional[Tensor], Optional[Tensor]],  # out, hidden and inner, as in base.Outputs
    grads: tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]],  # of out, h_n and inner
    needs: Sequence[bool],  # of x, h0 and each weight
) -> None:
    """Raises RuntimeError, naming it, for a tensor of a backward pass that no kernel may be given.

    Gradients may have any layout; see `call.dense_gradient`.
    """
    x, h0, weights, batch_sizes, resets = inputs
    if resets is not None and batch_sizes is not None:
        check_resets(resets, x, packed=True)
    packed, dtype, device = batch_sizes is not None, x.dtype, x.device
    directions = len(network.reverse)
    count = network.layers * directions
    if len(weights) != count * network.per:
        raise ValueError(f"{len(weights)} weights are not those of {network}")
    if len(needs) != 2 + len(weights):
        raise ValueError(
            f"needs must have {2 + len(weights)} flags, of x, h0 and each weight; got {len(needs)}"
        )
    if (
        dtype not in _DTYPES
        or x.dim() != (2 if network.step or packed else 3)
        or (not network.step and x.shape[0] == 0)
    ):
        shape = "[B, I]" if network.step else "[R, I]" if packed else "[T, B, I] with T > 0"
        raise RuntimeError(f"x must be {shape} of one dtype of {_NAMES}, got {described(x)}")
    if weights[0].dim() != 2:
        raise RuntimeError(f"weight_ih must have 2 dimensions, got {described(weights[0])}")
    hidden_size = weights[0].shape[0]
    states = [("h0", h0), ("the gradient of h_n", grads[1])]
    given = [(name, tensor) for name, tensor in states if tensor is not None]
    for name, state in given if packed else ():
        if state.dim() < 2:
            dims = 3 if network.module else 2
            raise RuntimeError(f"{name} must have {dims} dimensions, got {described(state)}")
    batch = x.shape[-2] if not packed else given[0][1].shape[-2] if given else None
    rows = tuple(x.shape[:-1])
    leading = (count,) if network.module and not network.step else ()
    flat_rows = row_count(network, x, packed)
    wanted: list[tuple[str, Optional[Tensor], tuple[Any, ...], bool]] = [("x", x, tuple(x.shape), False)]
    if batch is not None:  # else there are no states
        state_shape = (*leading, batch, hidden_size)
        wanted += [("h0", h0, state_shape, False), ("the gradient of h_n", grads[1], state_shape, True)]
    for i, weight in enumerate(weights):
        shape_of = weight_shape(network, i, x.shape[-1], hidden_size, flat_rows)
        wanted.append((network.parts[i % network.per], weight, shape_of, False))
    width = directions * hidden_size
    wanted += [
        ("out", outputs[0], (*rows, width), False),
        ("hidden", outputs[1], (network.layers - 1, flat_rows, width), False),
        ("inner", outputs[2], (network.layers, flat_rows, width), False),
        ("the gradient of out", grads[0], (*rows, width), True),
        ("the gradient of inner", grads[2], (network.layers, flat_rows, width), True),
    ]
    for name, tensor, size, any_layout in wanted:
        if tensor is not None and (
            tensor.dtype is not dtype
            or tensor.device != device
            or tensor.shape != size
            or not (any_layout or strided(tensor))
        ):
            raise RuntimeError(
                f"{name} must be {list(size)}, dense, of {dtype} on {device}, as x is;"
                f" got {described(tensor)}"
            )
    check_extras(network, x, (), resets, packed)
    if needs[1] and h0 is None:
        raise RuntimeError("h0, whose gradient is wanted, is missing")
    if network.layers > 1 and outputs[1] is None:
        raise RuntimeError("hidden, the outputs of all layers but the last, is missing")
    if network.cell != "elman" and outputs[2] is None:
        raise RuntimeError(f"inner, which a {network.cell} cell's forward pass returns, is missing")


def described(tensor: Any) -> str:
    if tensor.is_nested:
        return f"a nested tensor of {tensor.dtype} on {tensor.device}"
    layout = "" if tensor.layout is torch.strided else f", {tensor.layout}"
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}{layout}"
