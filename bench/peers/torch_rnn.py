"""torch.nn.RNN and torch.nn.RNNCell, eager: ATen's operators on the CPU, cuDNN on CUDA (in float32 with
TF32 or without, as the case has it: `bench.suites.cell` sets it for everybody).

Fair: called as everybody calls it, time-major (its native order), weights in the module, oneDNN and MKL as
the build of torch has them, no dropout. Inference runs under no_grad.
"""

from __future__ import annotations

from typing import Optional

import torch

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared
from bench.peers.modules import prepare_modules


class TorchRNN(Peer):
    name = "torch-rnn"
    devices = ("cpu", "cuda")

    def available(self) -> Optional[str]:
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return prepare_modules(case, inputs, torch.nn.RNN, torch.nn.RNNCell)
