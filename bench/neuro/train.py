"""Training of the networks on the same trials with the same noise."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.neuro.tasks import Task, Trials


class TrainingDiverged(ArithmeticError):
    """A loss was not finite."""


@dataclass
class Trainer:
    """A network with its optimiser, its clock and its record."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    clip: float = 1.0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of every step

    def epoch(self, minibatches: Sequence[Trials], seed: int) -> None:
        """A step of optimisation for each minibatch; `seed` is that of the units' noise.

        Raises TrainingDiverged.
        """
        torch.manual_seed(seed)
        for trials in minibatches:
            start = time.perf_counter()
            self.losses.append(self._step(trials))
            self.seconds.append(time.perf_counter() - start)
        if not math.isfinite(self.losses[-1]):
            raise TrainingDiverged(f"{self.name}: the loss is no longer finite; lower --lr")

    def _step(self, trials: Trials) -> float:
        loss = trial_loss(self.model(trials.inputs), trials)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()

    @property
    def seconds_per_step(self) -> float:
        """The median."""
        return statistics.median(self.seconds)


def trial_loss(logits: Tensor, trials: Trials) -> Tensor:
    """The cross-entropy to the targets: the mean over the decision plus that over all steps before it.

    logits: ``[T, B, outputs]``.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), trials.targets.flatten(), reduction="none")
    losses = losses.view(logits.shape[:2])
    return losses[: trials.decision].mean() + losses[trials.decision :].mean()


def choices(logits: Tensor, trials: Trials) -> Tensor:
    """The choice of the larger mean logit in the decision, 1 or 2, [B]."""
    return logits[trials.decision :, :, 1:].mean(0).argmax(-1) + 1


@torch.no_grad()
def part_correct(model: nn.Module, task: Task, count: int, seed: int) -> dict[float, float]:
    """By level of the test, the part of `count` trials in which the network chose right."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    found = {}
    for level in task.test_levels:
        trials = task.trials(torch.full((count,), level), generator)
        right = choices(model(trials.inputs), trials) == trials.answers
        found[level] = right.double().mean().item()
    return found
