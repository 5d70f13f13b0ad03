"""What the commands have in common."""

from __future__ import annotations

import argparse


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of `python -m bench NAME`; the description is printed as it is, a module's docstring say."""
    return argparse.ArgumentParser(
        f"python -m bench {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
