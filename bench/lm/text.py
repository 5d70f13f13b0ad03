"""From a text to tokens: loading, preparation, vocabulary, and the split into training and held-out part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TextError(ValueError):
    """The text cannot be used; the message says why and what would do."""


def python_prose() -> str:
    """The prose of the reference manual that every Python carries (`pydoc_data.topics`), a paragraph a line.

    The topics overlap. A paragraph is kept where it occurs first, otherwise the model would be tested on what
    it was trained on. Code and tables are left out.
    """
    from pydoc_data.topics import topics

    paragraphs: dict[str, None] = {}
    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            paragraph = " ".join(block.split()).lstrip("* ")
            words = sum(char.isalpha() or char == " " for char in paragraph)
            if len(paragraph) > 80 and words > 0.85 * len(paragraph):
                paragraphs.setdefault(paragraph)
    return "\n".join(paragraphs)


def read_text(path: str | Path) -> str:
    """The UTF-8 text in the file `path`; TextError where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from None
    except OSError as error:
        raise TextError(f"cannot read {path}: {error.strerror}") from None


def letters_only(text: str) -> str:
    """`text` as the d2l course prepares it: lower case, every run of other characters than a-z one space."""
    return re.sub("[^a-z]+", " ", text.lower())


class Vocabulary:
    """The distinct characters of a text, most frequent first, behind index 0 for every unknown character."""

    def __init__(self, text: str) -> None:
        counts: dict[str, int] = {}
        for char in text:
            counts[char] = counts.get(char, 0) + 1
        ranked = sorted(counts, key=lambda char: (-counts[char], char))
        self.characters = [UNKNOWN, *(char for char in ranked if char != UNKNOWN)]
        self._index = {char: index for index, char in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The indices of the characters of `text`, int64 [len(text)]."""
        return torch.tensor([self._index.get(char, 0) for char in text], dtype=torch.int64)

    def decode(self, indices: Iterable[int]) -> str:
        return "".join(self.characters[index] for index in indices)


@dataclass(frozen=True)
class Corpus:
    """A text in two parts that do not overlap. The vocabulary comes from the training part alone."""

    vocabulary: Vocabulary
    training: Tensor  # int64 [N]
    held_out: Tensor  # int64 [M]

    @classmethod
    def from_text(cls, text: str, max_tokens: int | None = None, held_out: float = 0.1) -> Corpus:
        """Hold out the last `held_out` part of `text`; train on the rest, or its first `max_tokens`."""
        kept = len(text) - round(held_out * len(text))
        if kept < 2 or len(text) - kept < 2:
            raise TextError(f"the text is too short to be split: {len(text)} characters")
        training = text[:kept][:max_tokens]
        vocabulary = Vocabulary(training)
        return cls(vocabulary, vocabulary.encode(training), vocabulary.encode(text[kept:]))
