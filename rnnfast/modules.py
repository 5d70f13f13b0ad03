"""RNN: the parameters, layout and errors of torch.nn's module around the fused function."""

from __future__ import annotations

from typing import Any, Optional, Union, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import dispatch
from .arguments import check_batch_sizes, left_to_torch, strided
from .attributes import DESCRIBING, NONLINEARITIES, at_odds, no_tensor
from .context import needs_composite, needs_grad, tracing, watched
from .functional import autocast_on, plain_sequence, rnn_sequence, shown_to_others, solver_of
from .interchange import Interchangeable, TorchRNN


class RNN(Interchangeable, torch.nn.RNNBase):
    r"""Elman RNN, a drop-in for `torch.nn.RNN`: ``h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)``.

    Each layer and direction is one call of `rnnfast.functional.rnn_sequence`. Parameters, their names, their
    initialisation, outputs and errors are those of `torch.nn.RNN`; state_dicts load both ways.

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
    OWN = (*Interchangeable.OWN, "_plain")

    nonlinearity: str  # what was asked for; as in torch, `mode` is what counts

    # Whether this is one layer in one direction and time-major, with attributes that describe its weights.
    # Kept by __setattr__, as asking them all in every call would take as long as the smallest kernel.
    _plain: bool = False

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
        if (name in DESCRIBING or name in self._parameters) and "_plain" in self.__dict__:
            self._look_at_attributes()

    def _look_at_attributes(self) -> None:
        plain = at_odds(self) is None and len(self._all_weights) == 1 and not self.batch_first
        self.__dict__["_plain"] = plain

    @overload
    def forward(self, input: Tensor, hx: Optional[Tensor] = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Optional[Tensor] = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Tensor]:
        """Runs all layers.

        Args:
            input: ``[T, B, I]`` (``[B, T, I]`` if batch_first), unbatched ``[T, I]``, or a PackedSequence.
            hx: initial states ``[layers * directions, B, H]``, without B for unbatched input; zeros if None.

        Returns:
            output, ``[T, B, directions * H]`` in the layout of the input, and h_n, like hx.

        Raises:
            ValueError, RuntimeError: as `torch.nn.RNN` does.
        """
        weights = self._layer_weights()
        if self._plain:
            w_ih, w_hh, b_ih, b_hh = weights[0] if self.bias else (*weights[0], None, None)
            nonlinearity, backend = NONLINEARITIES[self.mode], self.backend
            sizes = self.input_size, self.hidden_size
            found = plain_sequence(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity, False, sizes, backend)
            if found is not None:
                return found
        if isinstance(input, torch.fx.Proxy):
            return self.leaf(input, hx)
        data = input.data if isinstance(input, PackedSequence) else input
        wrong = no_tensor(input, hx) or at_odds(self)
        tensors = (data, hx, *(weight for layer in weights for weight in layer))
        if wrong is not None or tracing() or shown_to_others(self.backend, *tensors):
            return self.torchs(input, hx, wrong)
        if not strided(data, hx):
            return left_to_torch(self.torchs(input, hx), self.backend, tensors)
        batch_sizes = sorted_indices = unsorted_indices = None
        rows, state = input, hx  # time-major and batched, from here on
        packed = isinstance(input, PackedSequence)
        unbatched = not packed and input.dim() == 2
        if packed:
            rows, batch_sizes, sorted_indices, unsorted_indices = input
            # A graph has no number for batch_sizes[0]; there the operator checks hx when it runs.
            known = hx is None or not torch.compiler.is_compiling()
            batch = int(batch_sizes[0]) if known else hx.shape[1]
            if hx is not None and sorted_indices is not None:
                state = hx.index_select(1, sorted_indices)
        elif unbatched:
            rows, batch = input.unsqueeze(1), 1
            state = hx.unsqueeze(1) if hx is not None else None
        elif input.dim() == 3:
            rows = input.transpose(0, 1) if self.batch_first else input
            batch = rows.shape[1]
        else:
            return self.torchs(input, hx)  # raises torch's own error

        if not self._fits(rows, state, batch, packed, weights) or (
            len(weights) > 1 and self._left_to_torch(rows, state, batch, batch_sizes, weights)
        ):
            return self.torchs(input, hx)

        output, h_n = self._layers(rows, state, batch, batch_sizes, weights)
        if packed:
            if unsorted_indices is not None:
                h_n = h_n.index_select(1, unsorted_indices)
            return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), h_n
        if unbatched:
            return output.squeeze(1), h_n.squeeze(1)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def _layer_weights(self) -> list[list[Any]]:
        """The weights of every layer and direction, read anew in each call.

        So that whatever replaces them is seen: pruning, parametrizations, functional_call. Most are
        still parameters, and finding those in their dict is several times faster than getattr.
        """
        parameters = self._parameters
        layers = []
        for names in self._all_weights:  # a comprehension in another takes longer
            layers.append([parameters[name] if name in parameters else getattr(self, name) for name in names])
        return layers

    def _fits(
        self, rows: Tensor, hx: Optional[Tensor], batch: int, packed: bool, weights: list[list[Any]]
    ) -> bool:
        """Whether the arguments are right; what is wrong with them is then for torch to say."""
        return (
            rows.dim() == (2 if packed else 3)
            and rows.shape[-1] == self.input_size
            and weights[0][1].shape[-1] == self.hidden_size
            and rows.shape[0] > 0
            and (rows.dtype is weights[0][0].dtype or autocast_on(rows))
            and rows.device == weights[0][0].device
            and (hx is None or hx.dim() == 3)
            and (hx is None or hx.shape == (len(weights), batch, self.hidden_size))
        )

    def _left_to_torch(
        self,
        rows: Tensor,
        hx: Optional[Tensor],
        batch: int,
        batch_sizes: Optional[Tensor],
        weights: list[list[Any]],
    ) -> bool:
        """Whether torch is the best for every layer of a stack; then it gets the whole stack in one call."""
        if batch_sizes is not None and not watched(rows, hx):
            check_batch_sizes(batch_sizes, rows.shape[0], batch)
        if needs_composite() or watched(rows, hx, *(weight for layer in weights for weight in layer)):
            return False
        steps = rows.shape[0] if batch_sizes is None else batch_sizes.shape[0]
        grad = needs_grad(rows, hx, *(weight for layer in weights for weight in layer))
        widths = [self.input_size]
        if self.num_layers > 1:
            widths.append(self.hidden_size * (2 if self.bidirectional else 1))
        return all(
            solver_of(
                "sequence",
                rows,
                width,
                self.hidden_size,
                batch,
                steps,
                batch_sizes is not None,
                grad,
                self.backend,
            ).name
            == "aten"
            for width in widths
        )

    def _layers(
        self,
        rows: Tensor,
        hx: Optional[Tensor],
        batch: int,
        batch_sizes: Optional[Tensor],
        weights: list[list[Any]],
    ) -> tuple[Tensor, Tensor]:
        if hx is None:
            states = (rows.new_zeros(batch, self.hidden_size),) * len(weights)
        else:
            states = hx.unbind(0)
        directions = 2 if self.bidirectional else 1
        last: list[Tensor] = []  # h_n of every layer and direction
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout != 0 and self.training:
                rows = torch.dropout(rows, self.dropout, True)
            outputs = []
            for direction in range(directions):
                i = layer * directions + direction
                weight_ih, weight_hh, *biases = weights[i]
                bias_ih, bias_hh = biases or (None, None)
                output, h_n = rnn_sequence(
                    rows,
                    states[i],
                    weight_ih,
                    weight_hh,
                    bias_ih,
                    bias_hh,
                    NONLINEARITIES[self.mode],
                    reverse=direction == 1,
                    batch_sizes=batch_sizes,
                    backend=self.backend,
                )
                outputs.append(output)
                last.append(h_n)
            rows = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        return rows, last[0].unsqueeze(0) if len(last) == 1 else torch.stack(last)
