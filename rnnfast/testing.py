"""Problems for tests and benchmarks: shapes, inputs that keep errors small, the truth, tolerances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnnfast import dispatch, reference
from rnnfast.arguments import check_packed, fits
from rnnfast.backends.base import Backend, Outputs, Problem
from rnnfast.call import Call, Network, made, read
from rnnfast.ops import dense_call

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

Weights = tuple[Tensor, Tensor, Optional[Tensor], Optional[Tensor]]  # w_ih [H, I], w_hh [H, H], biases [H]

NAMES = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass
class Case:
    """The arguments of one layer, the gradients that come back to it, and how long its sums are."""

    inputs: dict[str, Optional[Tensor]]  # by NAMES
    grad_out: Tensor
    grad_hn: Tensor
    batch_sizes: Optional[Tensor] = None
    tf32: bool = False  # whether products may round their operands to TF32

    @property
    def args(self) -> list[Any]:
        return [self.inputs[name] for name in NAMES]

    def leaves(self) -> list[Tensor]:
        """The arguments that can have gradients, made to require them."""
        return [t.requires_grad_() for t in self.args if t is not None]

    def call(self, nonlinearity: str = "tanh", reverse: bool = False, step: bool = False) -> Call:
        """The layer as backends get it; with `step` its first step alone."""
        x, h0, *weights = self.args
        given = tuple(weight for weight in weights if weight is not None)
        network = Network(nonlinearity, reverse=(reverse,), biases=len(given) == 4, step=step)
        return call_of(network, x[0] if step else x, h0, given, self.batch_sizes)

    def to(self, dtype: torch.dtype) -> Case:
        inputs = {k: None if t is None else t.detach().to(dtype) for k, t in self.inputs.items()}
        return Case(inputs, self.grad_out.to(dtype), self.grad_hn.to(dtype), self.batch_sizes, self.tf32)

    def tolerance(self) -> float:
        """The bound on `error` of every result and gradient."""
        x, w = self.inputs["x"], self.inputs["weight_hh"]
        assert x is not None and w is not None
        rows = x.numel() // max(1, x.shape[-1])
        return tolerance(x.dtype, x.shape[-1] + len(w) + rows, tf32=self.tf32)


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

    batch_sizes = None
    rows: tuple[int, ...] = (steps, batch)
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


def call_of(
    network: Network,
    x: Tensor,
    h0: Optional[Tensor],
    weights: tuple[Tensor, ...],
    batch_sizes: Optional[Tensor] = None,
    resets: Optional[Tensor] = None,
) -> Call:
    """A call for `Backend.forward`, which has passed the checks that every call passes."""
    call = read(network, x, h0, weights, batch_sizes, resets)
    if call is not None:
        return call
    if batch_sizes is not None:
        check_packed(batch_sizes, x, h0)
    fit = fits(network, x, h0, weights, batch_sizes is not None, resets)
    assert fit, "these are not the arguments of a call"
    return dense_call(made(network, x, h0, weights, batch_sizes, resets))


def backward(
    backend: Backend,
    call: Call,
    results: tuple[Tensor, ...],
    grads: tuple[Optional[Tensor], Optional[Tensor]],
    needs: Optional[tuple[bool, ...]] = None,
) -> tuple[Optional[Tensor], ...]:
    """The gradients of x, h0 and each weight: of all, or where `needs` says so.

    `results` are those of `backend.forward(call)`, and `grads` the gradients of output and h_n.
    """
    hidden = results[2] if call.network.layers > 1 else None
    inner = results[-1] if call.network.cell != "elman" else None
    needs = (True,) * (2 + len(call.weights)) if needs is None else needs
    return backend.backward(call, Outputs(results[0], hidden, *grads, inner=inner), needs)


def expected(case: Case, nonlinearity: str, reverse: bool = False) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, h_n and the gradients of `case.leaves()`, from the reference in float64."""
    case = case.to(torch.float64)
    leaves = case.leaves()
    x, h0, w_ih, w_hh, b_ih, b_hh = case.args
    weights = w_ih, w_hh, b_ih, b_hh
    if case.batch_sizes is None:
        out, h_n = layer(x, h0, weights, nonlinearity, reverse)
    else:
        padded, lengths = pad_packed_sequence(PackedSequence(x, case.batch_sizes))
        out, h_n = layer(padded, h0, weights, nonlinearity, reverse, lengths)
        out = pack_padded_sequence(out, lengths).data
    grads = torch.autograd.grad([out, h_n], leaves, [case.grad_out, case.grad_hn])
    return out.detach(), h_n.detach(), list(grads)


def layer(
    x: Tensor,  # [T, B, I]
    h0: Tensor,  # [B, H]
    weights: Weights,
    nonlinearity: str,
    reverse: bool = False,
    lengths: Optional[Tensor] = None,  # [B] int64; None when all are T
) -> tuple[Tensor, Tensor]:
    """Output [T, B, H] and h_n [B, H] of one layer by the reference: the truth, if computed in float64.

    Beyond a sequence's length the output is zero. Sequences of equal length are computed together.
    """
    if lengths is None:
        return reference.rnn_sequence(x, h0, *weights, nonlinearity, reverse)
    output, last = [x] * len(lengths), [h0] * len(lengths)
    for length in lengths.unique().tolist():
        columns = (lengths == length).nonzero().flatten().tolist()
        out, h_n = reference.rnn_sequence(x[:length, columns], h0[columns], *weights, nonlinearity, reverse)
        out = torch.cat([out, out.new_zeros(len(x) - length, *out.shape[1:])])
        for i, column in enumerate(columns):
            output[column], last[column] = out[:, i], h_n[i]
    return torch.stack(output, dim=1), torch.stack(last)


def tolerance(
    dtype: torch.dtype, terms: int, stores: int = 1, per_term: float = 2.0, tf32: bool = False
) -> float:
    """What rounding explains of a result's `error`.

    Storing rounds to `dtype`, in a few places whose errors fade as the state contracts: 8 eps, times the root
    of `stores` where that many rounded values are added up. A sum of `terms` terms rounds in its accumulator
    (float32 for the 16-bit types), and its errors add up like a random walk: `per_term` eps times the root of
    `terms`. With `tf32` each operand has 11 bits, so each term is off by up to 2^-11 of itself.
    """
    if tf32:
        return max(8 * stores**0.5, terms**0.5) * 2.0**-11
    accumulator = torch.float64 if dtype is torch.float64 else torch.float32
    stored = 8 * torch.finfo(dtype).eps * stores**0.5
    return stored + per_term * torch.finfo(accumulator).eps * terms**0.5


def error(actual: Tensor, expected: Tensor, least: float = 1.0) -> float:
    """The largest difference, relative to the largest element of `expected`, or to `least` if that is larger.

    Infinite for NaN, zero for empty tensors. The shapes must agree.
    """
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().clamp(min=least)
    found = ((actual.detach().to(expected) - expected).abs().max() / scale).item()
    return found if found == found else float("inf")


def check(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fails, naming `name`, unless shapes match and the error is within tolerance (which NaN never is)."""
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    found = error(actual, expected)
    assert found <= tolerance, f"{name}: relative error {found:.3g} exceeds {tolerance:.3g}"
