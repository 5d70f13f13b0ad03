"""The GPU rungs of the study: wrong without their barriers, and as small as they say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.study import gpu, gpu_table
from bench.study import gpu_device as device
from bench.study import gpu_model as model
from bench.study.problem import Shape, make
from rnnfast import testing
from tests.cuda_on_cpu import missing

ROOT = Path(__file__).resolve().parents[2]
CUDA = [label for label, file in model.FILES.items() if file.endswith(".cu")]
BY_LABEL = {rung.label: rung for rung in gpu.RUNGS}
SEEDS = range(6)  # 0 ascending, 1 descending, then random orders of threads

needs_machine = pytest.mark.skipif(missing() is not None, reason=str(missing()))
needs_nvcc = pytest.mark.skipif(device.nvcc() is None, reason="there is no nvcc")


def inputs(shape):
    problem = make(shape)
    x, h0, w_ih, w_hh, b = problem.parameters()
    return (x @ w_ih.T + b).contiguous(), w_hh, h0


SMALL = Shape(6, 2, 4, 33)


def right(library, seed, shape=SMALL):
    """Whether the library's result is what rounding explains, with threads in the order of a seed."""
    pre, w_hh, h0 = inputs(shape)
    device.configure(library, seed)
    error = testing.error(device.call(library, pre, w_hh, h0), make(shape).out.double())
    return error <= testing.tolerance(torch.float32, shape.inputs + shape.hidden, stores=1, per_term=8)


def built(label, *defines):
    return device.on_machine(BY_LABEL[label].path, defines)


def test_every_number_has_its_rung():
    assert list(model.FILES) == [rung.label for rung in gpu.RUNGS]
    assert {rung.number for rung in gpu.RUNGS} == {8, 9, 10, 11, 12}


@pytest.mark.parametrize("rung", gpu.RUNGS, ids=lambda rung: rung.label)
def test_a_rung_is_a_short_page_with_its_exercise(rung):
    text = rung.path.read_text()
    assert len(text.splitlines()) <= 120
    for part in (
        "h_t = tanh(pre_t + W_hh h_{t-1})",
        "Who holds what.",
        "Floor.",
        "The shipped kernel|csrc/",
    ):
        assert re.search(part if "|" in part else re.escape(part), rung.page()), part
    (test,) = re.findall(r"\((test_exercise_\w+)\)", rung.exercise())
    assert test in globals()
    assert (ROOT / rung.becomes).exists()
    assert rung.becomes in rung.page()


@needs_machine
@pytest.mark.slow
@pytest.mark.parametrize("label", CUDA)
def test_a_rung_is_right_in_every_order_of_threads(label):
    assert all(right(built(label), seed) for seed in SEEDS)


@needs_machine
@pytest.mark.slow
def test_launches():
    """Rung 8 launches a kernel a step, the others one."""
    for label in CUDA:
        library = built(label)
        before = device.launches(library)
        assert right(library, 0)
        assert device.launches(library) - before == (6 if label == "8" else 1), label


@needs_machine
@pytest.mark.slow
@pytest.mark.parametrize("label", ["9", "10", "11", "12"])
def test_a_layer_that_is_too_wide_is_refused(label):
    pre, w_hh, h0 = inputs(Shape(1, 1, 1, model.limit(label) + 1))
    with pytest.raises(RuntimeError, match="cudaError 1"):
        device.call(built(label), pre, w_hh, h0)


