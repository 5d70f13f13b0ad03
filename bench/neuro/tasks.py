"""Two tasks with two choices, with the periods, inputs and noise that neurogym gives them.

All times are in milliseconds. A channel shows the fixation point until the decision. Stimuli have white noise
of `SIGMA` per root of a millisecond, so that the length of a step does not change how hard a task is. The
network's outputs are: keep fixating, first choice, second choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

STEP = 20  # of the simulation
SIGMA = 1.0
OUTPUTS = 3


@dataclass(frozen=True)
class Trials:
    """inputs [T, B, I]; answers [B], 1 or 2; levels [B], how easy each is; the first step of the decision."""

    inputs: Tensor
    answers: Tensor
    levels: Tensor
    decision: int

    @property
    def targets(self) -> Tensor:
        """The output that is right in every step: 0, fixate, and in the decision the answer; int64 [T, B]."""
        targets = torch.zeros(self.inputs.shape[:2], dtype=torch.int64)
        targets[self.decision :] = self.answers
        return targets


class Task(Protocol):
    """A task, its levels in training and in the test, and what an ideal observer makes of a level."""

    name: str
    features: int
    unit: str
    training_levels: tuple[float, ...]
    test_levels: tuple[float, ...]

    def trials(self, levels: Tensor, generator: torch.Generator) -> Trials:
        """A trial of each of levels [B], with the answer drawn."""
        ...

    def ideal(self, level: float) -> float:
        """The part that is right if all that was shown is weighed without further noise or loss."""
        ...


class RandomDots:
    """Which of two directions has more motion in it (Britten, Shadlen, Newsome and Movshon 1992).

    neurogym's PerceptualDecisionMaking: two channels show (1 +- coherence) / 2 for two seconds, through which
    evidence has to be added up. Levels are coherences in percent.
    """

    name = "random dots"
    features = 3
    unit = "coherence, %"
    training_levels = (0.0, 6.4, 12.8, 25.6, 51.2)
    test_levels = (0.0, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)

    fixation, stimulus, decision = 100, 2000, 100

    def trials(self, levels: Tensor, generator: torch.Generator) -> Trials:
        count = len(levels)
        shown = slice(self.fixation // STEP, (self.fixation + self.stimulus) // STEP)
        answers = torch.randint(1, 3, (count,), generator=generator)
        inputs = torch.zeros(shown.stop + self.decision // STEP, count, self.features)
        inputs[: shown.stop, :, 0] = 1.0
        sign = torch.stack([3.0 - 2.0 * answers, 2.0 * answers - 3.0], dim=1)  # [B, 2]: + for the answer
        inputs[shown, :, 1:] = 0.5 + sign * levels.unsqueeze(1) / 200.0
        inputs[shown, :, 1:] += _noise(shown.stop - shown.start, count, 2, generator=generator)
        return Trials(inputs, answers, levels, shown.stop)

    def ideal(self, level: float) -> float:
        # The sum of the channels' difference has a mean of level / 100 and a variance of 2 SIGMA^2 per ms.
        return _normal(level / 100.0 * math.sqrt(self.stimulus / 2.0) / SIGMA)


class DelayedComparison:
    """Which of two vibrations, a second apart, is the faster (Romo, Brody, Hernandez and Lemus 1999).

    neurogym's DelayComparison: 10 to 34 Hz are shown as 0.5 to 1, for half a second each. Levels are
    differences in Hz. Training has neurogym's five pairs, all 8 Hz apart; neither frequency by itself tells
    the answer, but for the extreme ones. For the other differences, of the test, the lower frequency is any.
    """

    name = "delayed comparison"
    features = 2
    unit = "difference, Hz"
    training_levels = (8.0,)
    test_levels = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0)

    fixation, stimulus, delay, decision = 500, 500, 1000, 100
    lowest, highest, spacing = 10.0, 34.0, 4.0

    def trials(self, levels: Tensor, generator: torch.Generator) -> Trials:
        count = len(levels)
        first, second, decision = (
            t // STEP
            for t in (
                self.fixation,
                self.fixation + self.stimulus + self.delay,
                self.fixation + 2 * self.stimulus + self.delay,
            )
        )
        answers = torch.randint(1, 3, (count,), generator=generator)
        room = self.highest - self.lowest - levels
        low = torch.rand(count, generator=generator) * room
        pairs = (torch.rand(count, generator=generator) * (room / self.spacing + 1)).floor() * self.spacing
        low = self.lowest + torch.where(levels == self.training_levels[0], pairs, low)
        frequencies = torch.stack([low + levels * (answers == 1), low + levels * (answers == 2)])
        inputs = torch.zeros(decision + self.decision // STEP, count, self.features)
        inputs[:decision, :, 0] = 1.0
        steps = self.stimulus // STEP
        for start, frequency in zip((first, second), frequencies, strict=True):
            shown = 0.5 + 0.5 * (frequency - self.lowest) / (self.highest - self.lowest)
            inputs[start : start + steps, :, 1] = shown + _noise(steps, count, generator=generator)
        return Trials(inputs, answers, levels, decision)

    def ideal(self, level: float) -> float:
        # The difference of two means over `stimulus` ms has a variance of 2 SIGMA^2 / stimulus.
        shown = 0.5 * level / (self.highest - self.lowest)
        return _normal(shown * math.sqrt(self.stimulus / 2.0) / SIGMA)


TASKS: dict[str, Task] = {"random-dots": RandomDots(), "delayed-comparison": DelayedComparison()}


def training_trials(task: Task, count: int, generator: torch.Generator) -> Trials:
    levels = torch.tensor(task.training_levels)
    return task.trials(levels[torch.randint(len(levels), (count,), generator=generator)], generator)


def _noise(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator) * (SIGMA / math.sqrt(STEP))


def _normal(deviations: float) -> float:
    """The distribution function of the standard normal distribution."""
    return 0.5 * (1.0 + math.erf(deviations / math.sqrt(2.0)))
