"""Contenders that are a pair of modules with the interface of torch.nn.RNN and torch.nn.RNNCell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Prepared, by_autograd


def prepare_modules(
    case: Case, inputs: Inputs, rnn: Callable[..., nn.Module], cell: Callable[..., nn.Module]
) -> Prepared:
    """One call of the module per timed call. Packing is done beforehand: it is part of loading data."""
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    sizes: dict[str, Any] = {"nonlinearity": case.nonlinearity, "device": device, "dtype": dtype}
    x, h0, grad = (t.to(device) for t in (inputs.x, inputs.h0, inputs.grad_output))

    if case.kind == "step":
        module = cell(case.input_size, case.hidden_size, **sizes)
        _load(module, {name[: -len("_l0")]: p for name, p in inputs.parameters.items()})
        return by_autograd(
            case, lambda: module(x[0], h0[0]), list(module.parameters()), lambda y: y[None], grad[0]
        )

    module = rnn(
        case.input_size, case.hidden_size, num_layers=case.layers, bidirectional=case.directions == 2, **sizes
    )
    _load(module, inputs.parameters)
    parameters = list(module.parameters())
    if inputs.lengths is None:
        return by_autograd(case, lambda: module(x, h0)[0], parameters, lambda y: y, grad)

    packed_x, packed_grad = (pack_padded_sequence(t, inputs.lengths) for t in (x, grad))

    def dense(rows: Tensor) -> Tensor:
        packed = PackedSequence(rows, packed_x.batch_sizes)
        return pad_packed_sequence(packed, total_length=case.steps)[0]

    return by_autograd(case, lambda: module(packed_x, h0)[0].data, parameters, dense, packed_grad.data)


def _load(module: nn.Module, parameters: dict[str, Tensor]) -> None:
    module.load_state_dict(parameters)
