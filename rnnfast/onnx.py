"""What `torch.onnx.export(dynamo=True)` sees: ONNX's own RNN operator, one for each layer and direction.

No decomposition: the exported model keeps dynamic T and B, and ONNX Runtime runs its own fused kernel, which
it has for float32 alone. Other dtypes get what torch.nn.RNN is exported to, a graph unrolled for one number
of steps. ONNX has no counterpart of PackedSequence; models have to be exported with padded sequences.
`torch.onnx.export(dynamo=False)` traces, so it sees torch's operator and exports that.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .call import Network

# The opset that the RNN operator has had its present form from; later ones only add dtypes.
OPSET = 14

# The one dtype that ONNX Runtime runs it in.
DTYPE = torch.float32


def rnn(
    network: Network,
    x: Tensor,  # [T, B, I]
    h0: Optional[Tensor],  # [L * D, B, H], of a function [B, H]
    weights: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:  # [T, B, D * H], like h0
    """The arguments are those of a dense `call.Call`."""
    steps, batch, _ = x.shape
    per, directions = network.per, len(network.reverse)
    hidden_size = weights[1].shape[0]
    states = x.new_zeros(network.layers * directions, batch, hidden_size) if h0 is None else h0
    states = states.reshape(network.layers * directions, batch, hidden_size)
    last = []
    for layer in range(network.layers):
        halves = []
        for d, reverse in enumerate(network.reverse):
            i = layer * directions + d
            weight_ih, weight_hh, *biases = weights[i * per : (i + 1) * per]
            bias = torch.cat(biases) if biases else weight_hh.new_zeros(2 * hidden_size)
            state = states[i].unsqueeze(0)
            inputs = (x, weight_ih.unsqueeze(0), weight_hh.unsqueeze(0), bias.unsqueeze(0), None, state)
            output, h_n = torch.onnx.ops.symbolic_multi_out(
                "::RNN",
                inputs,  # the fifth are the lengths
                {
                    "hidden_size": hidden_size,
                    "activations": [network.nonlinearity.capitalize()],
                    "direction": "reverse" if reverse else "forward",
                },
                dtypes=(x.dtype, x.dtype),
                shapes=([steps, 1, batch, hidden_size], [1, batch, hidden_size]),
                version=OPSET,
            )
            halves.append(output.squeeze(1))
            last.append(h_n)
        x = halves[0] if directions == 1 else torch.cat(halves, dim=-1)
    h_n = torch.cat(last)
    return x, h_n if h0 is None else h_n.reshape(h0.shape)
