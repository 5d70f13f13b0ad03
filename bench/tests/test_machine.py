"""What a machine allows: bounds by hand, peaks, what calls cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cases.case import Case
from bench.cases.precision import KINDS
from bench.machine import calls, gpu_peaks, gpu_roofline, roofline
from rnnfast import dispatch


def test_flops_and_bound_by_hand():
    # B=8, I=16, H=32, T=10: 80 rows of (16 + 32) * 32 multiply-adds; backward adds dh, dW_hh and dW_ih.
    forward, training = (Case(10, 8, 16, 32, training=t) for t in (False, True))
    assert forward.flops == 2 * 80 * 48 * 32
    assert training.flops == forward.flops + 2 * 80 * (32 + 32 + 16) * 32
    capacity = {"L1": 1 << 15, "L2": 1 << 20, "L3": 1 << 25}
    rates = {"L1": 4e11, "L2": 2e11, "L3": 1e11, "DRAM": 1e10}
    slow_arithmetic = roofline.Machine(1, 1e9, rates, capacity, 1e-9)
    found = roofline.bound(forward, slow_arithmetic)
    assert (found.name, found.seconds) == ("arithmetic", pytest.approx(forward.flops / 1e9))
    slow_steps = roofline.Machine(1, 1e15, rates, capacity, 1e-3)
    assert roofline.bound(forward, slow_steps).name == "latency"
    big = Case(1000, 1, 1024, 1024)  # W_hh is 4 MiB: beyond L2, within L3
    assert roofline.bound(big, roofline.Machine(1, 1e15, rates, capacity, 0)).name == "L3"


def test_bound_of_a_gpu_by_hand():
    peaks = {"float32": 2e13, "bfloat16": 1e14}
    gpu = gpu_roofline.Gpu(peaks, 1e12, step_latency=1e-7, exchange=5e-7, multiprocessor=400_000)
    small = Case(100, 1, 64, 64, device="cuda")
    assert (gpu.bound(small).name, gpu.bound(small).seconds) == ("latency", pytest.approx(100 * 1e-7))
    # W_hh is 1 MiB in float32: more than one multiprocessor holds.
    spread = replace(small, hidden_size=512, input_size=512)
    assert gpu.bound(spread).seconds == pytest.approx(100 * 5e-7)
    assert replace(gpu, exchange=None).bound(spread).seconds == pytest.approx(100 * 1e-7)
    assert gpu.bound(replace(small, training=True)).seconds == pytest.approx(200 * 1e-7)
    large = Case(100, 256, 256, 256, device="cuda")
    assert (gpu.bound(large).name, gpu.bound(large).seconds) == (
        "arithmetic",
        pytest.approx(large.flops / 2e13),
    )
    wide = Case(10, 256, 4096, 16, device="cuda", dtype="bfloat16")
    rows = 2560 * (4096 + 16) + 16 * (4096 + 16 + 2)
    assert (gpu.bound(wide).name, gpu.bound(wide).bytes) == ("memory", 2 * rows)


def test_a_step_of_nothing_is_measured():
    lengths = []

    def clock(call):
        out, _ = call()
        lengths.append(len(out))
        return 1e-3 * len(out)

    assert gpu_roofline.step_latency("eager", "cpu", clock, steps=8) == pytest.approx(1e-3)
    assert lengths == [8, 4]


def test_calls_that_compute_next_to_nothing():
    with dispatch.replaced(calls.HostOfCuda()):
        contenders = calls.contenders()
        assert len(contenders) == 8
        for name, call in contenders.items():
            result = call()
            assert len(result) == (4 if name.startswith("training") else 2), name


def test_peaks():
    found: dict = {}
    gpu_peaks.peaks(
        found.__setitem__, "cpu", copied=1000, side=50, timer=lambda call: call() is not None and 2e-6
    )
    assert found["copy"] == {"status": "timed", "GB/s": 1.0}
    assert {kind: found[kind]["TFLOP/s"] for kind in KINDS} == {kind: pytest.approx(0.125) for kind in KINDS}
