"""torch.compile of an explicit loop over the steps.

Fair: the input product for all steps is hoisted out of the loop, shapes are static, the whole loop is one
graph (fullgraph) and is compiled before it is timed. Compile time grows with T, because the loop is
unrolled, to minutes at T = 100; so T is bounded here, and the seconds of the first call are reported.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared, by_autograd, only_plain

LONGEST = 35


class TorchCompileLoop(Peer):
    name = "torch-compile-loop"

    def available(self) -> Optional[str]:
        compilers = ("c++", "g++", "clang++")
        return None if any(map(shutil.which, compilers)) else "torch.compile needs a C++ compiler"

    def refuses(self, case: Case) -> Optional[str]:
        if case.steps > LONGEST:
            return f"the loop is unrolled: compiling takes too long beyond T = {LONGEST}"
        return only_plain(case)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        activation = {"tanh": torch.tanh, "relu": torch.relu}[case.nonlinearity]
        steps = case.steps

        def loop(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
            pre = torch.nn.functional.linear(x, w_ih, b_ih + b_hh)
            output = []
            for t in range(steps):
                h = activation(torch.addmm(pre[t], h, w_hh.T))
                output.append(h)
            return torch.stack(output)

        # Without the reset the compiler counts every shape as a recompilation of one function, and gives up.
        torch.compiler.reset()
        compiled = torch.compile(loop, fullgraph=True, dynamic=False)
        parameters = [p.clone().requires_grad_(case.training) for p in inputs.parameters.values()]

        def forward() -> Tensor:
            return compiled(inputs.x, inputs.h0[0], *parameters)

        prepared = by_autograd(case, forward, parameters, lambda y: y, inputs.grad_output)
        start = time.perf_counter()
        prepared.call()
        return replace(prepared, compile_seconds=time.perf_counter() - start)
