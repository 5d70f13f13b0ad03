"""A stack in one native call has the bits of its layers called one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any, Optional

import pytest
import torch
from torch import Tensor

from rnnfast import testing
from rnnfast.backends.cpu import DTYPES, native

if native is None:
    pytest.skip("the native CPU extension is not built", allow_module_level=True)

INSTRUCTION_SETS = native.instruction_sets()

# L, D, T, B, I, H: shared by directions, by layers, and not shared, on two threads and on more.
SHAPES = [
    (1, 2, 90, 1, 20, 64),
    (2, 1, 90, 1, 20, 64),
    (2, 2, 61, 1, 33, 70),
    (3, 1, 50, 3, 20, 65),
    (4, 1, 37, 2, 90, 96),
    (4, 2, 13, 5, 7, 50),
    (2, 2, 12, 20, 30, 100),
    (2, 1, 6, 40, 30, 130),
    (2, 1, 25, 1, 128, 128),
    (3, 2, 1, 3, 9, 17),
    (2, 1, 1, 1, 1, 1),
    (2, 2, 4, 2, 200, 150),
]
LENGTHS = [40, 40, 31, 12, 12, 1]


@dataclass
class Arguments:
    """What goes into a stack and comes back to it."""

    shape: tuple[int, int, int, int, int, int]  # L, D, T, B, I, H
    batch_sizes: Optional[Tensor]  # [T]
    x: Tensor  # [R, I]
    h0: Optional[Tensor]  # [L * D, B, H]
    weights: list[list[Tensor]]  # for each layer and direction: w_ih, w_hh and, with biases, b_ih, b_hh
    dout: Optional[Tensor]  # [R, D * H]
    dh_n: Optional[Tensor]  # [L * D, B, H]
    nonlinearity: int = 0
    reverse: bool = False
    stepwise: bool = False

    def empty(self, *size: int) -> Tensor:
        """New memory, poisoned."""
        return torch.full(size, float("nan"), dtype=self.x.dtype)


def make(shape, dtype, lengths=None, biases=True, h0=True) -> Arguments:
    layers, directions, steps, batch, inputs, hidden = shape
    batch_sizes = None
    if lengths is not None:
        steps, batch = lengths[0], len(lengths)
        batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(steps)])
    rows = int(batch_sizes.sum()) if batch_sizes is not None else steps * batch
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    weights = []
    for k in [inputs] * directions + [directions * hidden] * directions * (layers - 1):
        w_ih, w_hh = normal(hidden, k) / k**0.5, normal(hidden, hidden) / hidden**0.5 / 2
        weights.append([w_ih, w_hh, *([normal(hidden), normal(hidden)] if biases else [])])
    state = (layers * directions, batch, hidden)
    return Arguments(
        (layers, directions, steps, batch, inputs, hidden),
        batch_sizes,
        normal(rows, inputs),
        normal(*state) if h0 else None,
        weights,
        normal(rows, directions * hidden),
        normal(*state),
    )


def address(tensor: Optional[Tensor]) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def stack_of(a: Arguments, x: Optional[Tensor]) -> tuple[Any, ...]:
    layers, directions, steps, batch, inputs, hidden = a.shape
    sizes = (DTYPES[a.x.dtype], a.nonlinearity, steps, batch, inputs, hidden, address(a.batch_sizes))
    return (*sizes, layers, directions, a.reverse, len(a.weights[0]) == 4, address(x), address(a.h0))


def forward(a: Arguments, threads: int) -> dict[str, Tensor]:
    layers, directions, _, batch, _, hidden = a.shape
    rows, width = len(a.x), directions * hidden
    result = {
        "hidden": a.empty(layers - 1, rows, width),
        "out": a.empty(rows, width),
        "h_n": a.empty(layers * directions, batch, hidden),
    }
    weights = [address(w) for layer in a.weights for w in layer]
    addresses = [address(t) if t.numel() else 0 for t in result.values()]
    native.stack(stack_of(a, a.x), weights, a.stepwise, *addresses, threads)
    return result


def names(a: Arguments) -> list[str]:
    kinds = ["w_ih", "w_hh", "b_ih", "b_hh"][: len(a.weights[0])]
    return ["x", "h0", *(f"{kind}.{i}" for i in range(len(a.weights)) for kind in kinds)]


def backward(a: Arguments, made: dict[str, Tensor], wanted: list[str], threads: int) -> dict[str, Tensor]:
    """The gradients that are wanted. What only others read isn't given."""
    layers, directions, steps, batch, _, hidden = a.shape
    like = {name: w for name, w in zip(names(a)[2:], (w for layer in a.weights for w in layer), strict=True)}
    sizes = {"x": a.x.shape, "h0": (layers * directions, batch, hidden)}
    grads = {name: a.empty(*(sizes[name] if name in sizes else like[name].shape)) for name in wanted}
    below_is_wanted = "x" in wanted or "h0" in wanted
    given = []
    for i, name in enumerate(like):
        layer = i // len(a.weights[0]) // directions
        if layer > 0 and i % (len(a.weights[0]) * directions) == 0:
            part = list(like)[:i]
            below_is_wanted |= any(n in wanted for n in part)
        reads = {
            "w_ih": "x" in wanted if layer == 0 else below_is_wanted,
            "w_hh": steps > 1 or "h0" in wanted,
        }
        given.append(address(like[name]) if reads.get(name[:4], False) else 0)
    x = a.x if any(f"w_ih.{d}" in wanted for d in range(directions)) else None
    native.stack_backward(
        stack_of(a, x),
        given,
        address(made["hidden"]) if layers > 1 else 0,
        address(made["out"]),
        address(a.dout),
        address(a.dh_n),
        address(grads.get("x")),
        address(grads.get("h0")),
        [address(grads.get(name)) for name in like],
        threads,
    )
    return grads


