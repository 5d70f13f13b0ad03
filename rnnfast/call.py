"""A call: its tensors and what is read from them, once, before anything is computed.

`read` makes a `Call` of the arguments of a module, a function or an operator. In the usual case that is one
call of the native extension, whose Call (csrc/cpu/call.cpp) has the fields and methods of the class below. At
T = 1, B = 1, H = 64 a forward call of an RNN takes 21 us if it is checked in Python and 7 if it is checked
there, 1.4 of them in the kernel. Where there is no extension, and for tensors that it can't read, such as
those without memory while a graph is captured, a call is the class below.

Notation: T steps, B sequences, I inputs, H hidden units, L layers, D directions, R rows. Rows are time-major:
a dense batch has R = T * B rows, a packed one has R = sum(batch_sizes), batch_sizes being non-increasing. A
direction that walks from the end takes the same rows from the last step to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .native import DTYPES, native


class Network(NamedTuple):
    """What is computed, whatever the tensors: the cell, and how layers and directions are put together."""

    nonlinearity: str  # "tanh" or "relu"
    layers: int = 1
    reverse: tuple[bool, ...] = (False,)  # of each direction, whether it walks from the end
    biases: bool = True  # a layer's weights in a direction are W_ih, W_hh, b_ih, b_hh; else the first two
    step: bool = False  # one step of one layer
    # Called as a module is: states have a dimension of layers and directions (but those of a step), may be
    # None for zeros, and input may be without a batch.
    module: bool = False
    batch_first: bool = False
    input_size: Optional[int] = None  # those of the module; None: whatever the tensors have
    hidden_size: Optional[int] = None

    @property
    def per(self) -> int:
        """Weights of a layer in one direction."""
        return 4 if self.biases else 2


class Call:
    """The arguments of a call and its sizes; made by `read`, `bare` and `having` alone.

    Attributes:
        network: what is computed.
        x: ``[T, B, I]``, packed ``[R, I]``, of a step ``[B, I]``. In a call of a module that native code has
            read also ``[B, T, I]`` where B or T is 1, unbatched ``[T, I]``, and of a step ``[I]``. In every
            case its memory is that of rows, ``[R, I]``.
        h0: ``[L * D, B, H]``, of a function ``[B, H]``, of a step ``[B, H]``, without B if x is unbatched, or
            None for zeros.
        weights: for each layer, for each direction: W_ih ``[H, I]`` or ``[H, D * H]``, W_hh ``[H, H]`` and
            the biases ``[H]``.
        batch_sizes: ``[T]`` int64 on the CPU, or None.
        problem: the first fields of `backends.base.Problem`.
        steps, batch, rows, input_size, hidden_size: T, B, R, I, H.

    A call that is `bare` has None in place of each tensor.
    """

    network: Network
    x: Tensor
    h0: Optional[Tensor]
    weights: tuple[Any, ...]
    batch_sizes: Optional[Tensor]
    steps: int
    batch: int
    rows: int
    input_size: int
    hidden_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def problem(self) -> tuple[Any, ...]:
        kind = "step" if self.network.step else "sequence"
        sizes = (self.input_size, self.hidden_size, self.batch, self.steps)
        layers = (self.network.layers, len(self.network.reverse))
        return kind, self.device, self.dtype, *sizes, self.batch_sizes is not None, *layers

    def bare(self) -> Call:
        """The same without tensors, which an autograd node keeps; the tensors themselves autograd saves."""
        return self.having(None, None, (None,) * len(self.weights), None)

    def having(self, x: Any, h0: Any, weights: tuple[Any, ...], batch_sizes: Any) -> Call:
        """The same with these tensors, made dense; x, h0 and each weight may be None where none reads them.

        Raises:
            RuntimeError: a tensor's shape, dtype or device is not that of the forward pass.
        """
        other = Call.__new__(Call)
        other.__dict__.update(self.__dict__)
        other.x, other.h0, other.batch_sizes = dense_gradient(x), dense_gradient(h0), batch_sizes
        other.weights = tuple(dense_gradient(weight) for weight in weights)
        return other


def made(
    network: Network, x: Tensor, h0: Optional[Tensor], weights: tuple[Any, ...], batch_sizes: Optional[Tensor]
) -> Call:
    """A call of arguments that `arguments.fits` has let pass; x is time-major and has a batch."""
    call = Call.__new__(Call)
    call.network, call.x, call.h0, call.weights, call.batch_sizes = network, x, h0, weights, batch_sizes
    call.dtype, call.device = x.dtype, x.device
    call.input_size, call.hidden_size = x.shape[-1], weights[1].shape[0]
    if batch_sizes is not None:
        # A graph has no number for batch_sizes[0], but for the number of states.
        call.steps, call.rows = batch_sizes.shape[0], x.shape[0]
        call.batch = int(batch_sizes[0]) if h0 is None else h0.shape[-2]
    else:
        call.steps = 1 if network.step else x.shape[0]
        call.batch = x.shape[-2]
        call.rows = call.steps * call.batch
    return call


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


def _unread(network: Network, x: Any, h0: Any, weights: tuple[Any, ...], batch_sizes: Any) -> Optional[Call]:
    return None


CPU = torch.device("cpu")
_ready: bool = native is not None and native.setup(
    Tensor, torch.nn.Parameter, torch.empty_like, dense_gradient, CPU, DTYPES
)

# (network, x, h0, weights, batch_sizes) -> a call, or None if the arguments are anything but dense tensors of
# torch's own that fit.
read: Callable[[Network, Any, Any, tuple[Any, ...], Any], Optional[Call]] = native.read if _ready else _unread
