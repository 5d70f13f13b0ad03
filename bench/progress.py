"""A progress bar where tqdm is installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], description: str) -> Iterable[T]:
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, disable=None, desc=description)
