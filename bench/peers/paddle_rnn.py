"""PaddlePaddle's SimpleRNN on the CPU, forward and backward, through its own kernels (`paddle.nn.SimpleRNN`).

Fair: called as its users call it, time-major, which is the order of its kernel; weights in the module,
tensors made in advance. Its threads are those of OMP_NUM_THREADS and MKL_NUM_THREADS, which a worker has set
before anything is imported. Inference runs in eval mode under no_grad, training through `paddle.grad` of the
module's parameters.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared

DTYPES = ("float32", "float64")


class PaddleRNN(Peer):
    name = "paddle"

    def available(self) -> Optional[str]:
        return None if find_spec("paddle") else "not installed: paddlepaddle"

    def refuses(self, case: Case) -> Optional[str]:
        if case.kind == "step":
            return "the adapter is a layer over a sequence"
        return None if case.dtype in DTYPES else f"no {case.dtype} on a CPU"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        import paddle

        paddle.set_device("cpu")
        paddle.set_default_dtype(case.dtype)  # of the parameters that a module makes
        rnn = paddle.nn.SimpleRNN(
            case.input_size,
            case.hidden_size,
            num_layers=case.layers,
            direction="bidirect" if case.directions == 2 else "forward",
            time_major=True,
            activation=case.nonlinearity,
        )
        rnn.set_state_dict({name: _to_paddle(paddle, p) for name, p in inputs.parameters.items()})
        rnn.train() if case.training else rnn.eval()
        x, h0, grad = (_to_paddle(paddle, t) for t in (inputs.x, inputs.h0, inputs.grad_output))
        lengths = None if inputs.lengths is None else _to_paddle(paddle, inputs.lengths)
        named = dict(rnn.named_parameters())
        parameters = [named[name] for name in inputs.parameters]

        def forward() -> Any:
            return rnn(x, h0, sequence_length=lengths)[0]

        def infer() -> Any:
            with paddle.no_grad():
                return forward()

        def train() -> tuple[Any, list[Any]]:
            output = forward()
            return output, paddle.grad(output, parameters, grad)

        def unpack(result: Any) -> tuple[Tensor, list[Tensor]]:
            output, gradients = result if case.training else (result, [])
            return _to_torch(output), [_to_torch(g) for g in gradients]

        return Prepared(train if case.training else infer, unpack)


def _to_paddle(paddle: Any, tensor: Tensor) -> Any:
    return paddle.to_tensor(tensor.detach().numpy())


def _to_torch(tensor: Any) -> Tensor:
    return torch.from_numpy(tensor.numpy())
