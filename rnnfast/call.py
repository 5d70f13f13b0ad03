"""A call: its tensors and what is read from them, once, before anything is computed.

`read` makes a `Call` of the arguments of a module, a function or an operator. In the usual case that is one
call of the native extension, whose Call (csrc/cpu/python/call.cpp) has the fields and methods of the class
below. At T = 1, B = 1, H = 64 a forward call of an RNN takes 21 us if it is checked in Python and 7 if it is
checked there, 1.4 of them in the kernel. Where there is no extension, and for tensors that it can't read,
such as those without memory while a graph is captured, a call is the class below.

Notation: T steps, B sequences, I inputs, H hidden units, L layers, D directions, R rows. Rows are time-major:
a dense batch has R = T * B rows, a packed one has R = sum(batch_sizes), batch_sizes being non-increasing. A
direction that walks from the end takes the same rows from the last step to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .context import PLAIN, watching
from .native import DTYPES, native


class Network(NamedTuple):
    """What is computed, whatever the tensors: the cell, and how layers and directions are put together."""

    nonlinearity: str  # one of NONLINEARITIES; of a step "tanh" or "relu"
    layers: int = 1
    reverse: tuple[bool, ...] = (False,)  # of each direction, whether it walks from the end
    biases: bool = True  # a layer's weights in a direction have b_ih and b_hh, see `parts`
    step: bool = False  # one step of one layer
    # Called as a module is: states have a dimension of layers and directions (but those of a step), may be
    # None for zeros, and input may be without a batch.
    module: bool = False
    batch_first: bool = False
    input_size: Optional[int] = None  # those of the module; None: whatever the tensors have
    hidden_size: Optional[int] = None
    cell: str = "elman"  # one of CELLS; of a step "elman"
    noise: bool = False  # whether something is added in every step
    resets: bool = False  # whether some steps start from zero

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the weights of a layer in one direction, in their order."""
        biases = ("bias_ih", "bias_hh") if self.biases else ()
        alpha = ("alpha",) if self.cell != "elman" else ()
        return "weight_ih", "weight_hh", *biases, *alpha, *(("noise",) if self.noise else ())

    @property
    def per(self) -> int:
        """Weights of a layer in one direction."""
        return (4 if self.biases else 2) + (1 if self.cell != "elman" else 0) + (1 if self.noise else 0)

    @property
    def extras(self) -> str:
        """What it has that torch's operators don't know; empty if it is an RNN of theirs."""
        return extras(self.nonlinearity, self.cell, self.noise, self.resets)


NONLINEARITIES = ("tanh", "relu", "sigmoid", "softplus", "identity")
CELLS = ("elman", "leaky", "ctrnn")


def extras(nonlinearity: str, cell: str, noise: bool, resets: bool) -> str:
    """See `Network.extras`."""
    found = [] if cell == "elman" else [f"cell '{cell}'"]
    found += [] if nonlinearity in ("tanh", "relu") else [f"nonlinearity '{nonlinearity}'"]
    return ", ".join(found + ["noise"] * noise + ["resets"] * resets)


