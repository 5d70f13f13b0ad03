"""Training of several models on the same minibatches, in turns: the machine's noise hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lm import processes
from bench.lm.batches import Batch
from bench.lm.evaluate import perplexity


class TrainingDiverged(ArithmeticError):
    """A perplexity was not finite: a softmax gives nothing probability zero, so something overflowed."""


@dataclass(frozen=True)
class Mark:
    """Where a model stood after `step` steps and `seconds` of its own training time."""

    step: int
    seconds: float
    training_loss: float  # mean over the steps since the mark before
    held_out_perplexity: float | None = None

    @property
    def training_perplexity(self) -> float:
        return perplexity(torch.tensor([-self.training_loss]))


@dataclass
class Trainer:
    """One model with its optimiser, its clock, and its record. Evaluation does not run the clock."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    clip: float
    seconds: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    _losses: list[Tensor] = field(default_factory=list)
    _state: Tensor | None = None

    def __post_init__(self) -> None:
        self._forward = processes.parallel(self.model)
        self._learning_rate = self.optimizer.param_groups[0]["lr"]

    def run(self, batches: Sequence[Batch]) -> None:
        """One step of optimisation for each minibatch."""
        start = time.perf_counter()
        losses = torch.stack([self._step(batch) for batch in batches])
        self.seconds += time.perf_counter() - start
        losses = processes.mean(losses)
        if not losses.double().exp().isfinite().all():
            raise TrainingDiverged(
                f"{self.name}: training perplexity is no longer finite; lower --lr or --clip"
            )
        self._losses.append(losses)
        step = (self.marks[-1].step if self.marks else 0) + len(losses)
        self.marks.append(Mark(step, self.seconds, losses.double().mean().item()))

    def _step(self, batch: Batch) -> Tensor:
        # Backpropagation is truncated at the minibatch: the state is carried over, its history is not.
        state = None if batch.fresh else self._state
        logits, state = self._forward(batch.inputs, state)
        self._state = state.detach()
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()

    def scale_learning_rate(self, factor: float) -> None:
        """Set the learning rate to `factor` times what it was at first."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self._learning_rate

    def evaluate(self, held_out_perplexity: Callable[[nn.Module], float]) -> None:
        """Add the held-out perplexity to the last mark, unless it is there."""
        if self.marks[-1].held_out_perplexity is None:
            found = held_out_perplexity(self.model)
            if not math.isfinite(found):
                raise TrainingDiverged(
                    f"{self.name}: held-out perplexity is not finite; lower --lr or --clip"
                )
            self.marks[-1] = replace(self.marks[-1], held_out_perplexity=found)

    @property
    def held_out_perplexity(self) -> float:
        """The latest."""
        found = (mark.held_out_perplexity for mark in reversed(self.marks))
        return next(value for value in found if value is not None)

    @property
    def losses(self) -> Tensor:
        """The mean loss of every minibatch so far, float64 [steps]."""
        return torch.cat(self._losses).double()


@dataclass(frozen=True)
class Budget:
    """Training ends after `steps`, or in time for `seconds` from `start`, whichever comes first."""

    start: float  # of time.perf_counter
    steps: int | None = None
    seconds: float | None = None

    def fraction(self, step: int, reserve: float = 0.0) -> float:
        """The part of the budget that is used up, `reserve` being seconds that are still needed."""
        used = [0.0]
        if self.steps is not None:
            used.append(step / self.steps)
        if self.seconds is not None:
            used.append((time.perf_counter() - self.start + reserve) / self.seconds)
        return processes.from_first(min(1.0, max(used)))


def train(
    trainers: Sequence[Trainer],
    batches: Iterator[Batch],
    budget: Budget,
    held_out_perplexity: Callable[[nn.Module], float],
    decay: bool = False,
    turn: int = 20,
    progress: Callable[[float, float], object] = lambda fraction, perplexity: None,
) -> None:
    """Train all models on the same minibatches, `turn` steps each at a time, first and last changing places.

    With `decay` the learning rate falls linearly to zero as the budget is used up.
    Held-out perplexity is taken whenever the number of turns has doubled, and at the end.
    """
    turns = step = 0
    reserve = evaluation = 0.0
    while (used := budget.fraction(step, reserve)) < 1 or turns == 0:
        began = time.perf_counter()
        pieces = list(islice(batches, turn if budget.steps is None else min(turn, budget.steps - step)))
        for trainer in trainers if decay else ():
            trainer.scale_learning_rate(1 - used)
        for trainer in trainers if turns % 2 == 0 else reversed(trainers):
            trainer.run(pieces)
        turns, step = turns + 1, step + len(pieces)
        reserve = time.perf_counter() - began + evaluation
        if turns & (turns - 1) == 0:  # a power of two
            began = time.perf_counter()
            for trainer in trainers:
                trainer.evaluate(held_out_perplexity)
            evaluation = time.perf_counter() - began
        progress(budget.fraction(step), trainers[0].marks[-1].training_perplexity)
    for trainer in trainers:
        trainer.evaluate(held_out_perplexity)
