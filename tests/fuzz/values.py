"""Whether numbers are right: within a tolerance of float64, and infinite where torch and float64 are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnnfast import testing

from .calls import Outcome, run
from .problem import BACKWARDS, Problem
from .tensors import dtype_of

Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class Finding:
    kind: str  # "value", "facts", "raises", "accepts", "exception"
    text: str
    trace: str = ""


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return tensor.as_subclass(Tensor).to(torch.complex128 if tensor.is_complex() else torch.float64)


def compare_values(p: Problem, data: Numbers, theirs: Outcome, ours: Outcome) -> Finding | None:
    if (
        p.device == "meta" or "meta" in dict(p.wrong).values()
    ):  # torch reads nonsense from a weight of that device
        return None
    dtype = dtype_of(p.dtype)
    exact_dtype = torch.complex128 if dtype.is_complex else torch.float64
    plain = not (p.wrong or p.touched or p.around or p.capture or p.target in BACKWARDS)
    truth = theirs if dtype is exact_dtype and plain else run(p, False, data, exact_dtype, exact=True)
    if truth.error is not None:
        return None
    if any("huge" in kind for _, kind in p.special) and _overflows(truth, dtype):
        return None  # a sum of huge numbers may overflow on its way, to either side, or not
    near: list[Outcome] | None = None
    for name, tensor in ours.tensors.items():
        exact, other = truth.tensors.get(name), theirs.tensors.get(name)
        if (
            tensor is None
            or exact is None
            or tensor.is_meta
            or tensor.numel() == 0
            or tensor.dtype is torch.bool
        ):
            continue
        got, right = _dense(tensor), _dense(exact)
        if got.shape != right.shape:
            return Finding("facts", f"{name}: shape {tuple(got.shape)}, expected {tuple(right.shape)}")
        low = tensor.dtype if tensor.dtype.is_floating_point else torch.float32
        low = torch.bfloat16 if p.around == "autocast" else low  # in which it was computed
        right = right if right.is_complex() else right.to(low).double()
        from_torch = right if other is None else _dense(other)
        bound = tolerance(p, data, low) * right.nan_to_num(0, 0, 0).abs().max().clamp(min=1.0)
        if bool((got - right).abs().max() <= bound):  # false where anything is not finite
            continue
        if _wrong(got, right, from_torch, bound) is None:
            continue
        # The problem may be badly conditioned: how far does the truth move by roundings of the arguments?
        near = near or [run(p, False, _moved(data, low, i), exact_dtype, exact=True) for i in range(4)]
        others = [_dense(n.tensors[name]) for n in near if n.tensors.get(name) is not None]
        others = others or [right]
        moves = torch.stack([(o - right).abs().nan_to_num(0, 0, 0) for o in others])
        undecided = torch.stack([_class(o.to(low).double()) != _class(right) for o in others])
        right = torch.where(undecided.any(0), from_torch, right)
        got = torch.where(undecided.any(0), from_torch, got)
        found = _wrong(got, right, from_torch, bound + 8 * moves.amax(0).max())
        if found is not None:
            return Finding("value", f"{name}: {found}")
    return None


def _overflows(truth: Outcome, dtype: torch.dtype) -> bool:
    limit = torch.finfo(dtype).max / 1000
    return any(
        isinstance(t, Tensor) and not bool((t.detach().abs() < limit).all()) for t in truth.tensors.values()
    )


def _class(tensor: Tensor) -> Tensor:
    """0 for finite numbers, and one number each for inf, -inf and NaN."""
    if tensor.is_complex():
        return torch.isfinite(tensor).logical_not().long()
    return torch.isposinf(tensor) + 2 * torch.isneginf(tensor) + 3 * torch.isnan(tensor)


def _wrong(got: Tensor, right: Tensor, from_torch: Tensor, bound: Tensor) -> str | None:
    """What is wrong with `got`, where torch and the truth agree on what is finite."""
    agreed = _class(right) == _class(from_torch)
    bad = agreed & (_class(got) != _class(right))
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        return f"{got[at].item()} at {at}, torch has {from_torch[at].item()} and float64 {right[at].item()}"
    finite = agreed & (_class(right) == 0)
    error = torch.where(finite, (got - right).abs(), 0).max()
    from_others = torch.where(finite, (from_torch - right).abs(), 0).max()
    if error <= torch.maximum(bound, 8 * from_others):
        return None
    return f"error {error.item():.3g}, bound {bound.item():.3g}, torch's error {from_others.item():.3g}"


def tolerance(p: Problem, data: Numbers, dtype: torch.dtype) -> float:
    weight = next(tensor for name, tensor in data.items() if name.startswith("weight_hh"))
    inputs = {"x": data["x"].to(dtype), "weight_hh": weight.to(dtype)}
    case = testing.Case(inputs, data["x"], data["x"])  # type: ignore[arg-type]
    return case.tolerance() * p.layers * (2 if p.twice else 1)


def _moved(data: Numbers, dtype: torch.dtype, i: int) -> Numbers:
    generator = torch.Generator().manual_seed(i)
    eps = torch.finfo(dtype).eps

    def move(t: Tensor) -> Tensor:
        return t * (1 + 2 * eps * (torch.rand(t.shape, generator=generator, dtype=torch.float64) - 0.5))

    return {name: move(t) for name, t in data.items()}
