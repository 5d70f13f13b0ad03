"""The tensors of a case, the same for every contender, and what a correct contender computes from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from bench.shapes import Case
from rnnfast import testing

Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # w_ih, w_hh, b_ih, b_hh of one layer in one direction


@dataclass(frozen=True)
class Inputs:
    """D directions (1 or 2), L layers; parameters in the order of `torch.nn.RNN.parameters()`."""

    x: Tensor  # [T, B, I], rows beyond a sequence's length are zero
    h0: Tensor  # [L * D, B, H]
    parameters: dict[str, Tensor]  # torch's names: weight_ih_l0 [H, I], weight_hh_l0 [H, H], ...
    lengths: Optional[Tensor]  # [B] int64, non-increasing; None when all are T
    grad_output: Tensor  # [T, B, D * H], the gradient that training sends back; zero beyond the lengths

    def layer(self, layer: int, direction: int) -> Weights:
        """The parameters of one layer in one direction."""
        suffix = f"l{layer}" + ("_reverse" if direction else "")
        w_ih, w_hh, b_ih, b_hh = (
            self.parameters[f"{kind}_{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return w_ih, w_hh, b_ih, b_hh


@dataclass(frozen=True)
class Expected:
    output: Tensor  # [T, B, D * H] float64
    gradients: dict[str, Tensor]  # of sum(output * grad_output), float64; empty for a forward case


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Standard normal data, and parameters as torch initialises them: uniform in +-1/sqrt(H)."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    T, B, H = case.steps, case.batch, case.hidden_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def uniform(*shape: int) -> Tensor:
        return ((torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(H)).to(dtype)

    parameters = {}
    for layer in range(case.layers):
        for direction in range(case.directions):
            suffix = f"l{layer}" + ("_reverse" if direction else "")
            parameters[f"weight_ih_{suffix}"] = uniform(
                H, case.input_size if layer == 0 else H * case.directions
            )
            parameters[f"weight_hh_{suffix}"] = uniform(H, H)
            parameters[f"bias_ih_{suffix}"] = uniform(H)
            parameters[f"bias_hh_{suffix}"] = uniform(H)
    lengths = None
    x, grad_output = normal(T, B, case.input_size), normal(T, B, case.directions * H)
    if case.packed:
        # Evenly spread between a quarter of T and all of it.
        lengths = torch.linspace(T, max(1, T // 4), B).round().long()
        inside = torch.arange(T)[:, None, None] < lengths[None, :, None]
        x, grad_output = x * inside, grad_output * inside
    h0 = normal(case.layers * case.directions, B, H) / 2
    return Inputs(x, h0, parameters, lengths, grad_output)


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
    weight gradient may enter once a step: times sqrt(T).
    """
    truth, dtype = expected(case), getattr(torch, case.dtype)
    width, rows = case.input_size + case.hidden_size, case.steps * case.batch
    bound = testing.tolerance(dtype, width, per_term=8)
    problem = _off("output", output, truth.output, bound)
    if problem or not case.training:
        return problem
    if len(gradients) != len(truth.gradients):
        return f"{len(gradients)} gradients for {len(truth.gradients)} parameters"
    bound = testing.tolerance(dtype, width + rows, stores=case.steps, per_term=8)
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
