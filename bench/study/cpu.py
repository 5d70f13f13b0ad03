"""The rungs on a CPU: how each is called, and what was predicted from which quantity of the machine."""

from __future__ import annotations

import ctypes
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.study import build
from bench.study.model import (
    predict_backward,
    predict_chain_rule,
    predict_epilogue,
    predict_equation,
    predict_one_call,
    predict_only_the_carry,
    predict_panels,
    predict_threads,
    predict_two_products,
)
from bench.study.problem import Problem, Result, Solve
from bench.study.rung import RUNG_FILES, Rung

THREADS = 2


def in_python(file: str) -> Callable[[], Solve]:
    """Loads a rung whose file has forward(x, h0, w_ih, w_hh, b) -> out."""

    def load() -> Solve:
        forward = runpy.run_path(str(RUNG_FILES / file))["forward"]
        return lambda problem: (forward(*problem.parameters()),)

    return load


def in_c(file: str, threads: int = 1) -> Callable[[], Solve]:
    """Loads a rung whose file has the recurrence, `forward`; the input's product is torch's, as on rung 2."""

    def load() -> Solve:
        if threads > (os.cpu_count() or 1):
            raise build.Unavailable(f"it takes {threads} cores, and this machine has {os.cpu_count()}")
        forward = function(RUNG_FILES / file, "forward", pointers=4, sizes=3, flags=1)

        def solve(problem: Problem) -> Result:
            x, h0, w_ih, w_hh, b = problem.parameters()
            a = torch.nn.functional.linear(x, w_ih, b)
            out = torch.empty_like(a)
            forward(a.data_ptr(), h0.data_ptr(), w_hh.data_ptr(), out.data_ptr(), *a.shape, threads)
            return (out,)

        return solve

    return load


def chain_rule() -> Solve:
    backward = runpy.run_path(str(RUNG_FILES / "07a_chain_rule.py"))["backward"]
    return lambda p: backward(p.x, p.h0, p.w_ih, p.w_hh, p.out, p.grad_out)


def backward_in_c() -> Solve:
    walk = function(RUNG_FILES / "07b_backward.cpp", "backward", pointers=5, sizes=3)

    def solve(p: Problem) -> Result:
        g, dh0 = torch.empty_like(p.grad_out), torch.empty_like(p.h0)
        tensors = (p.grad_out, p.out, p.w_hh, g, dh0)
        walk(*(tensor.data_ptr() for tensor in tensors), *g.shape)
        rows, after = g.flatten(0, 1), g[1:].flatten(0, 1)
        dw_hh = torch.addmm(g[0].t() @ p.h0, after.t(), p.out[:-1].flatten(0, 1))
        return g @ p.w_ih, dh0, rows.t() @ p.x.flatten(0, 1), dw_hh, rows.sum(0)

    return solve


def function(source: Path, name: str, *, pointers: int, sizes: int, flags: int = 0) -> Any:
    """A C function that takes pointers, then longs, then ints, and returns an int."""
    found = getattr(build.load(source), name)
    found.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_long] * sizes + [ctypes.c_int] * flags
    found.restype = ctypes.c_int
    return found


RUNGS = (
    Rung(
        number=0,
        file="00_equation.py",
        idea="the equation: cat, product, tanh, a Python loop",
        load=in_python("00_equation.py"),
        predict=predict_equation,
        outcome="Calls set the time where the matrices are small; where they are large, products do.",
        becomes="rnnfast/reference.py",
    ),
    Rung(
        number=1,
        file="01_two_products.py",
        idea="two products, nothing is put side by side",
        load=in_python("01_two_products.py"),
        predict=predict_two_products,
        outcome="A call of cat is exchanged for one of a product, so there are as many calls as before.",
        becomes="rnnfast/backends/eager.py",
    ),
    Rung(
        number=2,
        file="02_only_the_carry.py",
        idea="only the carry is sequential: the input's product for all steps at once",
        load=in_python("02_only_the_carry.py"),
        predict=predict_only_the_carry,
        outcome="One product and its call leave the loop, and what they took a step nearly vanishes.",
        becomes="rnnfast/backends/aten.py",
    ),
    Rung(
        number=3,
        file="03_one_call.cpp",
        idea="one native call for all steps, plain loops",
        load=in_c("03_one_call.cpp"),
        predict=predict_one_call,
        outcome=(
            "Calls are gone, and at B = 1, H = 128 that is what counts. Elsewhere this rung is slower "
            "than the one before: torch's product keeps sums in registers and its tanh takes vectors; "
            "plain loops do neither. The next two rungs repair that, one each."
        ),
        becomes="csrc/cpu/layer/layer.h",
    ),
    Rung(
        number=4,
        file="04_panels.cpp",
        idea="the weight in panels, a tile of sums in registers",
        load=in_c("04_panels.cpp"),
        predict=predict_panels,
        outcome=(
            "The product becomes three to four times as fast where it counts (B = 32). tanhf, one value "
            "at a time, is now most of the step. At H = 512, packing takes a third of a call of 100 "
            "steps, because its stores jump by a row; a model that runs many calls keeps the packed "
            "weight, or packs in blocks as the shipped kernels do."
        ),
        becomes="csrc/cpu/product/panels.h, csrc/cpu/product/tile.h",
    ),
    Rung(
        number=5,
        file="05_epilogue.cpp",
        idea="tanh in the epilogue, a vector at a time",
        load=in_c("05_epilogue.cpp"),
        predict=predict_epilogue,
        outcome=(
            "From most of the time to next to none. What is left at B = 32 is half the input's product, "
            "which is torch's."
        ),
        becomes="csrc/cpu/simd/activation.h, csrc/cpu/layer/recurrence.h",
    ),
    Rung(
        number=6,
        file="06_threads.cpp",
        idea="two threads: own rows, or own columns and a barrier a step",
        load=in_c("06_threads.cpp", THREADS),
        predict=predict_threads,
        outcome=(
            "At B = 1, H = 128, two threads bring nothing: the barrier and the start of a thread cost "
            "what half a step saves. At H = 512 and with rows of their own they pay, but the input's "
            "product is still done by one. The prediction is too low on this rung: it takes the second "
            "core for as fast as the first, but that one starts with empty caches, and with columns it "
            "reads half of h from the other's cache at every step, which no quantity stands for."
        ),
        becomes="csrc/cpu/team.h, csrc/cpu/layer/recurrence.h",
    ),
    Rung(
        number=7,
        variant="a",
        file="07a_chain_rule.py",
        idea="backward: the chain rule step by step",
        load=chain_rule,
        predict=predict_chain_rule,
        outcome=(
            "Calls at small shapes. At H = 512 the model misses most of it: the two weights and their two "
            "gradients are 4 MB that take turns in a cache of 2 MB, and the quantity was measured with "
            "one matrix alone."
        ),
        becomes="rnnfast/derivative.py",
        backward=True,
        before="none",
    ),
    Rung(
        number=7,
        variant="b",
        file="07b_backward.cpp",
        idea="backward: the same walk natively, gradients of parameters as one product each afterwards",
        load=backward_in_c,
        predict=predict_backward,
        outcome=(
            "The walk takes what forward's takes. The rest is three products for all steps, which wait "
            "for nothing."
        ),
        becomes="csrc/cpu/layer/layer.h, csrc/cpu/product/weight_gradient.h",
        backward=True,
    ),
)
