"""FlagGems: torch.nn.RNN with FlagGems' Triton operators in place of cuDNN. CUDA only.

Fair: the same module and call as the torch.nn adapter, inside FlagGems' own `use_gems` context, so that its
rnn_tanh takes the place of torch's. Releases up to 5.0.2 have none: with them it would be cuDNN that is
timed, so they don't take part. Not run by the project yet on a machine that has it; the check against float64
comes before any timing here as everywhere.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Optional

import torch

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared
from bench.peers.modules import prepare_modules


class FlagGemsRNN(Peer):
    name = "flaggems"
    devices = ("cuda",)

    def available(self) -> Optional[str]:
        if find_spec("flag_gems") is None:
            return "not installed: flag_gems"
        if not torch.cuda.is_available():
            return "no CUDA device"
        import flag_gems

        return None if hasattr(flag_gems.ops, "rnn_tanh") else "this release of flag_gems has no rnn_tanh"

    def refuses(self, case: Case) -> Optional[str]:
        if case.nonlinearity != "tanh":
            return "it has rnn_tanh only"
        return "no RNNCell operator of its own" if case.kind == "step" else None

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        import flag_gems

        plain = prepare_modules(case, inputs, torch.nn.RNN, torch.nn.RNNCell)

        def call() -> Any:
            with flag_gems.use_gems():
                return plain.call()

        return Prepared(call, plain.unpack, wait=plain.wait)
