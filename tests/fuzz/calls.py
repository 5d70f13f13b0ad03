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
from rnnfast import derivative, functional
from rnnfast.backends.aten import torch_call
from rnnfast.call import Network

from . import captures
from .around import around
from .problem import BACKWARDS, FUNCTIONS, INPUTS, MODULES, STEPS, Problem
from .tensors import Duck, dtype_of, gradient_numbers, layer_weights, short_name, side

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
    network = network_of(p)

    def call(given: dict[str, Any]) -> Outputs:
        x, hx, batch_sizes = given.get("x"), given.get("hx"), given.get("batch_sizes")
        weights = [given.get(name) for name, _ in layer_weights(p)]
        if not ours:
            result: Any = torch_call(network, x, hx, _both_biases(p, weights), batch_sizes)
        elif p.target not in FUNCTIONS:
            inputs = (x, hx, weights, batch_sizes, None, *derivative.fields(network))
            result = torch.ops.rnnfast.rnn(*inputs, False, p.backend)[:2]
        elif network.step:
            result = (functional.rnn_step(x, hx, *_four(weights), p.nonlinearity, backend=p.backend),)
        else:
            options: dict[str, Any] = {"batch_sizes": batch_sizes, "backend": p.backend}
            result = functional.rnn_sequence(
                x, hx, *_four(weights), p.nonlinearity, reverse=p.reverse, **options
            )
        return {"output": result} if isinstance(result, Tensor) else dict(zip(NAMES, result, strict=False))

    return call


NAMES = ("output", "h_n")


def network_of(p: Problem) -> Network:
    step = p.target in STEPS
    reverse = (False, True) if p.bidirectional else (p.reverse,)
    module = not step and p.target not in FUNCTIONS
    return Network(p.nonlinearity, p.layers, reverse, p.bias, step, module=module)


def _four(weights: list[Any]) -> list[Any]:
    return [*weights, None, None][:4]


def _both_biases(p: Problem, weights: list[Any]) -> tuple[Any, ...]:
    """With zeros where a function is called without one of two biases."""
    if p.target in FUNCTIONS and len(weights) == 4 and (weights[2] is None) != (weights[3] is None):
        like = weights[3] if weights[2] is None else weights[2]
        weights = [torch.zeros_like(like) if weight is None else weight for weight in weights]
    return tuple(weights)


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


def _wanted(p: Problem) -> dict[str, bool]:
    """By argument, whether a backward operator is asked for its gradient."""
    names = ("x", "hx", *(name for name, _ in layer_weights(p)))
    shorts = map(short_name, names)
    return {
        name: short in p.requires or (short not in INPUTS and bool(p.requires))
        for name, short in zip(names, shorts, strict=True)
    }


def _our_backward(p: Problem, tensors: dict[str, Any]) -> dict[str, Tensor | None]:
    t = {n: v.detach() if isinstance(v, Tensor) else v for n, v in tensors.items()}
    wanted = _wanted(p)
    weights = [t.get(name) for name, _ in layer_weights(p)]
    inputs = (t["x"], t["hx"], weights, t.get("batch_sizes"), None, *derivative.fields(network_of(p)))
    one_step = p.target in STEPS
    grad_out = t["grad_output"] if one_step or "output" in p.used else None
    grad_hn = None if one_step or "h_n" not in p.used else t["grad_h_n"]
    outputs = (t["output"], t.get("hidden"), None, grad_out, grad_hn, None)
    grads = torch.ops.rnnfast.rnn_backward(*inputs, *outputs, list(wanted.values()), p.backend)
    names = [f"gradient of {name}" for name, needed in wanted.items() if needed]
    return dict(zip(names, grads, strict=True))


def _true_backward(p: Problem, tensors: dict[str, Any]) -> dict[str, Tensor | None]:
    """torch's derivative of torch's own operator."""
    with torch.enable_grad():
        leaves = {n: v.detach() for n, v in tensors.items() if isinstance(v, Tensor)}
        for leaf in leaves.values():
            leaf.requires_grad_(leaf.is_floating_point())
        outputs = call_of(p, False, leaves, leaves["x"].dtype)(leaves)
    chosen = {n: o for n, o in outputs.items() if n in p.used or p.target in STEPS}
    incoming = [tensors[f"grad_{name}"].detach() for name in chosen]
    names = [name for name, needed in _wanted(p).items() if needed]
    if not names:
        return {}
    grads = torch.autograd.grad(
        list(chosen.values()), [leaves[n] for n in names], incoming, allow_unused=True
    )
    return {f"gradient of {n}": g for n, g in zip(names, grads, strict=True)}


def backward_numbers(p: Problem, data: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the backward operators take besides the inputs: the results and the gradients that arrive."""
    plain = dataclasses.replace(p, wrong=(), requires=())
    tensors = side(plain, data, torch.float64, exact=True)
    outputs = call_of(plain, False, {}, torch.float64)(tensors)
    result = {"output": outputs["output"].to(dtype_of(p.dtype)).double()}
    for name, value in outputs.items():
        result[f"grad_{name}"] = gradient_numbers(p, name, tuple(value.shape))
    if p.layers > 1:
        network, weights = network_of(p), [tensors[name] for name, _ in layer_weights(p)]
        directions = len(network.reverse)
        below = []
        for layers in range(1, p.layers):
            some = weights[: layers * directions * network.per]
            first = network._replace(layers=layers)
            states = tensors["hx"][: layers * directions]
            out, _ = torch_call(first, tensors["x"], states, tuple(some), tensors.get("batch_sizes"))
            below.append(out.reshape(-1, out.shape[-1]) if out.numel() else out.flatten(0, -2))
        result["hidden"] = torch.stack(below).to(dtype_of(p.dtype)).double()
    return result
