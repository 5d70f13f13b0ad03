"""Whether what rnnfast makes of a problem is right: against the truth in float64 and against what torch does."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnfast import testing
from rnnfast.backends.cpu import native

from . import captures
from .calls import Outcome, backward_numbers, run
from .differences import documented
from .problem import BACKWARDS, OPERATORS, Problem
from .tensors import dtype_of, numbers, side

Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class Finding:
    kind: str  # "value", "facts", "raises", "accepts", "exception", "crash", "hang"
    text: str
    trace: str = ""

    def signature(self, p: Problem) -> str:
        """The same for findings that are likely to have the same cause."""
        return f"{p.target} {p.capture or p.around} {self.kind} {re.sub(r'[0-9.e+-]+', '#', self.text)[:160]}"


def examine(p: Problem) -> Finding | None:
    """Runs a problem on both sides; None if all is well."""
    _set_machine(p)
    captured = None
    if p.capture in captures.LATER:
        captured, p = p, captures.later(p)
    elif p.capture:
        captured = p
    dtype = dtype_of(p.dtype)
    data = _rounded(p, dtype)
    if p.target in BACKWARDS:
        return _examine_backward(p, data, dtype)
    ours = run(p, True, data, dtype, captured=captured)
    if _right_at_first_sight(p, data, ours) or documented(p, None, ours) is not None:
        return None
    if any(name == "batch_sizes" for name, _ in p.wrong):
        return _accepted(ours, "batch_sizes that don't fit")
    theirs = run(p, False, data, dtype)
    if documented(p, theirs, ours) is not None:
        return None
    if p.capture in captures.LATER and ours.error is not None and theirs.error is None:
        theirs = run(p, False, data, dtype, captured=captured)
    if theirs.error is not None or ours.error is not None:
        return _compare_errors(p, theirs, ours)
    return _compare_facts(p, theirs, ours) or _compare_values(p, data, theirs, ours)


def _right_at_first_sight(p: Problem, data: Numbers, ours: Outcome) -> bool:
    """Whether a problem without anything unusual has the result of float64; most have, and need no more of torch."""
    unusual = p.wrong or p.special or p.attribute or p.touched or p.around or p.capture or p.device != "cpu"
    dtype = dtype_of(p.dtype)
    if unusual or ours.error is not None or not dtype.is_floating_point:
        return False
    truth = run(p, False, data, torch.float64)
    if truth.error is not None or set(truth.tensors) != set(ours.tensors):
        return False
    for name, right in truth.tensors.items():
        got = ours.tensors[name]
        if not isinstance(right, Tensor) or not isinstance(got, Tensor) or got.dtype is not dtype:
            return False
        if _facts(got)[2:] != _facts(right)[2:] or type(got) is not type(right):
            return False
        if got.numel() == 0:
            continue
        if got.layout is not torch.strided:
            return False
        bound = _tolerance(p, data, dtype) * right.detach().abs().max().clamp(min=1.0)
        if not bool((got.detach().double() - right.detach()).abs().max() <= bound):
            return False
    return True


def _set_machine(p: Problem) -> None:
    if native is not None:
        sets = native.instruction_sets()
        native.use(p.instruction_set if p.instruction_set in sets else sets[-1])


def _rounded(p: Problem, dtype: torch.dtype) -> Numbers:
    if not dtype.is_floating_point:
        return numbers(p)
    return {name: tensor.to(dtype).double() for name, tensor in numbers(p).items()}


def _examine_backward(p: Problem, data: Numbers, dtype: torch.dtype) -> Finding | None:
    """A backward operator has no counterpart: arguments that fit must give torch's derivative, others an error."""
    if not dtype.is_floating_point or p.steps == 0:
        return None  # no forward pass can have come before
    exact = backward_numbers(p, data)
    data = {**data, **{name: tensor.to(dtype).double() for name, tensor in exact.items()}}
    ours = run(p, True, data, dtype)
    if documented(p, None, ours) is not None:
        return None
    if _misfits(p, data, dtype):
        return _accepted(ours, f"{p.wrong} of a backward operator")
    if ours.error is not None:
        return Finding("raises", f"{_name(ours.error)}: {ours.error}", ours.trace)
    theirs = run(p, False, data, dtype)
    return None if theirs.error is not None else _compare_values(p, data, theirs, ours)


def _misfits(p: Problem, data: Numbers, dtype: torch.dtype) -> bool:
    """Whether `wrong` has changed anything that matters."""
    proper = side(dataclasses.replace(p, wrong=(), layouts=()), data, dtype)
    for name, tensor in side(dataclasses.replace(p, layouts=()), data, dtype).items():
        kind = (
            type(tensor),
            getattr(tensor, "shape", 0),
            getattr(tensor, "dtype", 0),
            getattr(tensor, "device", 0),
        )
        fits = (type(proper[name]), proper[name].shape, proper[name].dtype, proper[name].device)
        absent = tensor is None and (
            name.startswith("bias") or (name.startswith("grad") and "sequence" in p.target)
        )
        unread = name == "grad_output" and name[5:] not in p.used and "sequence" in p.target
        unread |= (name == "grad_h_n" and "h_n" not in p.used) or name.startswith("bias")
        if kind != fits and not absent and not unread:
            return True
        if name == "batch_sizes" and not (tensor.shape == proper[name].shape and tensor.equal(proper[name])):
            return True
    return False


