"""The tensors of a case, the same for every contender."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from bench.cases.case import Case

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


def lengthened(few: Inputs, case: Case) -> Inputs:
    """The same weights and first states, with sequences of the case's length, made where they are needed."""
    dtype = getattr(torch, case.dtype)

    def normal(width: int) -> Tensor:
        return torch.randn(case.steps, case.batch, width, device=case.device, dtype=dtype)

    return replace(few, x=normal(case.input_size), grad_output=normal(case.hidden_size))
