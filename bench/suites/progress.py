"""A progress bar where tqdm is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Optional, TypeVar

T = TypeVar("T")


def progress(
    items: Sequence[T], description: str, unit: str = "it", label: Optional[Callable[[T], str]] = None
) -> Iterator[T]:
    """The items; `label` names the one at hand, behind the bar."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from items
        return
    with tqdm(items, disable=None, desc=description, unit=unit) as bar:
        for item in bar:
            if label is not None:
                bar.set_postfix_str(label(item), refresh=True)
            yield item