def _accepted(ours: Outcome, what: str) -> Finding | None:
    """The finding for arguments that must be refused, whatever the words."""
    if ours.error is None:
        return Finding("accepts", f"{what}: accepted")
    if not isinstance(ours.error, (RuntimeError, ValueError, TypeError, IndexError)):
        return Finding("exception", f"{what}: {_name(ours.error)}: {ours.error}", ours.trace)
    return None


def _name(error: Exception) -> str:
    return type(error).__name__


def _compare_errors(p: Problem, theirs: Outcome, ours: Outcome) -> Finding | None:
    if ours.error is None:
        return Finding(
            "accepts", f"torch raises in {theirs.phase} {_name(theirs.error)}: {theirs.error}", theirs.trace
        )
    text = f"{_name(ours.error)} in {ours.phase}: {ours.error}"
    if theirs.error is None:
        return Finding("raises", text, ours.trace)
    expected = f"{_name(theirs.error)} in {theirs.phase}: {theirs.error}"
    if p.capture:  # a graph says it in its own words
        return None
    if p.target in OPERATORS:
        same = isinstance(ours.error, (type(theirs.error), RuntimeError, ValueError, TypeError))
    else:
        same = type(ours.error) is type(theirs.error) and (
            _words(ours.error) == _words(theirs.error) or (p.target == "sequence" and bool(p.lengths))
        )  # torch has no words for batch_sizes
    return None if same else Finding("exception", f"{text}\n    torch: {expected}", ours.trace)


def _words(error: Exception) -> str:
    """The message, without what belongs to one run or to the name of a class."""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(error))
    for part in (
        "modified by an inplace",
        "been modified inplace",
        "Could not run",
    ):  # which view, or which backends
        text = "modified" if part in text and "modified" in part else part if part in text else text
    return re.sub(r"\b(torch\.nn\.modules\.rnn|rnnfast\.modules)\.", "", text)


def _facts(tensor: Tensor | None) -> tuple[object, ...]:
    if not isinstance(tensor, Tensor):
        return (type(tensor).__name__,)
    return (
        type(tensor).__name__,
        str(tensor.dtype),
        tuple(tensor.shape),
        str(tensor.device),
        str(tensor.layout),
        f"requires_grad={tensor.requires_grad}",
        f"is_inference={tensor.is_inference()}",
    )


def _compare_facts(p: Problem, theirs: Outcome, ours: Outcome) -> Finding | None:
    if set(theirs.tensors) != set(ours.tensors):
        return Finding("facts", f"results {sorted(ours.tensors)}, torch's {sorted(theirs.tensors)}")
    for name, expected in theirs.tensors.items():
        got, wanted = _facts(ours.tensors[name]), _facts(expected)
        if got != wanted and not _zeros_for_none(expected, ours.tensors[name]):
            return Finding("facts", f"{name}: {got}\n    torch: {wanted}")
    return None


def _zeros_for_none(expected: Tensor | None, got: Tensor | None) -> bool:
    """An absent gradient and one of zeros are the same."""
    known = [t for t in (expected, got) if isinstance(t, Tensor)]
    return len(known) == 1 and None in (expected, got) and (known[0].numel() == 0 or not bool(known[0].any()))


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return tensor.as_subclass(Tensor).to(torch.complex128 if tensor.is_complex() else torch.float64)


def _compare_values(p: Problem, data: Numbers, theirs: Outcome, ours: Outcome) -> Finding | None:
    if p.device == "meta" or "meta" in dict(p.wrong).values():  # torch reads nonsense from a weight of that device
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
        right = right if right.is_complex() else right.to(low).double()
        from_torch = right if other is None else _dense(other)
        bound = _tolerance(p, data, low) * right.nan_to_num(0, 0, 0).abs().max().clamp(min=1.0)
        if bool((got - right).abs().max() <= bound):  # false where anything is not finite
            continue
        if _wrong(got, right, from_torch, bound) is None:
            continue
        # The problem may be badly conditioned: how far does the truth move where the arguments move by their rounding?
        near = near or [run(p, False, _moved(data, low, i), exact_dtype, exact=True) for i in range(4)]
        others = [_dense(n.tensors[name]) for n in near if n.tensors.get(name) is not None]
        moves = torch.stack(
            [(o - right).abs().nan_to_num(0, 0, 0) for o in others] or [torch.zeros(right.shape)]
        )
        undecided = torch.stack(
            [_class(o.to(low).double()) != _class(right) for o in others] or [right != right]
        )
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


def _tolerance(p: Problem, data: Numbers, dtype: torch.dtype) -> float:
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
