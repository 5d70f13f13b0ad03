"""OpenVINO's RNNSequence on its CPU plugin, inference only, compiled from the same ONNX model as ONNX
Runtime's.

Fair: weights are constants, so that the plugin packs them at compile time (reported, not timed); latency
hint, one stream, as many threads as the others; input and output tensors are set in advance and shared
without a copy. The model is time-major, which is the order of oneDNN underneath; a batch-major model of the
same layer was no faster. The precision is pinned to the case's type: left alone, the plugin computes
float32 models in bfloat16 on machines that have it. For a bfloat16 case input and output stay float32,
which spares the plugin nothing but two conversions.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any, Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers import onnx_model
from bench.peers.base import Peer, Prepared

PRECISION = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoRNN(Peer):
    name = "openvino"

    def available(self) -> Optional[str]:
        missing = [package for package in ("openvino", "onnx") if find_spec(package) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def refuses(self, case: Case) -> Optional[str]:
        if case.training:
            return "inference only"
        if case.kind == "step":
            return "the adapter is the RNN operator"
        return None if case.dtype in PRECISION else f"no {case.dtype}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        import openvino

        core = openvino.Core()
        model = core.read_model(onnx_model.build(case, inputs), b"")
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION[case.dtype],
            "INFERENCE_NUM_THREADS": case.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        start = time.perf_counter()
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        seconds = time.perf_counter() - start

        feeds = {"x": inputs.x.float().numpy()}
        if inputs.lengths is not None:
            feeds["lengths"] = inputs.lengths.int().numpy()
        for layer in range(case.layers):
            feeds[f"h0_{layer}"] = inputs.h0[layer * case.directions :][: case.directions].float().numpy()
        for name, array in feeds.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

        def call(_feeds: object = feeds) -> Any:  # shared, not copied: they have to stay alive
            request.infer()
            return request

        def unpack(done: Any) -> tuple[Tensor, list[Tensor]]:
            y = torch.from_numpy(done.get_tensor("y").data.copy())
            return y.transpose(1, 2).flatten(2), []

        return Prepared(call, unpack, seconds)
