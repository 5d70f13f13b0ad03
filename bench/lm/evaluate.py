"""Perplexity, and a model's perplexity on a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def perplexity(log_probabilities: Tensor) -> float:
    """exp(mean of -log P): 1 for a perfect prediction, V for a uniform one over V, infinite where P was 0."""
    return torch.exp(-log_probabilities.double().mean()).item()


@torch.no_grad()
def log_probabilities(model: nn.Module, tokens: Tensor, piece: int = 1000) -> Tensor:
    """log P of every token of `tokens` [N] but the first, given all those before it -> [N - 1]

    The text is read as one sequence; in pieces, with the state carried over, to bound the memory it takes.
    """
    model.eval()
    state = None
    found = []
    for start in range(0, len(tokens) - 1, piece):
        read = tokens[start : start + piece + 1].unsqueeze(1)
        logits, state = model(read[:-1], state)
        found.append(-F.cross_entropy(logits.flatten(0, 1), read[1:].flatten(), reduction="none"))
    model.train()
    return torch.cat(found)
