"""The tools of the benchmark, on contenders whose cost is known because they move the clock themselves."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import (
    cell,
    compare,
    environment,
    gpu_roofline,
    inputs,
    report,
    roofline,
    shapes,
    table,
    targets,
    timing,
)
from bench.peers import PEERS, default_peers, flaggems_rnn
from bench.peers.base import Peer, Prepared
from bench.peers.torch_rnn import TorchRNN
from bench.run import summary
from bench.shapes import Case
from bench.store import Store, read
from rnnfast import dispatch

SMALL = Case(5, 2, 3, 4, threads=1)
FAST = timing.Budget(seconds=1e-3, turn=1e-4, settle=0, min_rounds=2, max_rounds=3)


class Clock:
    """A clock that only contenders move. It notes who ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def contender(self, name: str, costs: list[float]):
        turns = iter(costs)

        def call() -> None:
            self.now += next(turns, costs[-1])
            self.log.append(name)

        return call


def test_timer_reports_median_and_quartiles():
    clock = Clock()
    # Two calls of warm-up, then one call a round: 1, 2, 3, 4 and an outlier.
    call = clock.contender("a", [9, 5, 1, 2, 3, 4, 1000])
    budget = timing.Budget(seconds=0, min_rounds=5, max_rounds=5)
    measured = timing.alternate({"a": call}, budget, clock=lambda: clock.now)["a"]
    assert (measured.median, measured.q1, measured.q3) == (3, 2, 4)
    assert (measured.rounds, measured.calls) == (5, 1)


