"""One layer of any cell: problems, what a backend makes of them, and the truth in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
from torch import Tensor

from rnnfast import dispatch, reference, testing
from rnnfast.backends.base import Problem
from rnnfast.call import CELLS, NONLINEARITIES
from rnnfast.functional import rnn_sequence

__all__ = ["CELLS", "NONLINEARITIES", "Recurrence", "make", "solvers"]

Results = dict[str, Tensor]  # output, h_n, and the gradient of each tensor by its name


@dataclass
class Recurrence:
    """The arguments of `rnn_sequence`, and the gradients that come back."""

    tensors: dict[str, Optional[Tensor]]  # x, h0, weight_ih, weight_hh, bias_ih, bias_hh, alpha, noise
    grads: tuple[Tensor, Tensor]  # of output and h_n
    cell: str
    nonlinearity: str
    reverse: bool = False
    batch_sizes: Optional[Tensor] = None
    resets: Optional[Tensor] = None

    def to(self, dtype: torch.dtype) -> Recurrence:
        tensors = {name: None if t is None else t.detach().to(dtype) for name, t in self.tensors.items()}
        return replace(self, tensors=tensors, grads=(self.grads[0].to(dtype), self.grads[1].to(dtype)))

    def without_extras(self) -> Recurrence:
        return replace(
            self, tensors={**self.tensors, "alpha": None, "noise": None}, cell="elman", resets=None
        )

    def run(self, backend: str) -> Results:
        """By `rnn_sequence`."""
        return self._run(
            lambda x, h0, w_ih, w_hh, b_ih, b_hh, alpha, noise: rnn_sequence(
                *(x, h0, w_ih, w_hh, b_ih, b_hh, self.nonlinearity),
                reverse=self.reverse,
                batch_sizes=self.batch_sizes,
                backend=backend,
                alpha=alpha,
                cell=self.cell,
                noise=noise,
                resets=self.resets,
            )
        )

    def loop(self, dtype: torch.dtype = torch.float64) -> Results:
        """By the reference, each sequence for itself."""

        def run(x: Any, h0: Any, *rest: Any) -> tuple[Tensor, Tensor]:
            *weights, alpha, noise = rest
            lengths = self.lengths()
            rows = self.rows()  # of each sequence
            output, last = torch.zeros_like(self.grads[0]).to(dtype).flatten(0, -2), []
            for i, length in enumerate(lengths):
                of = rows[i][:length]
                out, h_n = reference.rnn_sequence(
                    *(x.flatten(0, -2)[of].unsqueeze(1), h0[i : i + 1], *weights),
                    *(self.nonlinearity, self.reverse, self.cell, 1.0 if alpha is None else alpha),
                    0.0 if noise is None else noise.flatten(0, -2)[of].unsqueeze(1),
                    None if self.resets is None else self.resets.flatten()[of].unsqueeze(1),
                )
                output = output.index_put((of,), out.squeeze(1))
                last.append(h_n)
            return output.reshape(self.grads[0].shape), torch.cat(last)

        return self.to(dtype)._run(run)

    def lengths(self) -> list[int]:
        if self.batch_sizes is None:
            return [len(self.grads[0])] * len(self.grads[1])
        return [int((self.batch_sizes > i).sum()) for i in range(len(self.grads[1]))]

    def rows(self) -> list[Tensor]:
        """For each sequence, its rows."""
        batch = len(self.grads[1])
        sizes = torch.full((self.lengths()[0],), batch) if self.batch_sizes is None else self.batch_sizes
        starts = sizes.cumsum(0) - sizes
        return [starts + i for i in range(batch)]

    def _run(self, function: Any) -> Results:
        leaves = {n: t.detach().clone().requires_grad_() for n, t in self.tensors.items() if t is not None}
        output, h_n = function(*(leaves.get(name) for name in self.tensors))
        grads = torch.autograd.grad([output, h_n], list(leaves.values()), self.grads)
        found = {"output": output.detach(), "h_n": h_n.detach()}
        return found | {f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}

    def tolerances(self) -> dict[str, float]:
        """Bounds on `testing.error`, by the names of the results.

        A leaking state is rounded in every step. The gradient of alpha adds up terms of rounded values.
        """
        x, alpha = self.tensors["x"], self.tensors["alpha"]
        assert x is not None
        hidden, steps = self.grads[0].shape[-1], max(self.lengths())
        rows = x.shape[:-1].numel()
        plain = testing.tolerance(x.dtype, x.shape[-1] + hidden + rows, stores=steps)
        terms = rows * (hidden if alpha is not None and alpha.dim() == 0 else 1)
        of_alpha = testing.tolerance(x.dtype, x.shape[-1] + hidden + terms, stores=max(1, terms))
        names = ["output", "h_n", *(f"gradient of {name}" for name in self.tensors)]
        return dict.fromkeys(names, plain) | {"gradient of alpha": of_alpha}

    def check(self, backend: str) -> None:
        """Values and every gradient against the truth."""
        truth, tolerances = self.loop(), self.tolerances()
        for name, result in self.run(backend).items():
            testing.check(name, result, truth[name], tolerances[name])


def make(
    shape: tuple[int, int, int, int],  # T, B, I, H
    dtype: torch.dtype,
    cell: str,
    nonlinearity: str = "tanh",
    *,
    alpha: Any = "unit",  # or "scalar", or a number
    noise: bool = True,
    resets: Optional[str] = None,  # one of RESETS
    reverse: bool = False,
    lengths: Optional[list[int]] = None,
    bias: bool = True,
) -> Recurrence:
    """As `testing.make`, which keeps errors small. Neither noise nor a leak brings a relu near its edge."""
    case = testing.make(shape, dtype, nonlinearity, bias, lengths).to(torch.float64)
    generator = torch.Generator().manual_seed(sum(shape))
    hidden, rows = case.grad_hn.shape[1], case.grad_out.shape[:-1]
    tensors, wide = dict(case.inputs), case.inputs["bias_ih"]
    added = torch.randn(*rows, hidden, generator=generator, dtype=torch.float64).clamp(-2, 2)
    if nonlinearity == "relu" and dtype.itemsize == 2:
        assert wide is not None and case.inputs["h0"] is not None
        tensors["h0"] = (case.inputs["h0"].abs() + 0.2) * wide.sign()
        added /= 20
    tensors["noise"] = added / 4 if noise else None
    tensors["alpha"] = None
    if cell != "elman":
        units = torch.rand(hidden, generator=generator, dtype=torch.float64) * 0.6 + 0.3
        given = {"unit": units, "scalar": torch.tensor(0.4, dtype=torch.float64)}
        tensors["alpha"] = given[alpha] if isinstance(alpha, str) else torch.full((hidden,), alpha).double()
    tensors = {name: tensors[name] for name in (*testing.NAMES, "alpha", "noise")}
    mask = None if resets is None else RESETS[resets](*shape[:2])
    grads = case.grad_out, case.grad_hn
    made = Recurrence(tensors, grads, cell, nonlinearity, reverse, case.batch_sizes, mask)
    return made.to(dtype)


def _some(steps: int, batch: int) -> Tensor:
    return torch.rand(steps, batch, generator=torch.Generator().manual_seed(1)) < 0.3


def _one(step: int) -> Any:
    return lambda steps, batch: (torch.arange(steps) == step % steps).unsqueeze(1).repeat(1, batch)


RESETS: dict[str, Any] = {
    "some": _some,
    "first": _one(0),
    "last": _one(-1),
    "all": lambda steps, batch: torch.ones(steps, batch, dtype=torch.bool),
    "none": lambda steps, batch: torch.zeros(steps, batch, dtype=torch.bool),
}


def solvers(cell: str, nonlinearity: str = "tanh", noise: bool = True, resets: bool = False) -> list[str]:
    """The backends that take such a problem, of tensors on the CPU in float32; `eager` takes all."""
    problem = Problem("sequence", "cpu", "float32", 1, 1, 1, 1)
    problem = replace(problem, nonlinearity=nonlinearity, cell=cell, noise=noise, resets=resets)
    return [name for name in testing.BACKENDS if dispatch.why_not(name, problem) is None]
