"""torch's module and ours with the same weights, and the comparison of all that comes out of them."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import rnnfast


def pair(input_size: int, hidden_size: int, *, backend: str = "auto", cell: bool = False, **kwargs: Any):
    """(torch's module, ours), by default of float64, where there is no rounding to speak of."""
    kwargs.setdefault("dtype", torch.float64)
    name = "RNNCell" if cell else "RNN"
    theirs = getattr(torch.nn, name)(input_size, hidden_size, **kwargs)
    ours = getattr(rnnfast, name)(input_size, hidden_size, **kwargs, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def flat(result: Any) -> list[Tensor]:
    """The tensors of a module's result."""
    if isinstance(result, Tensor):
        return [result]
    return [part.data if isinstance(part, PackedSequence) else part for part in result]


def outputs_and_gradients(module: torch.nn.Module, input: Any, hx: Optional[Tensor]) -> dict[str, Any]:
    """Runs `module` forward and backward on copies of its arguments."""
    module.zero_grad(set_to_none=True)
    arguments: dict[str, Optional[Tensor]] = {}
    for name, value in (("input", input), ("hx", hx)):
        data = value.data if isinstance(value, PackedSequence) else value
        if data is not None:
            requires_grad = getattr(data, "requires_grad", False)
            data = data.detach().requires_grad_(requires_grad)
        arguments[name] = data
    x = arguments["input"]
    if isinstance(input, PackedSequence):
        x = PackedSequence(x, *input[1:])
    result = module(x, arguments["hx"])
    outputs = flat(result)
    seen: dict[str, Any] = {f"output {i}": output for i, output in enumerate(outputs)}
    if isinstance(result, tuple) and isinstance(result[0], PackedSequence):
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            seen[name] = getattr(result[0], name)
    if any(output.requires_grad for output in outputs):
        sum(
            (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in outputs
        ).backward()
    for name, value in (*arguments.items(), *module.named_parameters()):
        seen[f"gradient of {name}"] = None if value is None else value.grad
    return seen


def assert_same(
    theirs: torch.nn.Module, ours: torch.nn.Module, input: Any, hx: Optional[Tensor] = None
) -> None:
    """Outputs and every gradient of the two agree, as do their shapes, dtypes and strides."""
    expected = outputs_and_gradients(theirs, input, hx)
    actual = outputs_and_gradients(ours, input, hx)
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            assert actual[name] is not None, name
            where = f"{name}: {{}}".format
            torch.testing.assert_close(actual[name], value, check_stride=value.numel() > 0, msg=where)
