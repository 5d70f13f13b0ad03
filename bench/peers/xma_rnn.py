"""XMA (accelerated-model-architectures): `xma.functional.rnn`, a Triton recurrence h = tanh(h W + x). CUDA
only.

Fair: the recurrence is XMA's, with one head; the input product, which XMA leaves to its caller, is one
hoisted torch linear inside the timed call; batch-major, its native order. Not run by the project yet on a
machine that has it; the check against float64 comes before any timing here as everywhere.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared, by_autograd


class XmaRNN(Peer):
    name = "xma"
    devices = ("cuda",)

    def available(self) -> Optional[str]:
        if find_spec("xma") is None:
            return "not installed: xma"
        return None if torch.cuda.is_available() else "no CUDA device"

    def refuses(self, case: Case) -> Optional[str]:
        plain = case.kind == "sequence" and case.layout == "dense" and case.nonlinearity == "tanh"
        return None if plain else "the adapter is one dense tanh layer"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        from xma.functional import rnn

        x, h0 = inputs.x.transpose(0, 1).contiguous().cuda(), inputs.h0.transpose(0, 1).contiguous().cuda()
        parameters = [p.cuda().requires_grad_(case.training) for p in inputs.parameters.values()]
        w_ih, w_hh, b_ih, b_hh = parameters

        def forward() -> Tensor:
            pre = linear(x, w_ih, b_ih + b_hh)
            return rnn(pre[:, :, None], w_hh.T.contiguous()[None], h0)[0]

        grad = inputs.grad_output.transpose(0, 1).contiguous().cuda()[:, :, None]
        return by_autograd(case, forward, parameters, lambda y: y[:, :, 0].transpose(0, 1), grad)