def test_timer_alternates():
    clock = Clock()
    calls = {name: clock.contender(name, [1.0]) for name in "abc"}
    budget = timing.Budget(seconds=0, min_rounds=6, max_rounds=6)
    timing.alternate(calls, budget, clock=lambda: clock.now)
    turns = clock.log[-18:]
    rounds = [turns[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(once) == ["a", "b", "c"] for once in rounds)
    assert len({tuple(once) for once in rounds}) > 1, "the order is never shuffled"


def test_timer_batches_short_calls():
    clock = Clock()
    calls = {"short": clock.contender("short", [1e-6]), "long": clock.contender("long", [1e-2])}
    measured = timing.alternate(calls, timing.Budget(turn=1e-3), clock=lambda: clock.now)
    assert measured["short"].calls == pytest.approx(1000, abs=1)
    assert measured["long"].calls == 1
    assert measured["short"].median == pytest.approx(1e-6)
    assert measured["short"].rounds == measured["long"].rounds


def test_timer_settles_before_it_measures():
    clock = Clock()
    # In every turn the first call is disturbed; with settling it is never the timed one.
    costs = [1e-3, 1e-3] + [5e-3, 1e-3] * 10
    budget = timing.Budget(seconds=0, turn=1e-3, settle=1e-3, min_rounds=5, max_rounds=5)
    measured = timing.alternate({"a": clock.contender("a", costs)}, budget, clock=lambda: clock.now)["a"]
    assert measured.median == pytest.approx(1e-3)


def test_timer_waits_at_the_end_of_a_batch():
    clock = Clock()
    waited = []

    def wait(name: str, result: object) -> None:
        waited.append((name, result))
        clock.now += 10.0  # what a device still had to do

    budget = timing.Budget(seconds=0, turn=0, settle=0, min_rounds=3, max_rounds=3)
    measured = timing.alternate({"a": lambda: "last"}, budget, wait=wait, clock=lambda: clock.now)["a"]
    assert set(waited) >= {("a", "last")}
    assert measured.median == 10.0


def test_timer_needs_a_contender():
    with pytest.raises(ValueError, match="at least one"):
        timing.alternate({})


class Altered(Peer):
    """torch.nn.RNN, with one entry of its output or of a gradient spoilt."""

    name = "altered"

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def available(self):
        return None

    def prepare(self, case, given):
        right = TorchRNN().prepare(case, given)

        def unpack(result):
            output, gradients = right.unpack(result)
            self.spoil(output, gradients)
            return output, gradients

        return Prepared(right.call, unpack)


def _output_off(output, gradients):
    output[-1, -1, -1] += 1e-3


def _output_nan(output, gradients):
    output[0, 0, 0] = float("nan")


def _gradient_off(output, gradients):
    gradients[1][0, 0] += 0.1


@pytest.mark.parametrize(
    ("training", "spoil", "named"),
    [(False, _output_off, "output"), (False, _output_nan, "output"), (True, _gradient_off, "weight_hh_l0")],
)
def test_wrong_contender_is_reported_and_not_timed(training, spoil, named):
    case = Case(5, 2, 3, 4, training=training, threads=1)
    measured = cell.measure(case, {"torch-rnn": TorchRNN(), "altered": Altered(spoil)}, FAST)["results"]
    assert measured["altered"]["status"] == "wrong"
    assert named in measured["altered"]["reason"]
    assert "median" not in measured["altered"]
    assert measured["torch-rnn"]["status"] == "timed"
    assert measured["torch-rnn"]["median"] > 0


def test_failing_contender_does_not_stop_the_others():
    def explode(output, gradients):
        raise RuntimeError("no such kernel")

    measured = cell.measure(SMALL, {"altered": Altered(explode), "torch-rnn": TorchRNN()}, FAST)["results"]
    assert measured["altered"] == {"status": "failed", "reason": "RuntimeError: no such kernel"}
    assert measured["torch-rnn"]["status"] == "timed"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("layout", ["dense", "packed", "bidirectional"])
@pytest.mark.parametrize("training", [False, True])
def test_reference_agrees_with_torch(dtype, layout, training):
    case = Case(9, 4, 3, 8, training=training, layout=layout, dtype=dtype, threads=1)
    result, prepared = cell.check(case, TorchRNN(), inputs.make_inputs(case))
    assert result["status"] == "timed", result
    assert prepared is not None


@pytest.mark.parametrize("name", [name for name in PEERS if not name.startswith(("jax", "torch-compile"))])
@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_adapters_are_right_or_say_why_not(name, layout):
    case = Case(6, 3, 5, 7, layout=layout, threads=1)
    result, _ = cell.check(case, PEERS[name], inputs.make_inputs(case))
    assert result["status"] in ("timed", "refused", "unavailable"), result
    assert result["status"] == "timed" or result["reason"]


def _cell(case: Case, **times: tuple[float, float, float]) -> dict:
    results = {
        name.replace("_", "-"): {"status": "timed", "q1": q1, "median": median, "q3": q3}
        for name, (q1, median, q3) in times.items()
    }
    return {"case": case.to_dict(), "results": results}


def test_compare_finds_moves_beyond_spread_only():
    before = {
        "moved": _cell(SMALL, rnnfast=(0.9, 1.0, 1.1)),
        "noisy": _cell(SMALL, rnnfast=(0.5, 1.0, 1.5)),
        "small": _cell(SMALL, rnnfast=(0.999, 1.0, 1.001)),
        "faster": _cell(SMALL, rnnfast=(0.9, 1.0, 1.1), torch_rnn=(1.0, 1.0, 1.0)),
        "gone": _cell(SMALL, rnnfast=(0.9, 1.0, 1.1)),
    }
    after = {
        "moved": _cell(SMALL, rnnfast=(1.2, 1.3, 1.4)),
        "noisy": _cell(SMALL, rnnfast=(1.0, 1.4, 2.0)),
        "small": _cell(SMALL, rnnfast=(1.009, 1.01, 1.011)),
        "faster": _cell(SMALL, rnnfast=(0.4, 0.5, 0.6), torch_rnn=(2.0, 2.0, 2.0)),
    }
    rows = compare.moved(before, after, least=0.03)
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("moved", "rnnfast", "SLOWER"),
        ("faster", "rnnfast", "faster"),
    ]
    assert ("faster", "torch-rnn") in {(row[0], row[1]) for row in compare.moved(before, after, 0.03, True)}
    assert compare.drift(before, after) == 2.0


