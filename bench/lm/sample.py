"""Text from a model: the most probable characters, or drawn ones."""

from __future__ import annotations

import torch
from torch import nn

from bench.lm.text import Vocabulary


@torch.no_grad()
def generate(
    model: nn.Module,
    vocabulary: Vocabulary,
    prefix: str,
    length: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> str:
    """`prefix` and `length` characters more, each fed back as the next input. The prefix must not be empty.

    temperature 0 takes the most probable character (greedy); otherwise one is drawn from
    softmax(logits / temperature). The unknown character is never produced.
    """
    model.eval()
    read, state = vocabulary.encode(prefix).unsqueeze(1), None
    written = []
    for _ in range(length):
        logits, state = model(read, state)
        scores = logits[-1, 0].double()
        scores[0] = -torch.inf
        if temperature == 0:
            read = scores.argmax().view(1, 1)
        else:
            chances = torch.softmax(scores / temperature, 0)
            read = torch.multinomial(chances, 1, generator=generator).view(1, 1)
        written.append(int(read))
    model.train()
    return prefix + vocabulary.decode(written)
