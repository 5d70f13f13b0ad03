"""A layer's outputs and gradients through the functional API, against the truth in float64."""

from __future__ import annotations

import torch

from rnnfast.functional import rnn_sequence
from rnnfast.testing import NAMES, check, expected


def compare_sequence(case, nonlinearity, reverse, backend):
    out, h_n, grads = expected(case, nonlinearity, reverse)
    leaves = case.leaves()
    actual_out, actual_hn = rnn_sequence(
        *case.args, nonlinearity, reverse=reverse, batch_sizes=case.batch_sizes, backend=backend
    )
    actual = torch.autograd.grad([actual_out, actual_hn], leaves, [case.grad_out, case.grad_hn])
    tolerance = case.tolerance()
    check("output", actual_out, out, tolerance)
    check("h_n", actual_hn, h_n, tolerance)
    for name, a, e in zip(NAMES, actual, grads, strict=False):
        check(f"gradient of {name}", a, e, tolerance)


def make_without_hn(case):
    case = case.to(case.grad_out.dtype)
    case.grad_hn = torch.zeros_like(case.grad_hn)
    return case
