"""A problem's call, as rnnfast and as torch make it, and what comes of it."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, invert_permutation

import rnnfast
from rnnfast import functional
from rnnfast.backends.aten import torch_sequence, torch_step

from . import captures
from .around import around
from .problem import BACKWARDS, FUNCTIONS, MODULES, Problem
from .tensors import Duck, dtype_of, gradient_numbers, side

Outputs = dict[str, Any]


@dataclass
class Outcome:
    """Either an exception and the phase in which it came, or tensors by name."""

    phase: str = "construction"
    error: Exception | None = None
    tensors: dict[str, Tensor | None] = field(default_factory=dict)

    @property
    def trace(self) -> str:
        return "".join(traceback.format_exception(self.error, limit=-6)) if self.error is not None else ""


def run(
    p: Problem,
    ours: bool,
    data: dict[str, Tensor],
    dtype: torch.dtype,
    exact: bool = False,
    captured: Problem | None = None,
) -> Outcome:
    """The outcome of one side.

    Args:
        p: the problem of the call.
        ours: whether rnnfast or torch makes it.
        data: the numbers of `p`, in float64.
        dtype: in which to make it.
        exact: for the truth, which is torch's side without what mustn't change numbers.
        captured: the problem with whose arguments the call is captured first, if it is.
    """
    outcome = Outcome()
    torch.set_num_threads(p.threads if ours else 1)
    try:
        _run(p, ours, data, dtype, exact, captured, outcome)
    except Exception as error:
        outcome.error = error
    return outcome


def _run(
    p: Problem,
    ours: bool,
    data: dict[str, Tensor],
    dtype: torch.dtype,
    exact: bool,
    captured: Problem | None,
    outcome: Outcome,
) -> None:
    tensors = side(p, data, dtype, exact)
    with around(p, exact):
        if p.target in BACKWARDS:
            outcome.phase = "backward"
            outcome.tensors = (_our_backward if ours else _true_backward)(p, tensors)
            return
        function = call_of(p, ours, tensors, dtype)
        outcome.phase = "forward"
        if captured is not None:
            outputs = captures.CAPTURES[p.capture](captured, function, tensors)
        elif p.capture in captures.TRANSFORMS:
            outputs = captures.TRANSFORMS[p.capture](p, function, tensors)
        else:
            outputs = function(tensors)
        for name, value in outputs.items():
            outcome.tensors[name] = value
        if p.mode != "grad" or p.capture in captures.WITHOUT_GRADIENTS:
            return
        outcome.phase = "backward"
        _backward(p, tensors, outputs, outcome, exact)


def call_of(
    p: Problem, ours: bool, tensors: dict[str, Any], dtype: torch.dtype
) -> Callable[[dict[str, Any]], Outputs]:
    """What computes the results from tensors by name. A module's own parameters are put into `tensors`."""
    if p.target in MODULES:
        module = module_of(p, ours, tensors, dtype)
        return lambda given: _call_module(p, module, given)
    sequence = "sequence" in p.target

    def call(given: dict[str, Any]) -> Outputs:
        names = ("x", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
        args = [given.get(name) for name in names]
        batch_sizes = given.get("batch_sizes")
        if not ours and sequence:
            result = torch_sequence(*args, p.nonlinearity, batch_sizes, p.reverse)
        elif not ours:
            result = torch_step(*args, p.nonlinearity)
        elif p.target in FUNCTIONS and sequence:
            result = functional.rnn_sequence(
                *args, p.nonlinearity, reverse=p.reverse, batch_sizes=batch_sizes, backend=p.backend
            )
        elif p.target in FUNCTIONS:
            result = functional.rnn_step(*args, p.nonlinearity, backend=p.backend)
        elif sequence:
            rest = (batch_sizes, p.nonlinearity, p.reverse, False, p.backend)
            result = torch.ops.rnnfast.rnn_sequence(*args, *rest)
        else:
            result = torch.ops.rnnfast.rnn_step(*args, p.nonlinearity, False, p.backend)
        return dict(zip(("output", "h_n"), result, strict=True)) if sequence else {"output": result}

    return call


def module_of(p: Problem, ours: bool, tensors: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    kwargs: dict[str, Any] = {
        "bias": p.bias,
        "nonlinearity": p.nonlinearity,
        "device": p.device,
        "dtype": dtype,
    }
    if ours:
        kwargs["backend"] = p.backend
    if p.target == "rnn":
        kwargs.update(num_layers=p.layers, batch_first=p.batch_first)
        kwargs.update(bidirectional=p.bidirectional, dropout=p.dropout)
    library: Any = rnnfast if ours else torch.nn
    module = (library.RNN if p.target == "rnn" else library.RNNCell)(p.inputs, p.hidden, **kwargs)
    for name in list(tensors):
        if name.startswith(("weight", "bias")):
            value = tensors[name]
            if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
                value = torch.nn.Parameter(value, value.requires_grad)
            setattr(module, name, value)
            tensors[name] = value
    for name, value in p.attribute:
        setattr(module, name, value)
    return module


def _call_module(p: Problem, module: torch.nn.Module, given: dict[str, Any]) -> Outputs:
    x, hx = given["x"], given.get("hx")
    if p.target == "cell":
        return {"output": module(x, hx)}
    if p.lengths:
        order = None
        if p.shuffled:
            order = torch.randperm(
                len(p.lengths), generator=torch.Generator().manual_seed(p.seed), device="cpu"
            )
        x = PackedSequence(
            x, given["batch_sizes"], order, None if order is None else invert_permutation(order)
        )
    output, h_n = module(x, hx)
    return {"output": output.data if isinstance(output, PackedSequence) else output, "h_n": h_n}


def _gradient(p: Problem, name: str, like: Tensor) -> Tensor:
    if p.gradient == "sum" and not p.special:
        return torch.ones((), dtype=like.dtype, device=like.device).expand(like.shape)
    gradient = gradient_numbers(p, name, tuple(like.shape)).to(like.device, like.dtype)
    if p.gradient == "strided":
        gradient = torch.stack([gradient, gradient], -1).select(-1, 0)
    return gradient


def _backward(p: Problem, tensors: dict[str, Any], outputs: Outputs, outcome: Outcome, exact: bool) -> None:
    chosen = {n: o for n, o in outputs.items() if n in p.used or len(outputs) == 1}
    chosen = {n: o.tensor if isinstance(o, Duck) else o for n, o in chosen.items()}
    if not all(isinstance(o, Tensor) and o.requires_grad for o in chosen.values()):
        return
    gradients = [_gradient(p, name, output) for name, output in chosen.items()]
    plain = {n: t.tensor if isinstance(t, Duck) else t for n, t in tensors.items()}
    for _ in range(2 if p.twice else 1):
        if p.touched and not exact:
            with torch.no_grad():
                for name, tensor in {**plain, **outputs}.items():
                    if name.removesuffix("_l0") == p.touched and isinstance(tensor, Tensor):
                        tensor.mul_(1.5)
        torch.autograd.backward(list(chosen.values()), gradients, retain_graph=p.twice)
    for name, tensor in plain.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.is_leaf:
            outcome.tensors[f"gradient of {name}"] = tensor.grad


def _needs(p: Problem, tensors: dict[str, Any]) -> list[bool]:
    return [name in p.requires for name in ("x", "hx", "weight_ih", "weight_hh", "bias_ih")]


def _our_backward(p: Problem, tensors: dict[str, Any]) -> dict[str, Tensor | None]:
    needs = _needs(p, tensors)
    names = ("x", "hx", "weight_ih", "weight_hh", "output")
    t = {n: v.detach() if isinstance(v, Tensor) else v for n, v in tensors.items()}
    args = [t[name] for name in names]
    if p.target == "op_step_backward":
        backward = torch.ops.rnnfast.rnn_step_backward
        grads = backward(t["grad_output"], *args, p.nonlinearity, needs, p.backend)
    else:
        incoming = [
            t["grad_output"] if "output" in p.used else None,
            t["grad_h_n"] if "h_n" in p.used else None,
        ]
        backward = torch.ops.rnnfast.rnn_sequence_backward
        grads = backward(*incoming, *args, t.get("batch_sizes"), p.nonlinearity, p.reverse, needs, p.backend)
    wanted = [name for name, needed in zip((*names[:4], "bias_ih"), needs, strict=True) if needed]
    return dict(zip((f"gradient of {name}" for name in wanted), grads, strict=True))


def _true_backward(p: Problem, tensors: dict[str, Any]) -> dict[str, Tensor | None]:
    """torch's derivative of torch's own operator."""
    with torch.enable_grad():
        leaves = {n: v.detach() for n, v in tensors.items() if isinstance(v, Tensor)}
        for leaf in leaves.values():
            leaf.requires_grad_(leaf.is_floating_point())
        if "bias_ih" not in leaves:  # the gradient of a bias exists without the bias
            leaves["bias_ih"] = leaves["weight_hh"].new_zeros(p.hidden).requires_grad_()
        target = "step" if p.target == "op_step_backward" else "sequence"
        outputs = call_of(dataclasses.replace(p, target=target), False, leaves, leaves["x"].dtype)(leaves)
    chosen = {n: o for n, o in outputs.items() if n in p.used or target == "step"}
    incoming = [tensors[f"grad_{name}"].detach() for name in chosen]
    names = [n for n in ("x", "hx", "weight_ih", "weight_hh", "bias_ih") if n in p.requires]
    if not names:
        return {}
    grads = torch.autograd.grad(
        list(chosen.values()), [leaves[n] for n in names], incoming, allow_unused=True
    )
    return {f"gradient of {n}": g for n, g in zip(names, grads, strict=True)}


def backward_numbers(p: Problem, data: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the backward operators take besides the inputs: the result and the gradients that arrive."""
    plain = dataclasses.replace(p, target=p.target[3:-9], wrong=(), requires=())
    outputs = call_of(plain, False, {}, torch.float64)(side(plain, data, torch.float64, exact=True))
    result = {"output": outputs["output"].to(dtype_of(p.dtype)).double()}
    for name, value in outputs.items():
        result[f"grad_{name}"] = gradient_numbers(p, name, tuple(value.shape))
    return result
