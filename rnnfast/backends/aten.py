"""torch's own kernels (ATen on the CPU, cuDNN on CUDA), called as torch.nn's modules call them.

torch's backward needs tensors that torch's forward saved, which the contract does not pass on. The backward
here is therefore that of eager. Wherever torch can differentiate its own call, which is everywhere but in
captured graphs, `rnnfast.functional` calls `torch_call` instead.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from ..arguments import check_extras
from ..call import Call, Network
from ..context import tracing
from ..layer import Layer
from .base import Problem
from .eager import EagerBackend


def torch_call(
    network: Network,
    x: Any,
    h0: Any,
    weights: tuple[Any, ...],
    batch_sizes: Optional[Tensor] = None,
    resets: Optional[Tensor] = None,
) -> tuple[Tensor, ...]:
    """A call in torch's own operators, differentiable by torch; arguments as in `call.Call`, of any kind.

    Returns:
        ``(out,)`` of a step, else ``(out, h_n)``.

    Raises:
        RuntimeError: torch doesn't take these arguments, or has no operator for what the network adds to its
            own RNN; what it has to say of the arguments that it knows is said first.

    torch offers the reverse direction only as half of a bidirectional layer, so the rows of each sequence are
    reversed before the call and after it.
    """
    if network.extras:
        return _without_extras(network, x, h0, weights, batch_sizes, resets)
    tanh = network.nonlinearity == "tanh"
    if network.step:
        cell = torch.rnn_tanh_cell if tanh else torch.rnn_relu_cell
        unbatched = network.module and x.dim() == 1
        if unbatched:
            x, h0 = x.unsqueeze(0), None if h0 is None else h0.unsqueeze(0)
        if h0 is None and network.module:
            h0 = x.new_zeros(x.shape[0], weights[1].shape[0])
        out = cell(x, h0, *weights, *(() if network.biases else (None, None)))
        return (out.squeeze(0) if unbatched else out,)
    if batch_sizes is None and network.module and x.dim() == 2:
        h0 = None if h0 is None else h0.unsqueeze(1)
        batched = network._replace(batch_first=False)
        out, h_n = torch_call(batched, x.unsqueeze(1), h0, weights)
        return out.squeeze(1), h_n.squeeze(1)
    stacked = network.module or (isinstance(h0, Tensor) and h0.dim() > 2)
    if h0 is None and network.module:
        batch = int(batch_sizes[0]) if batch_sizes is not None else x.shape[0 if network.batch_first else 1]
        h0 = x.new_zeros(network.layers * len(network.reverse), batch, weights[1].shape[0])
    layer = torch.rnn_tanh if tanh else torch.rnn_relu
    # cuDNN differentiates only what was computed in training mode; without dropout that changes nothing else.
    training = torch.is_grad_enabled() or tracing()  # a trace may later be differentiated
    rest = (network.biases, network.layers, 0.0, training, len(network.reverse) == 2)
    states = h0 if stacked else torch.unsqueeze(h0, 0)
    back = network.reverse == (True,)
    if batch_sizes is None:
        rows = torch.flip(x, (0,)) if back else x
        out, h_n = layer(rows, states, weights, *rest, network.batch_first)
        out = out.flip(0) if back else out
    elif not back:
        out, h_n = layer(x, batch_sizes, states, weights, *rest)
    else:
        turn = _reversed_rows(batch_sizes, states.shape[1]).to(x.device)
        out, h_n = layer(x.index_select(0, turn), batch_sizes, states, weights, *rest)
        out = out.index_select(0, turn)
    return out, h_n if stacked else h_n.squeeze(0)


def _without_extras(
    network: Network,
    x: Any,
    h0: Any,
    weights: tuple[Any, ...],
    batch_sizes: Optional[Tensor],
    resets: Optional[Tensor],
) -> tuple[Tensor, ...]:
    """Raises: torch's own error for what an RNN of torch's would get, else that there is no such operator."""
    plain = network._replace(nonlinearity="tanh", cell="elman", noise=False, resets=False)
    theirs = [weight for i, weight in enumerate(weights) if i % network.per < plain.per]
    torch_call(plain, x, h0, tuple(theirs), batch_sizes)
    check_extras(network, x, weights, resets, batch_sizes is not None)
    raise RuntimeError(
        f"{network.extras}: only dense tensors of float64, float32, bfloat16 or float16 will do here, of one"
        f" dtype on one device, with shapes that fit; x is {list(x.shape)} {x.dtype} on {x.device}"
    )


def _reversed_rows(batch_sizes: Tensor, batch: int) -> Tensor:
    """For each packed row the row that takes its place when every sequence is reversed.

    In operators and shapes alone, so that `torch.jit.trace` records it for any batch.
    """
    sequences = torch.arange(batch, device=batch_sizes.device)
    present = sequences < batch_sizes.unsqueeze(1)  # [T, B]
    lengths = present.sum(0)
    starts = batch_sizes.cumsum(0) - batch_sizes
    steps = (lengths - 1 - torch.arange(batch_sizes.shape[0], device=batch_sizes.device).unsqueeze(1))[
        present
    ]
    return starts[steps] + sequences.expand_as(present)[present]


class AtenBackend(EagerBackend):
    name = "aten"

    def refuses(self, problem: Problem) -> Optional[str]:
        return f"torch has no operator with {problem.extras}" if problem.extras else None

    def forward(self, call: Call) -> tuple[Tensor, ...]:
        if call.network.layers == 1:
            return torch_call(call.network, call.x, call.h0, call.weights, call.batch_sizes)
        return super().forward(call)  # torch's operator doesn't return what lies between layers

    def step_forward(self, layer: Layer) -> Tensor:
        return torch_call(
            Network(layer.nonlinearity, biases=layer.bias_ih is not None, step=True), *_of(layer)
        )[0]

    def layer_forward(self, layer: Layer) -> tuple[Tensor, Tensor, None]:
        network = Network(layer.nonlinearity, reverse=(layer.reverse,), biases=layer.bias_ih is not None)
        x, h0, weights = _of(layer)
        batch = h0.shape[0]
        steps = x.shape[0] // batch if batch else 1
        rows = x if layer.batch_sizes is not None else x.view(steps, batch, x.shape[1])
        out, h_n = torch_call(network, rows, h0, weights, layer.batch_sizes)
        return out.reshape(x.shape[0], out.shape[-1]), h_n, None


def _of(layer: Layer) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    return layer.x, layer.h0, tuple(weight for weight in layer[2:6] if weight is not None)