def layer_by_layer(a: Arguments) -> dict[str, Tensor]:
    """All results and gradients from calls of one layer in one direction, added up by torch."""
    layers, directions, steps, batch, _, hidden = a.shape
    kind = (DTYPES[a.x.dtype], a.nonlinearity, steps, batch)
    h0 = a.h0 if a.h0 is not None else torch.zeros(layers * directions, batch, hidden, dtype=a.x.dtype)
    reverses = [a.reverse] if directions == 1 else [False, True]
    result = {"h_n": a.empty(*h0.shape), "h0": a.empty(*h0.shape)}
    outs = [[a.empty(len(a.x), hidden) for _ in reverses] for _ in range(layers)]
    inputs = [a.x]
    for level in range(layers):
        for d, reverse in enumerate(reverses):
            i = level * directions + d
            weights = [*map(address, a.weights[i]), 0, 0][:4]
            sizes = (inputs[level].shape[1], hidden, address(a.batch_sizes), reverse, a.stepwise)
            tensors = (
                address(inputs[level]),
                address(h0[i]),
                *weights,
                address(outs[level][d]),
                address(result["h_n"][i]),
            )
            native.sequence(*kind, *sizes, *tensors, 1)
        inputs.append(torch.cat(outs[level], 1))
    result["out"] = inputs[-1]
    result["hidden"] = torch.stack([a.empty(*inputs[-1].shape), *inputs[1:-1]])[1:]
    grad = a.dout
    for level in reversed(range(layers)):
        below = []
        for d, reverse in enumerate(reverses):
            i = level * directions + d
            part = None if grad is None else grad[:, d * hidden : (d + 1) * hidden].contiguous()
            db, dx = a.empty(hidden), a.empty(*inputs[level].shape)
            dw = [torch.full_like(w, float("nan")) for w in a.weights[i][:2]]
            sizes = (inputs[level].shape[1], hidden, address(a.batch_sizes), reverse)
            dh_n = None if a.dh_n is None else a.dh_n[i]
            tensors = (
                part,
                dh_n,
                inputs[level],
                h0[i],
                *a.weights[i][:2],
                outs[level][d],
                dx,
                result["h0"][i],
                *dw,
                db,
            )
            native.sequence_backward(*kind, *sizes, *map(address, tensors), 1)
            below.append(dx)
            for name, value in zip(("w_ih", "w_hh", "b_ih", "b_hh"), (*dw, db, db), strict=True):
                result[f"{name}.{i}"] = value
        grad = sum(below[1:], below[0])
    result["x"] = grad
    return result


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in actual.items():
        assert not value.isnan().any(), f"{name} is not all written"
        assert torch.equal(value, expected[name]), f"{name} differs in its bits"


def check(a: Arguments, counts=(1, 2, 3, 4)) -> None:
    expected = layer_by_layer(a)
    for threads in counts:
        made = forward(a, threads)
        assert_same(made, expected)
        assert_same(backward(a, made, names(a), threads), expected)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    before = native.instruction_set()
    native.use(request.param)
    yield request.param
    native.use(before)


