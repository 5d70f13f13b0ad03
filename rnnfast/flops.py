"""How many operations our operators do, for `torch.utils.flop_counter.FlopCounterMode`.

As everywhere there: only products count, and a multiply-add counts as two. The formulas are registered on
import, because around a compiled model it would be too late when a counter is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import ops  # noqa: F401, defines the operators
from .backends.base import lowest_layer
from .call import Network

Shape = Sequence[int]
_OPS = torch.ops.rnnfast


@register_flop_formula(_OPS.rnn)
def _forward(x: Shape, h0: Shape, weights: Sequence[Shape], *args: Any, **kwargs: Any) -> int:
    """x W_ih^T and h W_hh^T for every row."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


@register_flop_formula(_OPS.rnn_backward)
def _backward(
    x: Shape,
    h0: Shape,
    weights: Sequence[Shape],
    batch_sizes: Any,
    resets: Any,
    nonlinearity: str,
    *rest: Any,
    **kwargs: Any,
) -> int:
    """dpre W_ih, dpre^T x, dpre^T h_prev, each if needed, and dpre W_hh, which carries the gradient back.

    The last is always needed but for the B rows whose predecessor is h0. A continuous-time cell's dalpha
    takes the products of the forward pass once more.
    """
    layers, reverse, biases, step, cell, noise, *_, needs, _ = rest
    network = Network("tanh", layers, tuple(reverse), biases, step, cell=cell, noise=noise)
    rows, batch = math.prod(x[:-1]), h0[-2] if h0 is not None else x[-2]
    per, lowest = network.per, lowest_layer(network, tuple(needs))
    total = 0
    for i in range(0, len(weights), per):
        layer = i // per // len(reverse)
        if layer < lowest:
            continue
        of_input, recurrent = math.prod(weights[i]), math.prod(weights[i + 1])
        needs_x = needs[0] if layer == 0 else layer > lowest
        total += rows * of_input * (needs_x + needs[2 + i])
        total += recurrent * (rows * needs[3 + i] + (rows if needs[1] else rows - batch))
        if cell == "ctrnn" and needs[2 + i + network.parts.index("alpha")]:
            total += rows * (of_input + recurrent)
    return 2 * total
