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

# The opset that the RNN operator has had its present form from; later ones only add dtypes.
OPSET = 14

# The one dtype that ONNX Runtime runs it in.
DTYPE = torch.float32


def rnn_sequence(
    x: Tensor,  # [T, B, I]
    h0: Tensor,  # [B, H]
    weight_ih: Tensor,  # [H, I]
    weight_hh: Tensor,  # [H, H]
    bias_ih: Optional[Tensor],  # [H]
    bias_hh: Optional[Tensor],  # [H]
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:  # [T, B, H], [B, H]
    steps, batch, _ = x.shape
    hidden_size = h0.shape[1]
    zeros = weight_hh.new_zeros(hidden_size)
    biases = [zeros if bias is None else bias for bias in (bias_ih, bias_hh)]
    inputs = (
        x,
        weight_ih.unsqueeze(0),
        weight_hh.unsqueeze(0),
        torch.cat(biases).unsqueeze(0),
        None,  # sequence_lens
        h0.unsqueeze(0),
    )
    output, h_n = torch.onnx.ops.symbolic_multi_out(
        "::RNN",
        inputs,
        {
            "hidden_size": hidden_size,
            "activations": [nonlinearity.capitalize()],
            "direction": "reverse" if reverse else "forward",
        },
        dtypes=(x.dtype, x.dtype),
        shapes=([steps, 1, batch, hidden_size], [1, batch, hidden_size]),
        version=OPSET,
    )
    return output.squeeze(1), h_n.squeeze(0)