@needs_machine
@pytest.mark.slow
def test_arguments_that_dont_fit_are_named():
    pre, w_hh, h0 = inputs(Shape(2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"h0 \(2, 5\) don't fit"):
        device.call(built("8"), pre, w_hh, h0[:2].contiguous())
    with pytest.raises(ValueError, match="contiguous tensors of float32"):
        device.call(built("8"), pre, w_hh.T, h0)


# ---- the exercises ---------------------------------------------------------------------------------


def test_exercise_8():
    """512 kernels in a graph take 0.4 ms, whatever they do; rung 9 is below that at every H that it has."""
    least = 512 * model.latencies()["kernel in a graph"] / 1e3
    assert 400 < least < 410
    assert 512 * sum(model.predict("9", 1, 128).values()) < least


def test_exercise_8b():
    """What rounding e^-2|x| loses, 3e-8, is 1.5e-4 of its distance from 1, and so of h.

    Tolerances are absolute where h is small, since the next step's sum has terms that are not.
    """
    x = torch.linspace(1e-4, 2e-4, 1000)
    e = torch.exp(-2 * x)
    h, want = (1 - e) / (1 + e), torch.tanh(x.double())
    relative = ((h - want).abs() / want).max()
    assert 5e-5 < relative < 1e-3
    assert (h - want).abs().max() < 1e-7


@needs_machine
@pytest.mark.slow
def test_exercise_9():
    """Right when threads take turns, wrong when some run ahead: they overwrite what others still read."""
    orders = [right(built("9", "STUDY_NO_BARRIER_BEFORE_WRITE"), seed) for seed in SEEDS]
    assert orders[0] and not all(orders)


def test_exercise_9b():
    """256 x 256 values over 256 threads are 256 registers of a thread, of which it can have 255."""
    assert 256 * 256 // (8 * 32) > 255


@needs_machine
@pytest.mark.slow
def test_exercise_10():
    """Wrong without its barrier; with one buffer the barrier before the write is the one that is missing."""
    assert not any(right(built("10", "STUDY_NO_BARRIER"), seed) for seed in SEEDS)
    one_buffer = [right(built("10", "STUDY_ONE_BUFFER"), seed) for seed in SEEDS]
    assert one_buffer[0] and not all(one_buffer)


@needs_machine
@pytest.mark.slow
def test_exercise_11():
    """Blocks in any order wait for ever, as the machine reports; cooperative ones are refused instead."""
    shape = Shape(3, 1, 4, 100)  # 7 blocks
    device.configure(built("11", "STUDY_INDEPENDENT"))
    with pytest.raises(RuntimeError, match="deadlock, nothing but polling"):
        device.call(built("11", "STUDY_INDEPENDENT"), *inputs(shape))
    device.configure(built("11"), multiprocessors=6)
    with pytest.raises(RuntimeError, match="cudaError 720"):
        device.call(built("11"), *inputs(shape))
    assert right(built("11"), 0, shape)


@needs_machine
@pytest.mark.slow
def test_exercise_12():
    """That NaN is stored as it is, and taken for a word that is not there. Others, and h0's, are data."""
    pre, w_hh, h0 = inputs(Shape(3, 2, 4, 33))
    pre[1, 0, 5:6].view(torch.int32).fill_(-1)
    device.configure(built("12"), 2)
    assert device.call(built("12"), pre, w_hh, h0)[1:, 0].isnan().any()
    fragile = built("12", "STUDY_NO_REPLACEMENT")
    device.configure(fragile, 2)
    with pytest.raises(RuntimeError, match="deadlock, nothing but polling"):
        device.call(fragile, pre, w_hh, h0)
    pre[1, 0, 5] = torch.nan
    assert device.call(fragile, pre, w_hh, h0)[1:, 0].isnan().any()
    pre[1, 0, 5] = 0
    h0[0, 3:4].view(torch.int32).fill_(-1)
    assert device.call(built("12"), pre, w_hh, h0)[:, 0].isnan().all()


# ---- Triton ----------------------------------------------------------------------------------------

INTERPRET = """
from bench.study import gpu
from bench.study.problem import Shape, wrong
for rung in gpu.RUNGS:
    if rung.variant == "b":
        shapes = (*rung.checked[:3], Shape(2, 1, 2, 100))
        print(rung.label, wrong(rung.load(), backward=False, shapes=shapes))
"""


@pytest.mark.slow
def test_triton_rungs_are_right_where_triton_interprets_them():
    pytest.importorskip("triton", reason="no Triton for this platform")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRET]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["8b None", "9b None"], done.stdout + done.stderr


# ---- instructions and predictions ------------------------------------------------------------------


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", model.ARCHITECTURES)
@pytest.mark.parametrize("label", list(model.FILES))
def test_what_a_kernel_takes(label, architecture):
    """Other compilers differ a little in instructions and registers, and not in what is a claim."""
    try:
        now = model.count(label, architecture)
    except device.Missing as error:
        pytest.skip(str(error))
    then = model.counted()["rungs"][label][f"sm_{architecture}"]
    assert now["spilled"] == then["spilled"] == 0
    barriers = {"8": 0, "9": 2, "10": 1, "11": 2, "12": 0}
    if label in barriers:
        assert now["barriers"] == then["barriers"] == barriers[label]
    if label in ("9", "10"):
        assert now["shared loads"] == 4  # h, and no byte of W_hh
        assert now["multiply-adds"] >= 64
        assert 64 < now["registers"] <= 255
    if label == "9b":
        assert now["registers"] >= 64 and now["shared loads"] < 64  # W_hh is in registers
    assert abs(now["instructions"] - then["instructions"]) <= then["instructions"] // 4


def test_counts_are_those_of_two_architectures_at_least():
    counted = model.counted()
    assert counted["nvcc"] and counted["triton"]
    for label in model.FILES:
        assert set(counted["rungs"][label]) == {f"sm_{arch}" for arch in model.ARCHITECTURES}
    assert len(model.ARCHITECTURES) >= 2


def test_the_prediction_says_what_the_rungs_say():
    def us(label, hidden):
        return sum(model.predict(label, 1, hidden).values())

    assert us("8", 128) > us("9", 128) > us("10", 128)  # each rung is predicted to be faster
    assert us("11", 512) > us("8", 512) > us("12", 512)  # but for the dead end
    terms = model.predict("11", 1, 512)
    assert terms["barrier"] > sum(terms.values()) / 2
    with pytest.raises(ValueError, match="rung 9 has no H = 129"):
        model.predict("9", 1, 129)


def test_the_guide_is_current():
    text = gpu_table.GUIDE.read_text()
    assert gpu_table.between(text, gpu_table.block()) == text


def test_the_table_has_a_measurement_beside_the_prediction(tmp_path, monkeypatch):
    times = {
        f"{rung.label} in a graph" if rung.number == 8 else rung.label: {
            str(shape): 3.25 for shape in rung.shapes
        }
        for rung in gpu.RUNGS
    }
    file = tmp_path / "times.json"
    file.write_text(json.dumps({"environment": {"gpu": "a GPU", "date": "2030-01-02T03"}, "us": times}))
    monkeypatch.setattr(gpu_table, "TIMES", file)
    table = gpu_table.block()
    assert table.count("| 3.25 |") == sum(len(rung.shapes) for rung in gpu.RUNGS)
    assert "Measured on a GPU, 2030-01-02." in table


def test_checked_shapes_are_odd_too():
    for rung in gpu.RUNGS:
        assert len(rung.checked) >= 5
        assert {shape.hidden % 2 for shape in rung.checked} == {0, 1}
