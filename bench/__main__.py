"""`python -m bench` lists the commands, `python -m bench COMMAND ...` runs one.

A command's module is imported when it runs, and no other: some need what others do without.
"""

from __future__ import annotations

import sys
from importlib import import_module

# Name: module and function, what it does. A function takes the arguments and returns the exit status.
COMMANDS = {
    "run": ("bench.suites.run:main", "measure a suite: check every contender against float64, then time it"),
    "report": ("bench.report.report:main", "results as tables and pictures; --all: the documents' tables"),
    "compare": ("bench.report.compare:main", "which cells moved between two runs, beyond their spread"),
    "calls": ("bench.machine.calls:main", "what a call costs before anything is computed"),
    "cells": (
        "bench.machine.cells:main",
        "leaky and continuous-time cells, resets: beside Elman's, and loops",
    ),
    "ceiling": ("bench.machine.ceiling:main", "how near to the FMA peak products and recurrences come"),
    "memory": ("bench.suites.memory:main", "peak memory of one contender's training step"),
    "gpu": ("bench.gpu.run:main", "everything that has to be found out on a GPU, in ten minutes"),
    "latency": ("bench.machine.gpu_latency:main", "the parts of a step on a GPU, each timed by itself"),
    "crossover": ("bench.report.crossover:main", "where `auto` takes a GPU backend, from results"),
    "reservoir": ("bench.reservoir.reservoir:main", "echo state networks on chaotic series, and reservoirpy"),
    "neuro": (
        "bench.neuro.neuro:main",
        "rate networks on two tasks of neuroscience, and a Python loop",
    ),
    "study": ("bench.study.command:main", "the study ladder: from the equation to a persistent kernel"),
    "charlm": ("bench.lm.charlm:main", "train a language model on rnnfast and torch side by side"),
}


def index() -> str:
    lines = [f"  {name:<10} {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(["usage: python -m bench COMMAND ...", "", *lines, "", "COMMAND --help says more."])


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(index())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"there is no command {name!r}\n\n{index()}", file=sys.stderr)
        return 2
    module, function = COMMANDS[name][0].split(":")
    return getattr(import_module(module), function)(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
