"""The fuzzer finds what it should; what it found once is right now, and so are some hundreds of problems."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time

import pytest
import torch

from rnnfast import functional
from rnnfast.backends.cpu import native
from tests.fuzz import calls, child, judge, shrink
from tests.fuzz.problem import Problem, draw

STEP = Problem(target="step", batch=2, inputs=3, hidden=4)
SEQUENCE = Problem(target="sequence", steps=3, batch=2, inputs=3, hidden=4)

# The smallest forms of what was found.
FOUND = [
    Problem(target="op_sequence", batch=0, dtype="bfloat16", backend="aten"),
    Problem(
        target="sequence",
        steps=6,
        batch=3,
        hidden=3,
        dtype="bfloat16",
        backend="cpu",
        special=(("hx", "inf"),),
    ),
    Problem(
        target="op_sequence_backward",
        steps=2,
        dtype="bfloat16",
        backend="cpu",
        special=(("grad_h_n", "inf"),),
    ),
    Problem(
        target="op_sequence_backward", steps=2, batch=2, requires=("bias_hh",), layouts=(("x", "transposed"),)
    ),
    Problem(target="op_sequence", batch=2, lengths=(1, 1), wrong=(("bias_ih", "one more dimension"),)),
    Problem(target="op_sequence", lengths=(1,), dtype="complex128"),
    Problem(target="op_sequence", lengths=(1,), wrong=(("batch_sizes", "meta"),)),
    Problem(target="op_sequence_backward", lengths=(1,), wrong=(("batch_sizes", "meta"),)),
    Problem(target="sequence", steps=2, hidden=0, capture="double backward"),
    Problem(target="sequence", steps=2, inputs=0, capture="vmap"),
    Problem(target="op_step", wrong=(("x", "none"),)),
    Problem(target="op_sequence", wrong=(("hx", "none"),)),
    Problem(target="op_step_backward", wrong=(("grad_output", "none"),)),
    Problem(target="op_sequence_backward", wrong=(("weight_ih", "none"),)),
    Problem(target="cell", hidden=0),
    Problem(target="op_step", hidden=0),
    Problem(target="sequence", inputs=0),
    Problem(target="cell", layouts=(("x", "sparse"),)),
    Problem(target="cell", layouts=(("x", "csr"),)),
    Problem(target="rnn", layouts=(("x", "zerotensor"),)),
    Problem(target="rnn", layouts=(("bias_ih", "mkldnn"),)),
    Problem(target="op_step", batch=2, hidden=4, wrong=(("bias_hh", "size + 1"),)),
    Problem(target="op_step", batch=2, hidden=4, wrong=(("bias_ih", "size 1"),)),
    Problem(target="op_sequence", steps=2, batch=2, hidden=4, wrong=(("hx", "float64"),)),
    Problem(target="op_step", wrong=(("weight_hh", "int64"),)),
    Problem(target="op_step_backward", batch=2, wrong=(("hx", "one more dimension"),)),
    Problem(target="op_sequence_backward", steps=2, batch=2, wrong=(("hx", "meta"),)),
    Problem(target="sequence", steps=2, inputs=2, requires=("x", "hx"), touched="x"),
    Problem(target="step", around="doubling mode"),
    Problem(target="rnn", steps=2, hidden=3, around="halving mode"),
    Problem(target="cell", batch=2, around="doubling mode"),
    Problem(target="op_sequence", lengths=(1,), layers=2, bidirectional=True, capture="trace"),
    Problem(target="op_step", capture="trace"),
    Problem(target="rnn", layers=2, layouts=(("x", "subclass"),)),
    Problem(target="step", layouts=(("hx", "subclass"),)),
    Problem(target="rnn", hx=False, around="halving mode"),
]


@pytest.mark.parametrize("problem", FOUND, ids=Problem.text)
def test_found_once(problem):
    report = child.alone(problem)
    assert not report.kind, report


@pytest.mark.slow
def test_some_hundreds_of_problems():
    worker = child.Worker(range(7_000_000_000, 7_000_000_300))
    limit = time.monotonic() + 240
    while (status := worker.finished()) is None and time.monotonic() < limit:
        time.sleep(0.1)
    at, done, _ = worker.place()
    reports = [(seed, *report[:2]) for seed, report in worker.reports()]
    worker.close()
    assert status == 0, f"ended with {status} at seed {at}"
    assert done == 300 and reports == []


def test_a_seed_is_a_problem():
    assert draw(5) == draw(5) != draw(6)
    assert len({draw(seed).target for seed in range(200)}) == 8


def test_wrong_value_is_found(monkeypatch):
    step = functional.rnn_step
    assert judge.examine(STEP) is None
    monkeypatch.setattr(functional, "rnn_step", lambda *args, **kwargs: step(*args, **kwargs) * (1 + 1e-4))
    assert judge.examine(STEP).kind == "value"


def test_wrong_gradient_is_found(monkeypatch):
    sequence = functional.rnn_sequence

    def with_another_derivative(*args, **kwargs):
        output, h_n = sequence(*args, **kwargs)
        return output, h_n + 1e-3 * (args[2].sum() - args[2].sum().detach())

    assert judge.examine(SEQUENCE) is None
    monkeypatch.setattr(functional, "rnn_sequence", with_another_derivative)
    finding = judge.examine(SEQUENCE)
    assert finding.kind == "value" and "gradient of weight_ih" in finding.text


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("no"), "exception"), (None, "accepts"), (RuntimeError("no"), "exception")]
)
def test_wrong_exception_is_found(error, kind, monkeypatch):
    problem = Problem(target="step", batch=2, inputs=3, hidden=4, wrong=(("x", "float64"),))
    assert judge.examine(problem) is None

    def step(x, h, *args, **kwargs):
        if error is not None:
            raise error
        return h.clone()

    monkeypatch.setattr(functional, "rnn_step", step)
    assert judge.examine(problem).kind == kind


def test_wrong_dtype_is_found(monkeypatch):
    step = functional.rnn_step
    monkeypatch.setattr(functional, "rnn_step", lambda *args, **kwargs: step(*args, **kwargs).double())
    assert judge.examine(STEP).kind == "facts"


def crash(problem):
    if problem.hidden > 2:
        os.abort()
    return child.Report("", "", "")


def hang(problem):
    time.sleep(60)


def write_far_away(problem):
    ctypes.memset(8, 0, 8)


def test_crash_is_caught_and_made_small():
    report = child.alone(SEQUENCE, inspect=crash)
    assert report.kind == "crash" and "SIGABRT" in report.text
    small, least = shrink.shrink(SEQUENCE, report, lambda p: child.alone(p, inspect=crash))
    assert small == Problem(target="sequence", hidden=3) and least.kind == "crash"
    report = child.alone(STEP, inspect=write_far_away)
    assert report.kind == "crash" and "SIGSEGV" in report.text and "write_far_away" in report.trace


def test_hang_is_caught():
    report = child.alone(STEP, watchdog=1.0, inspect=hang)
    assert report.kind == "hang" and "in hang" in report.trace


@pytest.mark.slow
def test_replay_from_the_command_line():
    seed = next(seed for seed in range(1000) if draw(seed).target == "step" and not draw(seed).wrong)
    command = [sys.executable, "-m", "tests.fuzz", "--replay", str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and draw(seed).text() in result.stdout, result.stdout + result.stderr


@pytest.fixture(autouse=True)
def machine():
    """Problems choose threads and instruction sets."""
    threads = torch.get_num_threads()
    chosen = native.instruction_set() if native is not None else None
    yield
    torch.set_num_threads(threads)
    if chosen is not None:
        native.use(chosen)


def test_outcome_keeps_the_phase():
    problem = Problem(target="step", wrong=(("x", "float64"),))
    outcome = calls.run(problem, True, judge.numbers(problem), torch.float32)
    assert outcome.phase == "forward" and isinstance(outcome.error, RuntimeError)
