"""The problem that every rung solves, the truth in float64, and how a result is judged.

h_t = tanh(x_t W_ih^T + h_{t-1} W_hh^T + b)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from rnnfast import reference, testing

PADDING = 64  # floats before and after every tensor of a poisoned problem


class Shape(NamedTuple):
    steps: int
    batch: int
    inputs: int
    hidden: int

    def __str__(self) -> str:
        return f"T = {self.steps}, B = {self.batch}, I = {self.inputs}, H = {self.hidden}"


# What is timed: a single small sequence, one whose weight fills the second-level cache, a minibatch.
TIMED = (Shape(100, 1, 128, 128), Shape(100, 1, 512, 512), Shape(100, 32, 256, 256))
# What is checked: 1, odd sizes, one less and one more than vectors and tiles hold.
CHECKED = (
    Shape(1, 1, 1, 1),
    Shape(4, 3, 5, 7),
    Shape(3, 5, 33, 31),
    Shape(2, 33, 3, 17),
    Shape(5, 1, 2, 129),
    Shape(3, 9, 64, 160),
)


@dataclass(frozen=True)
class Problem:
    """float32, contiguous, on the CPU."""

    shape: Shape
    x: Tensor  # [T, B, I]
    h0: Tensor  # [B, H]
    w_ih: Tensor  # [H, I]
    w_hh: Tensor  # [H, H]
    b: Tensor  # [H], b_ih + b_hh
    out: Tensor  # [T, B, H], the right output, from which a backward rung starts
    grad_out: Tensor  # [T, B, H], dL/dout

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.h0, self.w_ih, self.w_hh, self.b


Result = tuple[Tensor, ...]  # (out,), or the gradients of x, h0, w_ih, w_hh and b
Solve = Callable[[Problem], Result]


def make(shape: Shape, *, poisoned: bool = False, seed: int = 0) -> Problem:
    """A random problem whose state contracts. If poisoned, NaN surrounds every tensor, so that
    reading outside of one shows in the result.
    """
    steps, batch, inputs, hidden = shape
    generator = torch.Generator().manual_seed(seed)
    place = _amid_nan if poisoned else torch.clone

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    given = [
        normal(steps, batch, inputs),
        torch.tanh(normal(batch, hidden)),
        normal(hidden, inputs) / inputs**0.5,
        normal(hidden, hidden) / (2 * hidden**0.5),
        normal(hidden) / 4,
    ]
    (out,) = forward_truth(given)
    tensors = [*given, out.float(), normal(steps, batch, hidden)]
    return Problem(shape, *(place(tensor) for tensor in tensors))


def _amid_nan(tensor: Tensor) -> Tensor:
    buffer = torch.full((tensor.numel() + 2 * PADDING,), torch.nan)
    inside = buffer[PADDING : PADDING + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


def forward_truth(parameters: list[Tensor]) -> Result:
    """(out,) in float64."""
    x, h0, w_ih, w_hh, b = (p.double() for p in parameters)
    return (reference.rnn_sequence(x, h0, w_ih, w_hh, b)[0],)


def backward_truth(problem: Problem) -> Result:
    """The gradients of x, h0, w_ih, w_hh and b in float64."""
    leaves = [p.double().requires_grad_() for p in problem.parameters()]
    with torch.enable_grad():
        out, _ = reference.rnn_sequence(*leaves)
    return torch.autograd.grad(out, leaves, problem.grad_out.double())


NAMES = {1: ("out",), 5: ("dx", "dh0", "dw_ih", "dw_hh", "db")}


def wrong(solve: Solve, backward: bool, shapes: tuple[Shape, ...] = CHECKED) -> Optional[str]:
    """What is wrong with a rung's results, or None.

    Every result must be within what rounding explains (`rnnfast.testing.tolerance`); NaN never is. A second
    solution of the same problem must have the same bits, the problem must be left as it was, and a NaN in a
    sequence must reach that sequence's output, at its step and after it, and no other.
    """
    with _empty_is_nan():
        return next((found for shape in shapes if (found := _wrong(solve, backward, shape))), None)


def _wrong(solve: Solve, backward: bool, shape: Shape) -> Optional[str]:
    problem = make(shape, poisoned=True)
    before = [p.clone() for p in (*problem.parameters(), problem.out, problem.grad_out)]
    want = backward_truth(problem) if backward else forward_truth(list(problem.parameters()))
    got, again = solve(problem), solve(problem)
    after = (*problem.parameters(), problem.out, problem.grad_out)
    found = difference(shape, got, want)
    if found is None and not all(torch.equal(a, b) for a, b in zip(got, again, strict=True)):
        found = "two solutions of one problem differ"
    if found is None and not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        found = "the problem was written to"
    if found is None and not backward:
        found = _nan_goes_astray(solve, problem)
    return None if found is None else f"{shape}: {found}"


@contextmanager
def _empty_is_nan() -> Iterator[None]:
    """torch.empty gives NaN, so that what a rung leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def difference(shape: Shape, got: Result, want: Result) -> Optional[str]:
    """The first result that differs by more than rounding explains."""
    steps, batch, inputs, hidden = shape
    for name, a, e in zip(NAMES[len(want)], got, want, strict=True):
        if a.shape != e.shape or a.dtype != torch.float32:
            return f"{name} is {a.dtype} {tuple(a.shape)}, expected torch.float32 {tuple(e.shape)}"
        terms = inputs + hidden + (steps * batch if len(want) > 1 else 0)
        bound = testing.tolerance(torch.float32, terms, stores=steps if len(want) > 1 else 1, per_term=8)
        error = testing.error(a, e)
        if not error <= bound:
            return f"{name} is off by {error:.1e}, tolerated {bound:.1e}"
    return None


def _nan_goes_astray(solve: Solve, problem: Problem) -> Optional[str]:
    steps, batch, _, _ = problem.shape
    t, row = steps // 2, batch - 1
    x = problem.x.clone()
    x[t, row, 0] = torch.nan
    (out,) = solve(Problem(problem.shape, x, *(getattr(problem, f) for f in FIELDS)))
    hit = out.isnan()
    if not hit[t:, row].all():
        return "a NaN in the input is lost"
    hit[t:, row] = False
    return "a NaN in one sequence reached another or an earlier step" if hit.any() else None


FIELDS = ("h0", "w_ih", "w_hh", "b", "out", "grad_out")
