"""The rungs on a CPU: how each is called, and what was predicted from which quantity of the machine."""

from __future__ import annotations

import runpy
from collections.abc import Callable

from bench.study.machine import Machine
from bench.study.problem import Problem, Result, Shape, Solve
from bench.study.rung import RUNG_FILES, Rung, Terms


def in_python(file: str) -> Callable[[], Solve]:
    """Loads a rung whose file has forward(x, h0, w_ih, w_hh, b) -> out."""

    def load() -> Solve:
        forward = runpy.run_path(str(RUNG_FILES / file))["forward"]

        def solve(problem: Problem) -> Result:
            return (forward(*problem.parameters()),)

        return solve

    return load


def predict_equation(m: Machine, s: Shape) -> Terms:
    return {
        "calls": 4 * m.call(),
        "products": 2 * m.product(s.batch, s.hidden),
        "tanh": m.torch_tanh() * s.batch * s.hidden / 1e3,
        "copies": 4 * s.batch * (s.inputs + s.hidden) / m.read(16384) / 1e3,
    }


def predict_two_products(m: Machine, s: Shape) -> Terms:
    return {
        "calls": 4 * m.call(),
        "products": 2 * m.product(s.batch, s.hidden),
        "tanh": m.torch_tanh() * s.batch * s.hidden / 1e3,
    }


RUNGS = (
    Rung(
        number=0,
        file="00_equation.py",
        idea="the equation: cat, product, tanh, a Python loop",
        load=in_python("00_equation.py"),
        predict=predict_equation,
        outcome="Four calls a step (reading x_t is one) set the time where the matrices are small.",
        becomes="rnnfast/reference.py",
    ),
    Rung(
        number=1,
        file="01_two_products.py",
        idea="two products, nothing is put side by side",
        load=in_python("01_two_products.py"),
        predict=predict_two_products,
        outcome="A call of cat is exchanged for one of a product, so the calls stay four.",
        becomes="rnnfast/backends/eager.py",
    ),
)
