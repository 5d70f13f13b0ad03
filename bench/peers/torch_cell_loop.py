"""A Python loop over torch.nn.RNNCell: what people write when they need a step of their own.

Fair: the plain idiom, `torch.stack` once at the end. The input product cannot be hoisted, as the cell has
it inside; that is the idiom's price, not the adapter's.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared, by_autograd, only_plain


class TorchCellLoop(Peer):
    name = "torch-cell-loop"

    def available(self) -> Optional[str]:
        return None

    def refuses(self, case: Case) -> Optional[str]:
        return only_plain(case)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        cell = torch.nn.RNNCell(
            case.input_size,
            case.hidden_size,
            nonlinearity=case.nonlinearity,
            dtype=getattr(torch, case.dtype),
        )
        cell.load_state_dict({name[: -len("_l0")]: p for name, p in inputs.parameters.items()})

        def forward() -> Tensor:
            h, output = inputs.h0[0], []
            for x in inputs.x.unbind():
                h = cell(x, h)
                output.append(h)
            return torch.stack(output)

        return by_autograd(case, forward, list(cell.parameters()), lambda y: y, inputs.grad_output)
