"""Calls that are captured in a graph and then made with other arguments, or that are transformed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from .problem import MODULES, Problem
from .tensors import dtype_of, numbers, side

VARYING = ("x", "hx", "batch_sizes")  # the arguments of a module; a function's are all tensors

Call = Callable[[dict[str, Any]], dict[str, Any]]


def example(p: Problem, tensors: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which a graph is captured; `tensors` are those of the later call."""
    first = side(p, numbers(p), dtype_of(p.dtype))
    return {**tensors, **{name: first[name] for name in VARYING if name in first}}


def later(p: Problem) -> Problem:
    """The problem that the call of the captured graph is: the weights stay as they are."""
    steps, batch, dtype = p.later
    lengths = p.lengths if (steps, batch) == (p.steps, p.batch) else (steps,) * batch if p.lengths else ()
    wrong = p.wrong if dtype == p.dtype else (("x", dtype), ("hx", dtype))
    return dataclasses.replace(p, steps=steps, batch=batch, lengths=lengths, wrong=wrong)


class _Positional(torch.nn.Module):
    """`call` with positional arguments, as tracers want it; the parameters stay outside."""

    def __init__(self, call: Call, names: list[str], fixed: dict[str, Any]) -> None:
        super().__init__()
        self.call, self.names, self.fixed = call, names, fixed

    def forward(self, *args: Tensor) -> tuple[Any, ...]:
        return tuple(self.call({**self.fixed, **dict(zip(self.names, args, strict=True))}).values())


def _positional(p: Problem, call: Call, tensors: dict[str, Any]) -> tuple[_Positional, list[str]]:
    names = [n for n in tensors if p.target not in MODULES or n in VARYING]
    return _Positional(call, names, {n: t for n, t in tensors.items() if n not in names}), names


def _named(results: Any) -> dict[str, Any]:
    return dict(zip(("output", "h_n"), results, strict=False))


def _trace(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    function, names = _positional(p, call, tensors)
    first = example(p, tensors)
    if p.target in MODULES:
        for parameter in (t for n, t in tensors.items() if n not in names):
            function.register_parameter(f"p{len(function._parameters)}", parameter)
    traced = torch.jit.trace(function, tuple(first[n] for n in names), check_trace=False)
    return _named(traced(*(tensors[n] for n in names)))


def _make_fx(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    function, names = _positional(p, call, tensors)
    first = example(p, tensors)
    graph = make_fx(function)(*(first[n] for n in names))
    return _named(graph(*(tensors[n] for n in names)))


def _compile(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    torch.compiler.reset()
    function, names = _positional(p, call, tensors)
    first = example(p, tensors)
    compiled = torch.compile(function, backend="aot_eager")
    compiled(*(first[n] for n in names))
    return _named(compiled(*(tensors[n] for n in names)))


class _Exported(torch.nn.Module):
    def __init__(self, function: _Positional) -> None:
        super().__init__()
        self.function = function

    def forward(self, args: list[Tensor]) -> tuple[Any, ...]:
        return self.function(*args)


def _export(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    function, names = _positional(p, call, tensors)
    first = example(p, tensors)
    program = torch.export.export(_Exported(function), ([first[n] for n in names],), strict=False)
    return _named(program.module()([tensors[n] for n in names]))


def _vmap(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    xs = torch.stack([tensors["x"].detach(), tensors["x"].detach() / 2])
    rest = {n: t for n, t in tensors.items() if n != "x"}
    return torch.func.vmap(lambda x: call({**rest, "x": x}))(xs)


def _one_by_one(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    """What vmap should give; torch has none for its RNN."""
    x = tensors["x"].detach()
    parts = [call({**tensors, "x": part}) for part in (x, x / 2)]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _jvp(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    with forward_ad.dual_level():
        x = tensors["x"].detach()
        outputs = call({**tensors, "x": forward_ad.make_dual(x, torch.cos(x))})
        return {f"tangent of {n}": forward_ad.unpack_dual(o).tangent for n, o in outputs.items()}


def _vjp(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    rest = {n: t for n, t in tensors.items() if n != "x"}
    outputs, pull = torch.func.vjp(lambda x: call({**rest, "x": x}), tensors["x"].detach())
    return {"gradient of x": pull({n: torch.sin(o) for n, o in outputs.items()})[0]}


def _double(p: Problem, call: Call, tensors: dict[str, Any]) -> dict[str, Any]:
    x = tensors["x"].detach().requires_grad_()
    outputs = call({**tensors, "x": x})
    loss = sum((o.square().sum() for o in outputs.values()), torch.zeros(()))
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    weight = next(t for n, t in tensors.items() if n.startswith("weight_ih"))
    wanted = [x, *([weight] if weight.requires_grad else [])]
    second = torch.autograd.grad(first.square().sum(), wanted, allow_unused=True)
    return {"first": first.detach(), **{f"second {i}": s for i, s in enumerate(second)}}


# Both sides are transformed, but where torch can't.
LATER = ("trace", "make_fx", "compile", "export")
TRANSFORMS = {"vmap": _one_by_one, "jvp": _jvp, "vjp": _vjp, "double backward": _double}
CAPTURES = {
    "trace": _trace,
    "make_fx": _make_fx,
    "compile": _compile,
    "export": _export,
    "vmap": _vmap,
    "jvp": _jvp,
    "vjp": _vjp,
    "double backward": _double,
}
WITHOUT_GRADIENTS = ("make_fx", "compile", "export", *TRANSFORMS)
