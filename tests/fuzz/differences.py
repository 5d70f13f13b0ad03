"""The differences from torch's behaviour that are meant: each with what tells it and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .calls import Outcome
from .problem import BACKWARDS, Problem


class Difference(NamedTuple):
    reason: str
    applies: Callable[[Problem, Outcome, Outcome], bool]  # (problem, torch's outcome, ours)


def _text(outcome: Outcome) -> str:
    return str(outcome.error) if outcome.error is not None else ""


DIFFERENCES = [
    Difference(
        "a backend that was asked for by name runs the problem or raises with the reason",
        lambda p, theirs, ours: (
            p.backend != "auto"
            and isinstance(ours.error, RuntimeError)
            and _text(ours).startswith(f"backend '{p.backend}'")
        ),
    ),
    Difference(
        "batch_sizes that don't fit raise ValueError, where torch reads past the end of its input",
        lambda p, theirs, ours: (
            isinstance(ours.error, ValueError) and _text(ours).startswith("batch_sizes must")
        ),
    ),
    Difference(
        "a backward operator takes what its forward operator has taken and returned: dense tensors",
        lambda p, theirs, ours: p.target in BACKWARDS and bool(p.layouts) and ", dense, of" in _text(ours),
    ),
    Difference(
        "what is no tensor in a PackedSequence is refused in other words",
        lambda p, theirs, ours: (
            p.target == "rnn"
            and bool(p.lengths)
            and theirs.error is not None
            and isinstance(ours.error, (AttributeError, TypeError))
        ),
    ),
    Difference(
        "beside batch_sizes, input and h0 are matrices; the operator of torch has layers in h0",
        lambda p, theirs, ours: bool(p.lengths) and "dimensions beside batch_sizes" in _text(ours),
    ),
    Difference(
        "AVX512-BF16 reads subnormal numbers as zeros",
        lambda p, theirs, ours: (
            p.dtype == "bfloat16"
            and p.instruction_set in ("", "avx512bf16")
            and "subnormal" in dict(p.special).values()
        ),
    ),
    Difference(
        "the words of torch for a weight of a wrong shape depend on the product that it would choose",
        lambda p, theirs, ours: (
            any(name.startswith("weight") for name, _ in p.wrong)
            and type(ours.error) is type(theirs.error) is RuntimeError
        ),
    ),
    Difference(
        "under autocast torch cannot differentiate its own operator for float16 on a CPU",
        lambda p, theirs, ours: p.around == "autocast" and "at::autocast::prioritize" in _text(theirs),
    ),
    Difference(
        "zeros in place of hx are not made as a tensor, which a mode could change",
        lambda p, theirs, ours: p.around == "halving mode" and not p.hx and ours.error is None,
    ),
    Difference(
        "the output is saved for backward: it must not be changed in place",
        lambda p, theirs, ours: p.touched == "output" and "modified by an inplace operation" in _text(ours),
    ),
    Difference(
        "a tensor may be changed in place before the backward pass that torch needs and we don't",
        lambda p, theirs, ours: (
            bool(p.touched) and ours.error is None and "modified by an inplace operation" in _text(theirs)
        ),
    ),
    Difference(
        "torch fails where a view has been changed in place that its backward pass would read or make",
        lambda p, theirs, ours: (
            bool(p.touched)
            and ours.error is None
            and any(text in _text(theirs) for text in ("INTERNAL ASSERT FAILED", "has been modified inplace"))
        ),
    ),
    Difference(
        "a list of weights with something else in it is refused by the dispatcher of torch",
        lambda p, theirs, ours: (
            "Expected a value of type 'List[Tensor]' for argument 'weights'" in _text(ours)
        ),
    ),
]


def documented(p: Problem, theirs: Outcome | None, ours: Outcome) -> str | None:
    """The reason why this difference, if there is one, is no finding."""
    known = theirs if theirs is not None else Outcome()
    return next((d.reason for d in DIFFERENCES if d.applies(p, known, ours)), None)
