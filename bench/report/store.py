"""The JSON file of a run: written anew after every cell, so that an interrupted run keeps what it has.

    {"environment": {...}, "roofline": {threads: {...}}, "memory": {contender: {...}},
     "cells": {case key: {"case": {...}, "flops": ..., "results": {contender: {"status": ..., ...}}}}}

A result's status is "timed", "wrong", "refused", "unavailable" or "failed"; all but the first have a
"reason". A cell that was measured again later has its own "commit" and "date". "notes", where it is there,
has sentences about the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from bench.machine import environment


class Store:
    def __init__(self, path: Path, data: dict) -> None:
        self.path, self.data = path, data

    @classmethod
    def begin(cls, path: Path, here: dict) -> Store:
        """Starts `path`, or takes it up; `here` is `environment.describe()`.

        Raises ValueError when the file holds cells of another machine, commit or set of versions.
        """
        if path.exists():
            store = cls.open(path)
            found = store.data["environment"]
            if not environment.same(found, here):
                differing = [k for k in here if k != "date" and found.get(k) != here[k]]
                raise ValueError(
                    f"{path} was measured with another {', '.join(differing)}: "
                    "name another file with --json, or delete it"
                )
        else:
            store = cls(path, {"environment": here, "roofline": {}, "memory": {}, "cells": {}})
            store._write()
        return store

    @classmethod
    def open(cls, path: Path) -> Store:
        """A file that `begin` has accepted, perhaps in another process."""
        return cls(path, read(path))

    def finished(self, key: str, contenders: Iterable[str]) -> bool:
        """Whether the cell has a result for each of them; if not, all run again, against each other."""
        cell = self.data["cells"].get(key)
        return cell is not None and set(contenders) <= set(cell["results"])

    def put(self, section: str, key: str, value: dict) -> None:
        self.data[section][key] = value
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(partial, self.path)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def read_cells(path: Path) -> dict:
    """A file of `python -m bench run`; ValueError, with the reason, where it can't be read or is none."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    return with_cells(text, str(path))


def with_cells(text: str, name: str) -> dict:
    """`text` as JSON; ValueError unless it has cells."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON file: {error}") from None
    if not isinstance(data, dict) or "cells" not in data:
        raise ValueError(f"{name} is no file of `python -m bench run`: it has no cells")
    return data
