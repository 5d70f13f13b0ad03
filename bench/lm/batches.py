"""Partitioning of a token sequence into minibatches of inputs and labels, the inputs shifted by one.

Minibatches are time-major, int64 [num_steps, batch_size]. Both ways of partitioning start an epoch at a
random offset, cover every token at most once, and leave out what does not fill a minibatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PARTITIONS = ("sequential", "random")


class Batch(NamedTuple):
    inputs: Tensor  # int64 [num_steps, batch_size]
    labels: Tensor  # int64 [num_steps, batch_size]: the token after each input
    fresh: bool  # the sequences do not continue those of the batch before: the hidden state starts anew


def tokens_needed(batch_size: int, num_steps: int) -> int:
    """The shortest sequence that gives at least one minibatch whatever the offset."""
    return batch_size * num_steps + num_steps


def sequential(tokens: Tensor, batch_size: int, num_steps: int, offset: int = 0) -> Iterator[Batch]:
    """One epoch in which sequence b of a minibatch goes on where sequence b of the minibatch before ended."""
    length = (len(tokens) - offset - 1) // batch_size
    inputs = tokens[offset : offset + length * batch_size].view(batch_size, length).t()
    labels = tokens[offset + 1 : offset + 1 + length * batch_size].view(batch_size, length).t()
    for start in range(0, length - num_steps + 1, num_steps):
        piece = slice(start, start + num_steps)
        yield Batch(inputs[piece].contiguous(), labels[piece].contiguous(), fresh=start == 0)


def random(
    tokens: Tensor, batch_size: int, num_steps: int, offset: int = 0, generator: torch.Generator | None = None
) -> Iterator[Batch]:
    """One epoch of subsequences in random order; each starts from a fresh hidden state."""
    count = (len(tokens) - offset - 1) // num_steps
    starts = offset + num_steps * torch.randperm(count, generator=generator)
    steps = torch.arange(num_steps).unsqueeze(1)
    for chosen in starts[: count // batch_size * batch_size].view(-1, batch_size):
        where = chosen + steps
        yield Batch(tokens[where], tokens[where + 1], fresh=True)


def epochs(
    tokens: Tensor, batch_size: int, num_steps: int, partition: str, generator: torch.Generator
) -> Iterator[Batch]:
    """Minibatches without end, epoch after epoch, each epoch from another offset."""
    if len(tokens) < tokens_needed(batch_size, num_steps):
        raise ValueError(f"{len(tokens)} tokens give no minibatch of {batch_size} x {num_steps}")
    while True:
        offset = int(torch.randint(num_steps, (), generator=generator))
        if partition == "sequential":
            yield from sequential(tokens, batch_size, num_steps, offset)
        else:
            yield from random(tokens, batch_size, num_steps, offset, generator)


def batches_per_epoch(tokens: int, batch_size: int, num_steps: int) -> int:
    """Minibatches in one epoch of `tokens` tokens at offset 0."""
    return (tokens - 1) // (batch_size * num_steps)


def share(batches: Iterator[Batch], rank: int, world_size: int) -> Iterator[Batch]:
    """Of every minibatch the run of columns that process `rank` out of `world_size` takes."""
    for inputs, labels, fresh in batches:
        width = inputs.shape[1] // world_size
        columns = slice(rank * width, (rank + 1) * width)
        yield Batch(inputs[:, columns].contiguous(), labels[:, columns].contiguous(), fresh)
