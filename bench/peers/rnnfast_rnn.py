"""rnnfast.RNN and rnnfast.RNNCell: with backend="auto", and with each backend by name.

Called exactly as the torch.nn adapter calls torch's modules. A named backend never falls back: it runs or
its cell says why not.
"""

from __future__ import annotations

from functools import partial
from typing import Optional

import rnnfast
from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared
from bench.peers.modules import prepare_modules
from rnnfast import dispatch
from rnnfast.backends.base import Problem

DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}


class Rnnfast(Peer):
    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = "rnnfast" if backend == "auto" else f"rnnfast-{backend}"
        self.devices = DEVICES.get(backend, ("cpu", "cuda"))

    def available(self) -> Optional[str]:
        return None if self.backend == "auto" else dispatch.unavailable(self.backend)

    def refuses(self, case: Case) -> Optional[str]:
        if self.backend == "auto":
            return None
        names = ("kind", "device", "dtype", "input_size", "hidden_size", "batch", "steps", "packed")
        names += ("layers", "directions", "tf32")
        problem = Problem(**{name: getattr(case, name) for name in names}, grad=case.training)
        return dispatch.why_not(self.backend, problem)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        rnn = partial(rnnfast.RNN, backend=self.backend)
        cell = partial(rnnfast.RNNCell, backend=self.backend)
        return prepare_modules(case, inputs, rnn, cell)