def test_compare_command(tmp_path, capsys):
    data = {"environment": environment.describe(), "cells": {"c": _cell(SMALL, rnnfast=(1, 1, 1))}}
    slower = {**data, "cells": {"c": _cell(SMALL, rnnfast=(2, 2, 2))}}
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for path, content in ((a, data), (b, slower)):
        path.write_text(json.dumps(content))
    assert compare.main([str(a), str(a)]) == 0
    assert "0 slower" in capsys.readouterr().out
    assert compare.main([str(a), str(b)]) == 1
    assert "SLOWER" in capsys.readouterr().out


def test_report_rewrites_between_its_markers_only():
    text = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nlast words\n"
    once = report.between_markers(text, "new | table")
    assert once == f"# Title\n\n{report.BEGIN}\nnew | table\n{report.END}\n\nlast words\n"
    assert report.between_markers(once, "new | table") == once


@pytest.mark.parametrize(
    "text", ["none", report.BEGIN, f"{report.END}{report.BEGIN}", f"{report.BEGIN * 2}{report.END}"]
)
def test_report_refuses_a_readme_without_markers(text):
    with pytest.raises(ValueError, match="README"):
        report.between_markers(text, "table")


def test_report_shows_losses():
    case = shapes.core()[0]
    run = {
        "environment": environment.describe(),
        "cells": {case.key: _cell(case, rnnfast=(2, 2, 2), torch_rnn=(4, 4, 4), jax_scan=(1, 1, 1))},
    }
    (line,) = [line for line in report.markdown(run).splitlines() if line.startswith("| T100")]
    assert "| 2.00 |" in line
    assert "**0.50**" in line
    assert "(jax-scan)" in line


def test_resumption_keeps_finished_cells(tmp_path: Path):
    path, here = tmp_path / "run.json", environment.describe()
    store = Store.begin(path, here)
    store.put("cells", "done", _cell(SMALL, rnnfast=(1, 1, 1)))
    again = Store.begin(path, {**here, "date": "later"})
    assert again.finished("done", ["rnnfast"])
    assert not again.finished("done", ["rnnfast", "torch-rnn"])
    assert not again.finished("other", ["rnnfast"])
    again.put("cells", "other", _cell(SMALL, rnnfast=(2, 2, 2)))
    assert set(read(path)["cells"]) == {"done", "other"}
    with pytest.raises(ValueError, match="commit"):
        Store.begin(path, {**here, "commit": "another"})


def test_worker_skips_finished_cells(tmp_path: Path, monkeypatch):
    from bench import worker

    monkeypatch.setattr(roofline, "unavailable", lambda: "not now")
    measured = []
    monkeypatch.setattr(
        cell, "measure", lambda case, *rest: measured.append(case.key) or _cell(case, rnnfast=(1, 1, 1))
    )
    threads = torch.get_num_threads()
    command = ["--pool", "2", "--suite", "core", "--filter", "B1 H64", "--peers", "rnnfast"]
    path = tmp_path / "run.json"
    Store.begin(path, environment.describe())
    command += ["--json", str(path)]
    try:
        assert worker.main(command) == 0
        first = list(measured)
        assert len(first) == 4  # a sequence and a step, in both modes
        assert worker.main(command) == 0
        assert measured == first
    finally:
        torch.set_num_threads(threads)


def test_keys_are_unique_and_suites_cover_every_axis():
    for suite in ("core", "quick", "cpu", "gpu"):
        keys = [case.key for case in shapes.select(suite)]
        assert len(set(keys)) == len(keys), suite
    cases = shapes.select("cpu")
    assert {case.steps for case in cases} == {1, 35, 100, 1000}
    assert {case.batch for case in cases} == {1, 8, 32, 64, 256}
    assert {case.hidden_size for case in cases} == {32, 64, 128, 200, 256, 512, 1024}
    assert {case.dtype for case in cases} == {"float32", "bfloat16", "float16"}
    assert {case.threads for case in shapes.select("core", threads=[1, 2])} == {1, 2}


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


