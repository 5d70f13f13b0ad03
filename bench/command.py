"""What the commands have in common."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of `python -m bench NAME`; the description is printed as it is, a module's docstring say."""
    return argparse.ArgumentParser(
        f"python -m bench {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(kind: type) -> Any:
    """An argument type: a number of `kind` above zero."""

    def parse(value: str) -> Any:
        number = kind(value)
        if not number > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {value}")
        return number

    parse.__name__ = kind.__name__
    return parse


def make_folders(*paths: Path) -> None:
    """Make them now: a run is too long to find out at its end that it cannot be written down."""
    for path in paths:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}") from None


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Dataclasses as dictionaries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=asdict) + "\n", encoding="utf-8")
