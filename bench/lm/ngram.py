"""The baseline that only counts: interpolated n-grams with Witten-Bell smoothing.

    P_k(c | u) = (count(uc) + kinds(u) P_{k-1}(c | u')) / (count(u) + kinds(u)),   P_{-1}(c) = 1 / V

u is the last k characters, u' is u without its first one, count(u) how often u was followed by anything in
training, kinds(u) by how many different characters. A context never seen leaves the word to the shorter one.
No parameter is tuned, and no character has probability zero.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence


class NGram:
    """Character probabilities from counts over contexts of up to order - 1 tokens."""

    def __init__(self, order: int, vocabulary_size: int) -> None:
        self.order = order
        self.vocabulary_size = vocabulary_size
        self._followers: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        self._totals: dict[tuple[int, ...], int] = defaultdict(int)

    @property
    def num_parameters(self) -> int:
        """The number of counts stored."""
        return sum(map(len, self._followers.values()))

    def fit(self, tokens: Sequence[int]) -> None:
        """Count every token of `tokens` after each of its contexts."""
        for position, token in enumerate(tokens):
            for length in range(min(self.order - 1, position) + 1):
                context = tuple(tokens[position - length : position])
                followers = self._followers[context]
                followers[token] = followers.get(token, 0) + 1
                self._totals[context] += 1

    def probability(self, token: int, context: Sequence[int]) -> float:
        """P(token | the last order - 1 tokens of context)"""
        probability = 1.0 / self.vocabulary_size
        for length in range(min(self.order - 1, len(context)) + 1):
            suffix = tuple(context[len(context) - length :])
            followers = self._followers.get(suffix)
            if followers is None:
                break
            kinds = len(followers)
            probability = (followers.get(token, 0) + kinds * probability) / (self._totals[suffix] + kinds)
        return probability

    def log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        """log P of every token but the first, given those before it."""
        reach = self.order - 1
        return [
            math.log(self.probability(tokens[position], tokens[max(0, position - reach) : position]))
            for position in range(1, len(tokens))
        ]