@pytest.mark.threads
@pytest.mark.parametrize("nonlinearity", [0, 1], ids=testing.NONLINEARITIES)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense(shape, dtype, nonlinearity, instruction_set):
    check(replace(make(shape, dtype), nonlinearity=nonlinearity))


@pytest.mark.threads
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 2, 0, 0, 20, 64), (3, 1, 0, 0, 64, 64), (1, 2, 0, 0, 5, 80)], ids=str)
@pytest.mark.parametrize("lengths", [[90], LENGTHS, [9, 7, 7, 3, 3, 1, 1]], ids=str)
def test_packed(lengths, shape, dtype, instruction_set):
    check(make(shape, dtype, lengths))


@pytest.mark.threads
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "packed"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("shape", [(2, 2, 61, 2, 33, 70), (3, 1, 50, 1, 20, 65)], ids=str)
def test_reverse_without_biases_without_h0(shape, h0, biases, lengths):
    check(replace(make(shape, torch.float32, lengths, biases, h0), reverse=True))
    check(replace(make(shape, torch.bfloat16, lengths, biases, h0), reverse=True, dout=None))
    check(replace(make(shape, torch.float64, lengths, biases, h0), dh_n=None), [2])


@pytest.mark.threads
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 2, 1, 1, 64, 64), (2, 2, 4, 3, 20, 300), (3, 1, 2, 5, 9, 17), (1, 2, 1, 2, 500, 512)],
    ids=str,
)
def test_stepwise(shape, dtype, h0, instruction_set):
    check(replace(make(shape, dtype, h0=h0), stepwise=True))


def test_a_last_state_that_is_not_wanted():
    for stepwise in (False, True):
        a = replace(make((2, 2, 3, 4, 9, 17), torch.float32), stepwise=stepwise)
        expected = forward(a, 1)
        hidden, out = torch.empty_like(expected["hidden"]), torch.empty_like(expected["out"])
        weights = [address(w) for layer in a.weights for w in layer]
        native.stack(stack_of(a, a.x), weights, stepwise, address(hidden), address(out), 0, 1)
        assert torch.equal(out, expected["out"]) and torch.equal(hidden, expected["hidden"])


@pytest.mark.threads
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 2, 61, 1, 33, 70), (3, 1, 50, 1, 20, 65), (3, 2, 1, 3, 9, 17)], ids=str
)
def test_gradients_that_are_not_wanted(shape, h0):
    """Their memory isn't there, nor is that of what only they read."""
    a = make(shape, torch.float32, h0=h0)
    expected = layer_by_layer(a)
    last = len(a.weights) - 1
    for threads in (1, 2, 3):
        made = forward(a, threads)
        for name in names(a):
            assert_same(backward(a, made, [name], threads), expected)
        for wanted in (
            ["x", "w_ih.0"],
            ["h0", f"b_hh.{last}"],
            [f"w_hh.{last}", "b_hh.1"],
            ["b_ih.0", "b_hh.0"],
            [],
        ):
            assert_same(backward(a, made, wanted, threads), expected)


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.parametrize("lengths", [None, [1060, 1060, 1060, 1060, 900, 30]], ids=["dense", "packed"])
@pytest.mark.parametrize("shape", [(2, 2, 1060, 5, 40, 200), (3, 1, 2700, 2, 40, 200)], ids=str)
def test_several_passes(shape, lengths):
    """Two directions cut the rows into passes at different places."""
    a = make(shape, torch.float64, lengths)
    check(replace(a, weights=[[w * 0.5 for w in layer] for layer in a.weights]), [2, 3])


PRINT_DIGEST = """
import hashlib, torch
from tests.test_cpu_stacks import make, forward, backward, names
digest = hashlib.sha256()
for shape in [(2, 2, 61, 1, 33, 70), (4, 1, 50, 1, 20, 65)]:
    a = make(shape, torch.float32)
    made = forward(a, 3)
    for tensor in [*made.values(), *backward(a, made, names(a), 3).values()]:
        digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.threads
def test_fewer_threads_than_were_asked_for():
    """One then does the work of all, in order."""
    digests = set()
    for limit in ("1", "64"):
        environment = {**os.environ, "OMP_THREAD_LIMIT": limit}
        code = [sys.executable, "-c", PRINT_DIGEST]
        done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1
