"""ONNX Runtime's RNN operator on its CPU provider, inference only.

Fair: weights are initialisers, so that the session can pack them once; the session is warm; input and
output are bound in advance, so that no call copies or allocates; its thread pool has as many threads as the
others. The pool spins while a call runs, as by default, but is told to stop when the call ends: otherwise
it would take the cores of whoever is timed next.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers import onnx_model
from bench.peers.base import Peer, Prepared


class OnnxRuntimeRNN(Peer):
    name = "onnxruntime"

    def available(self) -> Optional[str]:
        missing = [package for package in ("onnxruntime", "onnx") if find_spec(package) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def refuses(self, case: Case) -> Optional[str]:
        if case.training:
            return "inference only"
        if case.kind == "step":
            return "the adapter is the RNN operator"
        return None if case.dtype == "float32" else "its CPU operator is float32 only"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            onnx_model.build(case, inputs), options, providers=["CPUExecutionProvider"]
        )
        feeds = {"x": inputs.x.numpy()}
        if inputs.lengths is not None:
            feeds["lengths"] = inputs.lengths.int().numpy()
        for layer in range(case.layers):
            feeds[f"h0_{layer}"] = inputs.h0[layer * case.directions :][: case.directions].numpy()
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        shape = (case.steps, case.directions, case.batch, case.hidden_size)
        output = onnxruntime.OrtValue.ortvalue_from_numpy(torch.zeros(shape).numpy())
        binding.bind_ortvalue_output("y", output)

        def call(_feeds: object = feeds) -> Any:  # bound by address: they have to stay alive
            session.run_with_iobinding(binding)
            return output

        def unpack(value: Any) -> tuple[Tensor, list[Tensor]]:
            y = torch.from_numpy(value.numpy().copy())
            return y.transpose(1, 2).flatten(2), []

        return Prepared(call, unpack)
