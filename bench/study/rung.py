"""What a rung is.

A rung is one file in rungs/, NN_name.py or NN_name.cpp (.cu), whose head is its page, and one entry in
`RUNGS` of cpu.py or gpu.py, which says how it is called, what was predicted, and how its outcome is
explained. To add one: write the file, add the entry; the command, the table, the picture and the tests
take it from there.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from bench.study.problem import CHECKED, TIMED, Shape, Solve

RUNG_FILES = Path(__file__).parent / "rungs"
Terms = dict[str, float]  # what a step's time is made of: name and microseconds a step


@dataclass(frozen=True)
class Rung:
    number: int
    file: str  # in rungs/
    idea: str  # one line
    load: Callable[[], Solve]  # builds it; raises build.Unavailable with the reason
    predict: Callable[..., Terms]  # (machine: machine.Machine, shape: Shape), microseconds a step
    outcome: str  # what came out, and what the prediction misses where it does: the second part of its page
    becomes: str  # the shipped file that it turns into
    backward: bool = False
    # (machine) -> why this machine can check the rung and not time it, or None: GPU code on a CPU, say.
    untimed: Callable[[], Optional[str]] = lambda: None
    shapes: tuple[Shape, ...] = TIMED  # what it is timed on
    checked: tuple[Shape, ...] = CHECKED  # what it is checked on: some rungs have a largest H
    variant: str = ""  # "b" for the second rung of a number
    before: str = ""  # the label of the rung it is compared with, or else the one before it

    @property
    def label(self) -> str:
        return f"{self.number}{self.variant}"

    @property
    def path(self) -> Path:
        return RUNG_FILES / self.file

    def page(self) -> str:
        """The comment or docstring that the file opens with."""
        return head(self.path.read_text())

    def exercise(self) -> str:
        """The comment that the file ends with, from the word Exercise on."""
        text = self.path.read_text()
        lines = text[text.rindex("Exercise") :].splitlines()
        return "\n".join(line.removeprefix("//").removeprefix("#").strip() for line in lines).strip()


def head(text: str) -> str:
    if not text.startswith("//"):
        return (ast.get_docstring(ast.parse(text)) or "").strip()
    lines = []
    for line in text.splitlines():
        if not line.startswith("//"):
            break
        lines.append(line[2:].removeprefix(" "))
    return "\n".join(lines).strip()
