"""Problems of tests and benchmarks: shapes, inputs that keep errors small, truth in float64, tolerances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from rnnfast import dispatch, reference
from rnnfast.backends.base import Problem

# Those that take tensors on the CPU, where the tests make them.
_PLAIN = Problem("step", "cpu", "float32", input_size=1, hidden_size=1, batch=1, steps=1)
BACKENDS = [name for name in dispatch.names() if dispatch.why_not(name, _PLAIN) is None]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NONLINEARITIES = ["tanh", "relu"]

# T, B, I, H: ones, odd numbers, and the neighbours of the widths of vectors and tiles.
SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 2, 1),
    (1, 5, 3, 7),
    (4, 2, 8, 15),
    (5, 6, 15, 16),
    (2, 7, 17, 17),
    (6, 3, 1, 31),
    (3, 13, 32, 32),
    (7, 1, 33, 63),
    (5, 9, 28, 64),
    (4, 12, 64, 65),
    (3, 31, 5, 100),
    (12, 4, 28, 200),
    (2, 32, 130, 257),
]

# Lengths of packed sequences, longest first.
LENGTHS = [[1], [4], [1, 1, 1], [3, 2, 1], [5, 5, 1], [6, 6, 6], [9, 7, 7, 3, 3, 1, 1], [4, *[2] * 14]]

NAMES = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass
class Case:
    """The arguments of one layer, the gradients that come back to it, and how long its sums are."""

    inputs: dict[str, Optional[Tensor]]  # by NAMES
    grad_out: Tensor
    grad_hn: Tensor
    batch_sizes: Optional[Tensor] = None

    @property
    def args(self) -> list[Optional[Tensor]]:
        return [self.inputs[name] for name in NAMES]

    def leaves(self) -> list[Tensor]:
        """The arguments that can have gradients, made to require them."""
        return [t.requires_grad_() for t in self.args if t is not None]

    def to(self, dtype: torch.dtype) -> Case:
        inputs = {k: None if t is None else t.detach().to(dtype) for k, t in self.inputs.items()}
        return Case(inputs, self.grad_out.to(dtype), self.grad_hn.to(dtype), self.batch_sizes)

    def tolerance(self) -> float:
        """Bound on the error relative to the largest element (or to 1, if all are smaller).

        One rounding to the stored type in each of the few places where a result is stored (the state
        contracts, so that older errors fade), and a sum whose rounding errors add up like a random walk.
        """
        x, w = self.inputs["x"], self.inputs["weight_hh"]
        length = x.shape[-1] + len(w) + x.numel() // max(1, x.shape[-1])
        accumulator = torch.float64 if x.dtype is torch.float64 else torch.float32
        return 8 * torch.finfo(x.dtype).eps + 2 * torch.finfo(accumulator).eps * length**0.5


def make(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    nonlinearity: str = "tanh",
    bias: bool = True,
    lengths: Optional[list[int]] = None,
    seed: int = 0,
) -> Case:
    """Random arguments, conditioned: W_hh contracts, tanh is rarely saturated, no relu near its edge.

    A saturated tanh loses its derivative 1 - h^2 to cancellation in every implementation. The derivative
    of relu jumps at 0, so with 16-bit types half of the biases push their unit well above 0 and half
    well below; else a rounding error could change a gradient entirely.
    """
    steps, batch, inputs, hidden = shape
    generator = torch.Generator().manual_seed(seed + 1000 * steps + 100 * batch + 10 * inputs + hidden)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    batch_sizes, rows = None, (steps, batch)
    if lengths is not None:
        batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(lengths[0])])
        batch, rows = len(lengths), (sum(lengths),)
    weight_hh = normal(hidden, hidden)
    weight_hh *= 0.5 / torch.linalg.matrix_norm(weight_hh, 2)
    weight_ih = normal(hidden, inputs) / (2 * inputs**0.5)
    h0 = normal(batch, hidden).tanh()
    bias_ih, bias_hh = normal(hidden) / 2, normal(hidden) / 2
    if nonlinearity == "relu" and dtype.itemsize == 2:
        weight_ih, weight_hh = weight_ih / 4, weight_hh / 4
        bias_ih = torch.where(torch.arange(hidden) % 2 == 0, 2.0, -3.0).double()
        bias_hh = bias_hh.tanh() / 8
        bias = True
    arguments = {
        "x": normal(*rows, inputs).clamp(-2, 2),
        "h0": h0,
        "weight_ih": weight_ih,
        "weight_hh": weight_hh,
        "bias_ih": bias_ih if bias else None,
        "bias_hh": bias_hh if bias else None,
    }
    return Case(arguments, normal(*rows, hidden), normal(batch, hidden), batch_sizes).to(dtype)


def expected(case: Case, nonlinearity: str, reverse: bool = False) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, h_n and the gradients of `case.leaves()`, from the reference in float64."""
    case = case.to(torch.float64)
    leaves = case.leaves()
    if case.batch_sizes is None:
        out, h_n = reference.rnn_sequence(*case.args, nonlinearity, reverse)
    else:
        out, h_n = packed_reference(case, nonlinearity, reverse)
    grads = torch.autograd.grad([out, h_n], leaves, [case.grad_out, case.grad_hn])
    return out.detach(), h_n.detach(), list(grads)


def packed_reference(case: Case, nonlinearity: str, reverse: bool) -> tuple[Tensor, Tensor]:
    """Every sequence on its own, in a batch of one."""
    x, h0, *weights = case.args
    sizes = case.batch_sizes.tolist()
    steps = x.split(sizes)
    rows: list[list[Tensor]] = [[] for _ in sizes]
    last = []
    for b in range(sizes[0]):
        sequence = torch.stack([rows_of_step[b : b + 1] for rows_of_step in steps if len(rows_of_step) > b])
        out, h_n = reference.rnn_sequence(sequence, h0[b : b + 1], *weights, nonlinearity, reverse)
        last.append(h_n)
        for t, row in enumerate(out):
            rows[t].append(row)
    return torch.cat([row for step in rows for row in step]), torch.cat(last)


def check(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fails, naming `name`, unless shapes match and the error is within tolerance (which NaN never is)."""
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    if expected.numel() == 0:
        return
    scale = expected.abs().max().clamp(min=1.0)
    error = ((actual.detach().double() - expected).abs().max() / scale).item()
    assert error <= tolerance, f"{name}: relative error {error:.3g} exceeds {tolerance:.3g}"
