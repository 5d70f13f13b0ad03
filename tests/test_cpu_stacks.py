"""A stack in one native call has the bits of its layers called one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Optional

import pytest
import torch
from torch import Tensor

from rnnfast import testing
from rnnfast.backends.cpu import CpuBackend
from rnnfast.call import Network
from rnnfast.native import native
from tests.stacks import Results, Stack, make

if native is None:
    pytest.skip("the native CPU extension is not built", allow_module_level=True)

CPU = CpuBackend()
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


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Deterministic mode fills new memory with NaN, and takes no short sequence step by step."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    before = native.instruction_set()
    native.use(request.param)
    yield request.param
    native.use(before)


def layer_by_layer(stack: Stack) -> Results:
    """All results and gradients on one thread, from calls of a layer in one direction, added up by torch."""
    torch.set_num_threads(1)
    call, network = stack.call, stack.call.network
    directions, per, hidden = len(network.reverse), network.per, call.hidden_size
    zeros = call.x.new_zeros(network.layers * directions, call.batch, hidden)
    h0 = zeros if call.h0 is None else call.h0
    rows = [call.x]
    walks = []
    for i in range(network.layers * directions):
        one = Network(network.nonlinearity, 1, (network.reverse[i % directions],), network.biases)
        weights = call.weights[i * per : (i + 1) * per]
        alone = testing.call_of(one, rows[i // directions], h0[i], weights, call.batch_sizes)
        walks.append((alone, CPU.forward(alone)))
        if i % directions == directions - 1:
            rows.append(torch.cat([walk[1][0] for walk in walks[-directions:]], -1))
    found = {"out": rows[-1], "h_n": torch.stack([results[1] for _, results in walks])}
    if network.layers > 1:
        found["hidden"] = torch.stack(rows[1:-1]).reshape(network.layers - 1, call.rows, -1)
    grad: Optional[Tensor] = stack.grad_out
    dh0 = torch.zeros_like(h0)
    for layer in reversed(range(network.layers)):
        below = []
        for d in range(directions):
            i = layer * directions + d
            part = None if grad is None else grad[..., d * hidden : (d + 1) * hidden]
            coming = None if stack.grad_hn is None else stack.grad_hn[i]
            dx, dh0[i], *dweights = testing.backward(CPU, *walks[i], (part, coming))
            found.update(zip(stack.names[2 + i * per :], dweights, strict=False))
            below.append(dx)
        grad = sum(below[1:], below[0])
    return found | {"x": grad, "h0": dh0}


def assert_same(actual: Results, expected: Results) -> None:
    for name, value in actual.items():
        assert not value.isnan().any(), f"{name} is not all written"
        assert torch.equal(value, expected[name]), f"{name} differs in its bits"


def check(stack: Stack, counts: tuple[int, ...] = (1, 2, 3, 4)) -> None:
    expected = layer_by_layer(stack)
    for count in counts:
        torch.set_num_threads(count)
        results = stack.forward(CPU)
        assert_same(results, expected)
        assert_same(stack.backward(CPU, results), expected)


@pytest.mark.threads
@pytest.mark.parametrize("nonlinearity", testing.NONLINEARITIES)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense(shape, dtype, nonlinearity, instruction_set):
    check(make(shape, dtype, nonlinearity=nonlinearity))


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "reverse"),
    [((2, 2, 61, 2, 33, 70), (False, True)), ((3, 1, 50, 1, 20, 65), (True,))],
    ids=["both", "reverse"],
)
def test_without_biases_without_h0_one_output_used(shape, reverse, dtype, h0, biases, lengths):
    stack = make(shape, dtype, lengths, h0, biases=biases, reverse=reverse)
    check(stack, (1, 2))
    check(replace(stack, grad_out=None), (2, 3))
    check(replace(stack, grad_hn=None), (2,))


@pytest.mark.threads
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 2, 1, 1, 64, 64), (2, 2, 4, 3, 20, 300), (3, 1, 2, 5, 9, 17), (1, 2, 1, 2, 500, 512)],
    ids=str,
)
def test_stepwise(shape, dtype, h0, instruction_set):
    torch.use_deterministic_algorithms(False)
    check(make(shape, dtype, h0=h0))


@pytest.mark.threads
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 2, 61, 1, 33, 70), (3, 1, 50, 1, 20, 65), (3, 2, 1, 3, 9, 17)], ids=str
)
def test_gradients_that_are_not_wanted(shape, h0):
    """Their memory isn't there, nor is that of what only they read."""
    stack = make(shape, torch.float32, h0=h0)
    expected = layer_by_layer(stack)
    last = len(stack.call.weights) // 4 - 1
    several = [
        ["x", "weight_ih.0"],
        ["h0", f"bias_hh.{last}"],
        [f"weight_hh.{last}", "bias_hh.1"],
        ["bias_ih.0", "bias_hh.0"],
        [],
    ]
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results = stack.forward(CPU)
        for wanted in [[name] for name in stack.names] + several:
            assert_same(stack.backward(CPU, results, wanted), expected)


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.parametrize("lengths", [None, [1060, 1060, 1060, 1060, 900, 30]], ids=["dense", "packed"])
@pytest.mark.parametrize("shape", [(2, 2, 1060, 5, 40, 200), (3, 1, 2700, 2, 40, 200)], ids=str)
def test_several_passes(shape, lengths):
    """Two directions cut the rows into passes at different places."""
    check(make(shape, torch.float64, lengths), (2, 3))


PRINT_DIGEST = """
import hashlib, torch
from tests.test_cpu_stacks import CPU, make
torch.set_num_threads(3)
digest = hashlib.sha256()
for shape in [(2, 2, 61, 1, 33, 70), (4, 1, 50, 1, 20, 65)]:
    stack = make(shape, torch.float32)
    results = stack.forward(CPU)
    for tensor in [*results.values(), *stack.backward(CPU, results).values()]:
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