def test_summary_and_pictures_of_a_gpu_run(tmp_path):
    cases = [case for case in shapes.select("gpu") if case.hidden_size in (256, 512)]
    assert {case.dtype for case in cases} == {"float32", "bfloat16"}
    cells = {}
    for case in cases:
        cells[case.key] = {**_cell(case, rnnfast=(1, 2, 3), torch_rnn=(4, 4, 4)), "bound_seconds": 1.0}
    gpu = gpu_roofline.Gpu({"float32": 5e13, "bfloat16": 8e14}, 4e12, 1e-7, None, 400_000).to_dict()
    here = {**environment.describe(), "gpu": "a GPU"}
    run = {"environment": here, "roofline": {"gpu": gpu}, "memory": {}, "cells": cells}
    text = summary(run, cells, with_targets=False)
    assert "copies 4000 GB/s" in text
    assert "not measured: no nvcc" in text
    pytest.importorskip("matplotlib")
    (tmp_path / "gpu.json").write_text(json.dumps(run))
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    command = [str(tmp_path / "gpu.json"), "--readme", str(readme), "--pictures", str(tmp_path)]
    assert report.main(command) == 0
    assert readme.read_text() == "no markers"
    names = {path.name for path in tmp_path.glob("*.png")}
    kinds = ("float32", "bfloat16")
    assert names == {f"gpu-{kind}-{what}.png" for kind in kinds for what in ("ratio", "hidden", "scaling")}


def test_contenders_take_part_where_they_run():
    assert "rnnfast-cuda" not in default_peers("cpu")
    assert "openvino" not in default_peers("cuda")
    assert "torch-rnn" in default_peers("cuda")
    assert PEERS["torch-cell-loop"].excluded(replace(SMALL, device="cuda")) == (
        "refused",
        "it runs on cpu only",
    )
    half = replace(SMALL, dtype="float16", device="cuda")
    assert PEERS["rnnfast-eager"].excluded(half) is None


def test_a_flaggems_without_the_operator_takes_no_part(monkeypatch):
    peer = PEERS["flaggems"]
    fake = types.ModuleType("flag_gems")
    fake.ops = types.SimpleNamespace()
    monkeypatch.setattr(flaggems_rnn, "find_spec", lambda name: fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flag_gems", fake)
    assert peer.available() == "this release of flag_gems has no rnn_tanh"
    fake.ops.rnn_tanh = torch.rnn_tanh
    assert peer.available() is None


def test_targets_say_not_measured_rather_than_met():
    empty = targets.check({"cells": {}, "memory": {}})
    assert {row[-1] for row in empty} == {"not measured"}
    case = shapes.core()[0]  # T100 B1 H64 forward: 10x
    for torchs, verdict in ((11.0, "met"), (9.0, "MISSED")):
        cells = {case.key: _cell(case, rnnfast=(1, 1, 1), torch_rnn=(torchs,) * 3)}
        assert targets.check({"cells": cells, "memory": {}})[0][-1] == verdict


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.12"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_numbers(value, text):
    assert table.number(value) == text


def test_report_refuses_files_of_two_machines(tmp_path):
    for name in ("a", "b"):
        run = {"environment": {"cpu": name}, "roofline": {}, "memory": {}, "cells": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    with pytest.raises(SystemExit):
        report.main(
            [str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--readme", str(tmp_path / "README")]
        )


def test_calls_that_compute_next_to_nothing(monkeypatch):
    from bench import calls

    monkeypatch.setattr(calls.cuda, "native", calls.cuda.native)
    monkeypatch.setattr(dispatch, "_registry", dict(dispatch._registry))
    contenders = calls.contenders()
    assert len(contenders) == 8
    for name, call in contenders.items():
        result = call()
        assert len(result) == (4 if name.startswith("training") else 2), name
    dispatch.find.cache_clear()
