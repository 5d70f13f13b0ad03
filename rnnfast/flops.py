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

Shape = Sequence[int]
_OPS = torch.ops.rnnfast


@register_flop_formula([_OPS.rnn_step, _OPS.rnn_sequence])
def _forward(x: Shape, h0: Shape, *args: Any, **kwargs: Any) -> int:
    """x W_ih^T and h W_hh^T for every row."""
    return 2 * math.prod(x[:-1]) * h0[-1] * (x[-1] + h0[-1])


@register_flop_formula(_OPS.rnn_step_backward)
def _step_backward(grad: Shape, x: Shape, h: Shape, *args: Any, **kwargs: Any) -> int:
    return _backward(x, h, needs=args[-2])


@register_flop_formula(_OPS.rnn_sequence_backward)
def _sequence_backward(grad_out: Any, grad_hn: Any, x: Shape, h0: Shape, *args: Any, **kwargs: Any) -> int:
    return _backward(x, h0, needs=args[-2])


def _backward(x: Shape, h0: Shape, needs: Sequence[bool]) -> int:
    """dpre W_ih, dpre^T x, dpre^T h_prev, each if needed, and dpre W_hh, which carries the gradient back.

    The last is always needed but for the B rows whose predecessor is h0.
    """
    rows, inputs, (batch, hidden) = math.prod(x[:-1]), x[-1], h0
    needs_x, needs_h0, needs_weight_ih, needs_weight_hh, _ = needs
    carried = rows if needs_h0 else rows - batch
    products = rows * inputs * (needs_x + needs_weight_ih) + hidden * (rows * needs_weight_hh + carried)
    return 2 * hidden * products
