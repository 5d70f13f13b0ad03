"""RNN: the parameters, layout and errors of torch.nn's module around the fused function."""

from __future__ import annotations

import math
from typing import Any, Optional, Union, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import dispatch
from .arguments import check_resets, left_to_torch, strided
from .attributes import DESCRIBING, NONLINEARITIES, at_odds, no_tensor
from .call import Network, read
from .context import autocast_on, tracing, undisturbed
from .functional import rnn_stack, run, shown_to_others
from .interchange import Interchangeable, TorchRNN


class RNN(Interchangeable, torch.nn.RNNBase):
    r"""Elman RNN, a drop-in for `torch.nn.RNN`: ``h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)``.

    All layers and directions are one call of `rnnfast.functional.rnn_stack`, but for dropout, which cuts the
    stack. Parameters, their names, their initialisation, outputs and errors are those of `torch.nn.RNN`;
    state_dicts load both ways.

    It derives from `torch.nn.RNNBase` rather than `torch.nn.RNN`, because torch.compile turns away every
    instance of the latter.

    What `torch.export` and `torch.jit.trace` make of it: a trace holds torch's own operator and can be loaded
    anywhere. An exported or ahead-of-time compiled model holds ours, for any number of steps, and needs
    ``import rnnfast`` where it is loaded; with ``backend="aten"`` it holds torch's, for one number of steps.

    Args:
        input_size: I, the features of the input.
        hidden_size: H, the features of the state.
        num_layers: each further layer reads the output of the one before it.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bias: whether the layers have ``b_ih`` and ``b_hh``.
        batch_first: input and output are ``[B, T, ...]`` rather than ``[T, B, ...]``; not so hx and h_n.
        dropout: probability of zeroing each output of each layer but the last, while training.
        bidirectional: a second set of weights walks each layer from the end; the outputs are concatenated.
        device, dtype: of the parameters: float64, float32, bfloat16 or float16 for rnnfast's kernels.
        backend: ``"auto"`` or the name of a backend; an attribute that may be changed later.

    Raises:
        ValueError, TypeError: as `torch.nn.RNN` does; ValueError for an unknown backend.
        RuntimeError: the backend is not available here; the message says why.
    """

    counterpart = TorchRNN
    OWN = (*Interchangeable.OWN, "_network")

    nonlinearity: str  # what was asked for; as in torch, `mode` is what counts

    # What a call computes, or None where an attribute doesn't describe the weights and while dropout cuts the
    # stack. Kept by __setattr__, as asking all attributes in every call would take as long as the smallest
    # kernel.
    _network: Optional[Network] = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Optional[Union[torch.device, str]] = None,
        dtype: Optional[torch.dtype] = None,
        *,
        backend: str = "auto",
        **unknown: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu") or "proj_size" in unknown:
            TorchRNN(1, 1, nonlinearity=nonlinearity, **unknown)  # raises torch's own error
        dispatch.check_name(backend)
        mode = "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU"
        super().__init__(
            mode,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **unknown,
        )
        self.nonlinearity = nonlinearity
        self.become(backend)

    def become(self, backend: str) -> None:
        super().become(backend)
        self._look_at_attributes()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._look_at_attributes()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if (name in DESCRIBING or name in self._parameters) and "_network" in self.__dict__:
            self._look_at_attributes()

    def _look_at_attributes(self) -> None:
        described = at_odds(self) is None and isinstance(self.input_size, int)
        whole = described and not (self.training and self.dropout and self.num_layers > 1)
        self.__dict__["_network"] = self._described() if whole else None

    def _described(self) -> Network:
        return Network(
            NONLINEARITIES[self.mode],
            self.num_layers,
            (False, True) if self.bidirectional else (False,),
            self.bias,
            module=True,
            batch_first=self.batch_first,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
        )

    @overload
    def forward(
        self, input: Tensor, hx: Optional[Tensor] = None, resets: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Optional[Tensor] = None, resets: None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    # Not a keyword alone, as torch's exporter that traces hands over every default by its position.
    def forward(self, input: Any, hx: Any = None, resets: Any = None) -> Any:
        """Runs all layers.

        Args:
            input: ``[T, B, I]`` (``[B, T, I]`` if batch_first), unbatched ``[T, I]``, or a PackedSequence.
            hx: initial states ``[layers * directions, B, H]``, without B for unbatched input; zeros if None.
            resets: ``[T, B]``, in the layout of the input, of torch.bool; torch's RNN has no such argument.
                Where it is set, every layer starts the step from a state of zeros, in either direction.

        Returns:
            output, ``[T, B, directions * H]`` in the layout of the input, and h_n, like hx.

        Raises:
            ValueError, RuntimeError: as `torch.nn.RNN` does; for resets of another shape, dtype or device,
                or beside a PackedSequence.
        """
        # Read anew in each call, so that whatever replaces weights is seen: pruning, parametrizations,
        # functional_call. Most are still parameters, and finding those in their dict is several times faster
        # than getattr.
        parameters = self._parameters
        weights = tuple(
            [parameters[n] if n in parameters else getattr(self, n) for n in self._flat_weights_names]
        )
        network = self._network
        if network is not None and resets is None and undisturbed():
            if type(input) is not PackedSequence:
                call = read(network, input, hx, weights, None)
                if call is not None:
                    return run(call, self.backend)[:2]
            else:
                rows, batch_sizes, sorted_indices, unsorted_indices = input
                state = hx if hx is None or sorted_indices is None else hx.index_select(1, sorted_indices)
                call = read(network, rows, state, weights, batch_sizes)
                if call is not None:
                    output, h_n, *_ = run(call, self.backend)
                    return _packed(output, input), _unsorted(h_n, unsorted_indices)
        return self._prepared(input, hx, weights, resets)

    # Whether torch's class computes the same of the same weights.
    _is_torchs = True

    def _prepared(
        self, input: Any, hx: Any, weights: tuple[Any, ...], resets: Any, states: bool = False
    ) -> tuple[Any, ...]:
        """Makes a call time-major and batched, or leaves it to torch's class.

        Returns:
            output and h_n and, with `states`, the states of the last layer, in the layout of the output.
        """
        if isinstance(input, torch.fx.Proxy):
            options = {} if resets is None else {"resets": resets}
            return self.leaf(input, hx, **options, **({"return_states": True} if states else {}))
        data = input.data if isinstance(input, PackedSequence) else input
        wrong = no_tensor(input, hx) or at_odds(self)
        tensors = (data, hx, *weights)
        theirs = self._is_torchs and resets is None
        if wrong is not None or (theirs and (tracing() or shown_to_others(self.backend, *tensors))):
            return self._left(theirs, input, hx, wrong)
        if not strided(data, hx):
            return left_to_torch(self._left(theirs, input, hx), self.backend, tensors)
        if resets is not None:
            check_resets(resets, data, isinstance(input, PackedSequence))
        if isinstance(input, PackedSequence):
            rows, batch_sizes, sorted_indices, unsorted_indices = input
            # A graph has no number for batch_sizes[0]; there the operator checks hx when it runs.
            known = hx is None or not torch.compiler.is_compiling()
            batch = int(batch_sizes[0]) if known else hx.shape[1]
            state = hx if hx is None or sorted_indices is None else hx.index_select(1, sorted_indices)
            if not self._fits(rows, state, batch, 2, weights):
                return self._left(theirs, input, hx)
            if state is None and torch.compiler.is_compiling():  # a graph can't ask batch_sizes for B again
                count = self.num_layers * (2 if self.bidirectional else 1)
                state = rows.new_zeros(count, batch, self.hidden_size)
            output, h_n, *every = self._segments(rows, state, batch_sizes, weights, None, states)
            last = _unsorted(h_n, unsorted_indices)
            return _packed(output, input), last, *(_packed(v, input) for v in every)
        unbatched = input.dim() == 2
        if unbatched:
            rows, state = input.unsqueeze(1), None if hx is None else hx.unsqueeze(1)
            resets = None if resets is None else resets.unsqueeze(1)
        elif input.dim() == 3:
            rows, state = input.transpose(0, 1) if self.batch_first else input, hx
            resets = resets.transpose(0, 1) if self.batch_first and resets is not None else resets
        else:
            return self._left(theirs, input, hx)  # raises torch's own error
        if not self._fits(rows, state, rows.shape[1], 3, weights):
            return self._left(theirs, input, hx)
        output, h_n, *every = self._segments(rows, state, None, weights, resets, states)
        if unbatched:
            return output.squeeze(1), h_n.squeeze(1), *(v.squeeze(1) for v in every)
        if self.batch_first:
            return output.transpose(0, 1), h_n, *(v.transpose(0, 1) for v in every)
        return output, h_n, *every

    def _left(self, theirs: bool, input: Any, hx: Any, cause: Optional[str] = None) -> Any:
        """What torch's class makes of arguments that no kernel takes, mostly an error.

        Raises:
            RuntimeError: it takes them, but would not compute what this call is (not `theirs`).
        """
        result = self.torchs(input, hx, cause)
        if theirs:
            return result
        data = input.data if isinstance(input, PackedSequence) else input
        raise RuntimeError(
            f"{type(self).__name__} takes dense tensors of one dtype (float64, float32, bfloat16 or"
            f" float16) on one device; got an input of {data.dtype} on {data.device}"
            f"{'' if cause is None else f' ({cause})'}"
        )

    def _fits(
        self, rows: Tensor, hx: Optional[Tensor], batch: int, dims: int, weights: tuple[Any, ...]
    ) -> bool:
        """Whether the arguments are right; what is wrong with them is then for torch to say."""
        states = self.num_layers * (2 if self.bidirectional else 1)
        return (
            rows.dim() == dims
            and rows.shape[-1] == self.input_size
            and weights[1].shape[-1] == self.hidden_size
            and rows.shape[0] > 0
            and (rows.dtype is weights[0].dtype or autocast_on(rows))
            and rows.device == weights[0].device
            and (hx is None or hx.dim() == 3)
            and (hx is None or hx.shape == (states, batch, self.hidden_size))
        )

    def _segments(
        self,
        rows: Tensor,
        hx: Optional[Tensor],
        batch_sizes: Optional[Tensor],
        weights: tuple[Any, ...],
        resets: Optional[Tensor],
        states: bool,
    ) -> tuple[Tensor, ...]:
        """The stack, cut wherever dropout comes between two layers; see `_prepared` for `states`."""
        network = self._described()._replace(batch_first=False, input_size=None)
        weights = self._completed(network, weights, math.prod(rows.shape[:-1]))
        given = batch_sizes, self.backend, resets, states
        if not (self.training and self.dropout and self.num_layers > 1):
            return _with_last_states(rnn_stack(network, rows, hx, weights, *given))
        directions = len(network.reverse)
        each, layer = directions * network.per, network._replace(layers=1)
        last = []
        for i in range(self.num_layers):
            if i > 0:
                rows = torch.dropout(rows, self.dropout, True)
            state = None if hx is None else hx[i * directions : (i + 1) * directions]
            mine = weights[i * each : (i + 1) * each]
            rows, h_n, *every = _with_last_states(rnn_stack(layer, rows, state, mine, *given))
            last.append(h_n)
        return rows, torch.cat(last), *every

    def _completed(self, network: Network, weights: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
        """The weights of a call of so many rows, of this module's own."""
        return weights


def _with_last_states(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results of `rnn_stack`, but of inner that of the last layer, in the layout of the output."""
    return results if len(results) == 2 else (*results[:2], results[2][-1].reshape(results[0].shape))


def _packed(rows: Tensor, like: PackedSequence) -> PackedSequence:
    """Made as a tuple is: its constructor's checks, which `like` has passed, take several microseconds."""
    return tuple.__new__(PackedSequence, (rows, *like[1:]))


def _unsorted(h_n: Tensor, indices: Optional[Tensor]) -> Tensor:
    return h_n if indices is None else h_n.index_select(1, indices)
