"""What a correct contender computes from a case's tensors, and how far off it may be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs, make_inputs
from rnnfast import testing


@dataclass(frozen=True)
class Expected:
    output: Tensor  # [T, B, D * H] float64
    gradients: dict[str, Tensor]  # of sum(output * grad_output), float64; empty for a forward case


@lru_cache(maxsize=2)
def expected(case: Case) -> Expected:
    """The same problem by `rnnfast.reference` in float64 (from the same rounded inputs), in torch's operators
    on the case's device: a GPU case would take a CPU minutes."""
    inputs = make_inputs(case)

    def wide_(tensor: Tensor) -> Tensor:
        return tensor.to(case.device, torch.float64)

    doubles = {name: wide_(p).requires_grad_(case.training) for name, p in inputs.parameters.items()}
    wide = Inputs(wide_(inputs.x), wide_(inputs.h0), doubles, inputs.lengths, wide_(inputs.grad_output))
    output = wide.x
    for layer in range(case.layers):
        sides = []
        for direction in range(case.directions):
            h0 = wide.h0[layer * case.directions + direction]
            weights = wide.layer(layer, direction)
            side, _ = testing.layer(output, h0, weights, case.nonlinearity, direction == 1, inputs.lengths)
            sides.append(side)
        output = torch.cat(sides, dim=2)
    gradients = {}
    if case.training:
        gradients = dict(
            zip(doubles, torch.autograd.grad(output, list(doubles.values()), wide.grad_output), strict=True)
        )
    return Expected(output.detach(), gradients)


def wrong(case: Case, output: Tensor, gradients: list[Tensor]) -> Optional[str]:
    """What is wrong with a result, or None when it is within tolerance everywhere.

    The error of a tensor is its largest absolute difference from the float64 reference over the largest entry
    of the reference. Tolerated is what rounding explains: 8 eps sqrt(n) for a sum of n terms, eps being that
    of the type sums are kept in (float32 for the 16-bit types), plus 8 eps of the storage type, which for a
    weight gradient may enter once a step: times sqrt(T). TF32 rounds operands
    instead: see `testing.tolerance`.
    """
    truth, dtype = expected(case), getattr(torch, case.dtype)
    width, rows = case.input_size + case.hidden_size, case.steps * case.batch
    bound = testing.tolerance(dtype, width, per_term=8, tf32=case.tf32)
    problem = _off("output", output, truth.output, bound)
    if problem or not case.training:
        return problem
    if len(gradients) != len(truth.gradients):
        return f"{len(gradients)} gradients for {len(truth.gradients)} parameters"
    bound = testing.tolerance(dtype, width + rows, stores=case.steps, per_term=8, tf32=case.tf32)
    for (name, want), got in zip(truth.gradients.items(), gradients, strict=True):
        problem = problem or _off(f"gradient of {name}", got, want, bound)
    return problem


def _off(name: str, got: Tensor, want: Tensor, bound: float) -> Optional[str]:
    if tuple(got.shape) != tuple(want.shape):
        return f"{name} has shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    error = testing.error(got, want, least=1e-300)
    return (
        None
        if error <= bound
        else f"{name} is off by {error:.1e} of its largest entry, tolerated {bound:.1e}"
    )