class Call:
    """The arguments of a call and its sizes; made by `read`, `bare` and `having` alone.

    Attributes:
        network: what is computed.
        x: ``[T, B, I]``, packed ``[R, I]``, of a step ``[B, I]``. In a call of a module that native code has
            read also ``[B, T, I]`` where B or T is 1, unbatched ``[T, I]``, and of a step ``[I]``. In every
            case its memory is that of rows, ``[R, I]``.
        h0: ``[L * D, B, H]``, of a function ``[B, H]``, of a step ``[B, H]``, without B if x is unbatched, or
            None for zeros.
        weights: for each layer, for each direction: W_ih ``[H, I]`` or ``[H, D * H]``, W_hh ``[H, H]``, the
            biases ``[H]``, alpha ``[H]`` and noise ``[R, H]``, as far as the network has them.
        batch_sizes: ``[T]`` int64 on the CPU, or None.
        resets: ``[R]`` bool, the rows whose step starts from zero, or None. Of dense batches alone.
        problem: the fields of `backends.base.Problem`, but for those that are no part of a call.
        steps, batch, rows, input_size, hidden_size: T, B, R, I, H.

    A call that is `bare` has None in place of each tensor.
    """

    network: Network
    x: Tensor
    h0: Optional[Tensor]
    weights: tuple[Any, ...]
    batch_sizes: Optional[Tensor]
    resets: Optional[Tensor]
    problem: tuple[Any, ...]
    steps: int
    batch: int
    rows: int
    input_size: int
    hidden_size: int
    _shapes: tuple[tuple[int, ...], ...]  # of x, h0 and the weights

    def bare(self) -> Call:
        """The same without tensors, which an autograd node keeps; the tensors themselves autograd saves."""
        return self.having(None, None, (None,) * len(self.weights), None)

    def having(self, x: Any, h0: Any, weights: tuple[Any, ...], batch_sizes: Any, resets: Any = None) -> Call:
        """The same with these tensors, made dense; x, h0 and each weight may be None where none reads them.

        Raises:
            RuntimeError: a tensor's shape, dtype or device is not that of the forward pass, or batch_sizes
                or resets are not those of as many rows.
        """
        names, (_, device, dtype, *_) = ("x", "h0", *["a weight"] * len(self.weights)), self.problem
        tensors = [dense_gradient(tensor) for tensor in (x, h0, *weights)]
        if len(tensors) != len(names):
            raise RuntimeError(f"weights must be a tuple of {len(self.weights)}")
        for name, tensor, shape in zip(names, tensors, self._shapes, strict=True):
            if tensor is not None and (
                tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device
            ):
                raise RuntimeError(
                    f"{name} is not what the forward pass of this call had:"
                    " its shape, dtype or device differs"
                )
        if batch_sizes is not None and not self._walks(batch_sizes):
            raise RuntimeError("batch_sizes are not those that the forward pass of this call had")
        if resets is not None:
            resets = dense_gradient(resets)
            if not _are_resets(resets, self.rows, device):
                raise RuntimeError("resets are not those that the forward pass of this call had")
        other = Call.__new__(Call)
        other.__dict__.update(self.__dict__)
        other.x, other.h0, *rest = tensors
        other.weights, other.batch_sizes, other.resets = tuple(rest), batch_sizes, resets
        return other

    def _walks(self, batch_sizes: Tensor) -> bool:
        """Whether these can be the batch_sizes of the forward pass."""
        if batch_sizes.shape != (self.steps,) or batch_sizes.dtype is not torch.int64:
            return False
        if watching() or type(batch_sizes) is not Tensor:  # a graph knows no values; its operators look
            return True
        sizes = batch_sizes.tolist() if batch_sizes.is_cpu else []
        return (
            sizes[:1] == [self.batch]
            and sizes[-1] >= 1
            and sum(sizes) == self.rows
            and sizes == sorted(sizes, reverse=True)
        )


def made(
    network: Network,
    x: Tensor,
    h0: Optional[Tensor],
    weights: tuple[Any, ...],
    batch_sizes: Optional[Tensor],
    resets: Optional[Tensor] = None,
) -> Call:
    """A call of arguments that `arguments.fits` has let pass; x is time-major and has a batch."""
    call = Call.__new__(Call)
    call.network, call.x, call.h0, call.weights, call.batch_sizes = network, x, h0, weights, batch_sizes
    call.resets = resets
    call.input_size, call.hidden_size = x.shape[-1], weights[1].shape[0]
    if batch_sizes is not None:
        # A graph has no number for batch_sizes[0], but for the number of states.
        call.steps, call.rows = batch_sizes.shape[0], x.shape[0]
        call.batch = int(batch_sizes[0]) if h0 is None else h0.shape[-2]
    else:
        call.steps = 1 if network.step else x.shape[0]
        call.batch = x.shape[-2]
        call.rows = call.steps * call.batch
    sizes = call.input_size, call.hidden_size, call.batch, call.steps
    count, kind = network.layers * len(network.reverse), "step" if network.step else "sequence"
    layers = network.layers, len(network.reverse)
    extra = network.nonlinearity, network.cell, network.noise, network.resets
    call.problem = kind, x.device, x.dtype, *sizes, batch_sizes is not None, *layers, *extra
    leading = (count,) if network.module and not network.step else ()
    state = (*leading, call.batch, call.hidden_size) if h0 is None else h0.shape
    call._shapes = x.shape, state, *(weight.shape for weight in weights)
    return call


def _are_resets(resets: Tensor, rows: int, device: torch.device) -> bool:
    return resets.shape == (rows,) and resets.dtype is torch.bool and resets.device == device


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


def memory(tensor: Any) -> Any:
    """`dense_gradient`, and of torch's own type: a subclass has had its say before a kernel runs."""
    tensor = dense_gradient(tensor)
    return tensor if type(tensor) in PLAIN else tensor.as_subclass(Tensor)


def _unread(
    network: Network, x: Any, h0: Any, weights: tuple[Any, ...], batch_sizes: Any, resets: Any = None
) -> Optional[Call]:
    return None


CPU = torch.device("cpu")
READY: bool = native is not None and native.setup(
    Tensor, torch.nn.Parameter, torch.empty_like, memory, CPU, DTYPES
)

# (network, x, h0, weights, batch_sizes, resets=None) -> a call, or None if the arguments are anything but
# dense tensors of torch's own that fit.
read: Callable[..., Optional[Call]] = native.read if READY else _unread
