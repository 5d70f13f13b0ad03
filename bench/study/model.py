"""The predictions of the rungs on a CPU: what a step's time is made of, in us, from measured quantities."""

from __future__ import annotations

from bench.study.machine import Machine
from bench.study.problem import Shape
from bench.study.rung import Terms


def predict_equation(m: Machine, s: Shape) -> Terms:
    return {
        "calls": 3 * m.call(),
        "products": 2 * m.product(s.batch, s.hidden),
        "tanh": _torch_tanh(m, s),
        "copies": 4 * s.batch * (s.inputs + s.hidden) / m.read(16384) / 1e3,
    }


def predict_two_products(m: Machine, s: Shape) -> Terms:
    return {
        "calls": 3 * m.call(),
        "products": 2 * m.product(s.batch, s.hidden),
        "tanh": _torch_tanh(m, s),
    }


def predict_only_the_carry(m: Machine, s: Shape) -> Terms:
    return {
        "calls": 2 * m.call(),
        "product": m.product(s.batch, s.hidden),
        "tanh": _torch_tanh(m, s),
        **_once_a_call(m, s),
    }


def predict_one_call(m: Machine, s: Shape) -> Terms:
    fmas = s.batch * s.hidden**2
    weights = 4 * s.hidden**2
    return {
        "product": max(fmas / m.update(), s.batch * weights / m.read(weights)) / 1e3,
        "tanh": m.scalar_tanh() * s.batch * s.hidden / 1e3,
        **_once_a_call(m, s, packed=True),
    }


def predict_panels(m: Machine, s: Shape) -> Terms:
    return {
        "product": _tiles(m, s),
        "tanh": m.scalar_tanh() * s.batch * s.hidden / 1e3,
        **_once_a_call(m, s, packed=True),
    }


def predict_epilogue(m: Machine, s: Shape) -> Terms:
    return {
        "product": _tiles(m, s),
        "tanh": m.vector_tanh() * s.batch * s.hidden / 1e3,
        **_once_a_call(m, s, packed=True),
    }


def predict_threads(m: Machine, s: Shape, threads: int = 2) -> Terms:
    alone = predict_epilogue(m, s)
    shared = {name: alone[name] / threads for name in ("product", "tanh", "packing")}
    barrier = 0.0 if s.batch >= 4 * threads else m.barrier() / 1e3
    return {**alone, **shared, "barrier": barrier, "starting a thread": m.thread_start() / s.steps}


def predict_chain_rule(m: Machine, s: Shape) -> Terms:
    passes = 5 * 4 * s.batch * s.hidden / m.read(16384) / 1e3
    return {
        "calls": 15 * m.call(),
        "products": 2 * m.product(s.batch, s.hidden) + 2 * m.outer(s.batch, s.hidden),
        "passes": passes,
    }


def predict_backward(m: Machine, s: Shape) -> Terms:
    return {
        "product": _tiles(m, s),
        "epilogue": 3 * 4 * s.batch * s.hidden / m.read(65536) / 1e3,
        "products for all steps": 3 * m.product(s.steps * s.batch, s.hidden) / s.steps,
        "packing": m.pack(s.hidden) / s.steps,
        "new memory": 2 * m.fresh(4 * s.steps * s.batch * s.hidden) / s.steps,  # for g and dx
        "calls": 9 * m.call() / s.steps,
    }


def _torch_tanh(m: Machine, s: Shape) -> float:
    return m.torch_tanh() * s.batch * s.hidden / 1e3


def _tiles(m: Machine, s: Shape) -> float:
    """A step's product by tiles of four rows, or of one: multiply-adds, or reading the weight once a tile."""
    weights = 4 * s.hidden**2
    if s.batch < 4:
        return max(s.batch * s.hidden**2 / m.multiply_adds(), s.batch * weights / m.read(weights)) / 1e3
    # A panel stays in the first-level cache for all tiles of a step. A vector of it takes four multiply-adds.
    return max(s.batch * s.hidden**2 / m.multiply_adds(), weights / m.read(weights)) / 1e3


def _once_a_call(m: Machine, s: Shape, packed: bool = False) -> Terms:
    output = 4 * s.steps * s.batch * s.hidden
    terms = {
        "input's product": m.product(s.steps * s.batch, s.hidden) / s.steps,
        "new memory": 2 * m.fresh(output) / s.steps,  # for a and out
    }
    if packed:
        terms["packing"] = m.pack(s.hidden) / s.steps
        terms["call"] = (m.native_call() + 2 * m.call()) / s.steps
    return terms
