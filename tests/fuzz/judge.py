"""Whether what rnnfast makes of a problem is right: against float64 and against what torch does."""

from __future__ import annotations

import dataclasses
import re

import torch
from torch import Tensor

from rnnfast.backends.cpu import native

from . import captures
from .calls import Outcome, backward_numbers, run
from .differences import documented
from .problem import BACKWARDS, OPERATORS, Problem
from .tensors import dtype_of, numbers, side
from .values import Finding, Numbers, compare_values, tolerance


def signature(p: Problem, finding: Finding) -> str:
    """The same for findings that are likely to have the same cause."""
    text = re.sub(r"[0-9.+-]+", "#", finding.text)[:160]
    return f"{p.target} {p.capture or p.around} {finding.kind} {text}"


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
    return _compare_facts(p, theirs, ours) or compare_values(p, data, theirs, ours)


def _right_at_first_sight(p: Problem, data: Numbers, ours: Outcome) -> bool:
    """Whether a problem without anything unusual has the result of float64: then torch is run no more."""
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
        bound = tolerance(p, data, dtype) * right.detach().abs().max().clamp(min=1.0)
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
    """A backward operator gives torch's derivative for arguments that fit, and an error for others."""
    if not dtype.is_floating_point or p.steps == 0:
        return None  # no forward pass can have come before
    exact = backward_numbers(p, data)
    data = {**data, **{name: tensor.to(dtype).double() for name, tensor in exact.items()}}
    ours = run(p, True, data, dtype)
    if documented(p, None, ours) is not None:
        return None
    if dict(p.wrong).get("hx") == "none" and "hx" not in p.requires:
        return None  # zeros, from which the result of the forward pass didn't come
    if _misfits(p, data, dtype):
        return _accepted(ours, f"{p.wrong} of a backward operator")
    if ours.error is not None:
        return Finding("raises", f"{_name(ours.error)}: {ours.error}", ours.trace)
    theirs = run(p, False, data, dtype)
    return None if theirs.error is not None else compare_values(p, data, theirs, ours)


def _misfits(p: Problem, data: Numbers, dtype: torch.dtype) -> bool:
    """Whether `wrong` has changed anything that matters."""
    proper = side(dataclasses.replace(p, wrong=(), layouts=()), data, dtype)
    for name, tensor in side(dataclasses.replace(p, layouts=()), data, dtype).items():
        same = _described(tensor) == _described(proper[name])
        optional = name.startswith("grad")
        unread = name == "grad_output" and name[5:] not in p.used and "sequence" in p.target
        unread |= name == "grad_h_n" and "h_n" not in p.used
        if not same and not unread and not (tensor is None and optional):
            return True
        if name == "batch_sizes" and not (tensor.shape == proper[name].shape and tensor.equal(proper[name])):
            return True
    return False


def _described(value: object) -> tuple[object, ...]:
    return (type(value), *(getattr(value, what, None) for what in ("shape", "dtype", "device")))


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
    if p.attribute and p.attribute[0][0] in text:  # obeyed, or an error that names it
        same = True
    elif p.target in OPERATORS:
        same = isinstance(ours.error, (type(theirs.error), RuntimeError, ValueError, TypeError))
    else:
        same = type(ours.error) is type(theirs.error) and (
            # Ours may say more, which argument it is about for one. torch has no words for batch_sizes.
            _words(ours.error).startswith(_words(theirs.error))
            or (p.target == "sequence" and bool(p.lengths))
        )
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
        if p.capture in captures.WITHOUT_GRADIENTS:  # its parameters are constants there
            got, wanted = got[:5], wanted[:5]
        if got != wanted and not _zeros_for_none(expected, ours.tensors[name]):
            return Finding("facts", f"{name}: {got}\n    torch: {wanted}")
    return None


def _zeros_for_none(expected: Tensor | None, got: Tensor | None) -> bool:
    """An absent gradient and one of zeros are the same."""
    known = [t for t in (expected, got) if isinstance(t, Tensor)]
    return len(known) == 1 and None in (expected, got) and (known[0].numel() == 0 or not bool(known[0].any()))
