"""Cells: who takes part, who is checked and found wrong, what is kept of an interrupted run."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cases import drawn, inputs, suites, timing
from bench.cases.case import Case
from bench.cases.suites import Suite
from bench.machine import environment, peaks
from bench.peers import PEERS, default_peers, flaggems_rnn
from bench.peers.base import Peer, Prepared, by_autograd
from bench.peers.torch_rnn import TorchRNN
from bench.report.store import Store, read
from bench.suites import cell, run, worker
from bench.tests.cells import SMALL, timed_cell

FAST = Suite(list, timing.Budget(seconds=1e-3, turn=1e-4, settle=0, min_rounds=2, max_rounds=3))


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
@pytest.mark.parametrize("layout", ["dense", "packed", "bidirectional", "2layers"])
@pytest.mark.parametrize("training", [False, True])
def test_reference_agrees_with_torch(dtype, layout, training):
    case = Case(9, 4, 3, 8, training=training, layout=layout, dtype=dtype, threads=1)
    result, prepared = cell.check(case, TorchRNN(), inputs.make_inputs(case))
    assert result["status"] == "timed", result
    assert prepared is not None


@pytest.mark.parametrize("name", [name for name in PEERS if not name.startswith(("jax", "torch-compile"))])
@pytest.mark.parametrize("layout", ["dense", "packed", "bidirectional", "4layers"])
def test_adapters_are_right_or_say_why_not(name, layout):
    case = Case(6, 3, 5, 7, layout=layout, threads=1)
    result, _ = cell.check(case, PEERS[name], inputs.make_inputs(case))
    assert result["status"] in ("timed", "refused", "unavailable"), result
    assert result["status"] == "timed" or result["reason"]


def test_resumption_keeps_finished_cells(tmp_path: Path):
    path, here = tmp_path / "run.json", environment.describe()
    store = Store.begin(path, here)
    store.put("cells", "done", timed_cell(SMALL, rnnfast=(1, 1, 1)))
    again = Store.begin(path, {**here, "date": "later"})
    assert again.finished("done", ["rnnfast"])
    assert not again.finished("done", ["rnnfast", "torch-rnn"])
    assert not again.finished("other", ["rnnfast"])
    again.put("cells", "other", timed_cell(SMALL, rnnfast=(2, 2, 2)))
    assert set(read(path)["cells"]) == {"done", "other"}
    with pytest.raises(ValueError, match="commit"):
        Store.begin(path, {**here, "commit": "another"})


def test_worker_skips_finished_cells(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(peaks, "unavailable", lambda: "not now")
    measured = []
    monkeypatch.setattr(
        cell, "measure", lambda case, *rest: measured.append(case.key) or timed_cell(case, rnnfast=(1, 1, 1))
    )
    threads = torch.get_num_threads()
    command = ["--pool", "2", "--suite", "core", "--filter", "B1 H64", "--peers", "rnnfast"]
    path = tmp_path / "run.json"
    Store.begin(path, environment.describe())
    command += ["--json", str(path)]
    try:
        assert worker.main(command) == 0
        first = list(measured)
        assert len(first) == 12  # a layer, four stacks and a step, in both modes
        assert worker.main(command) == 0
        assert measured == first
    finally:
        torch.set_num_threads(threads)


def test_keys_are_unique_and_suites_cover_every_axis():
    for suite in ("core", "quick", "cpu", "gpu"):
        keys = [case.key for case in suites.select(suite)]
        assert len(set(keys)) == len(keys), suite
    cases = suites.select("cpu")
    assert {case.steps for case in cases} == {1, 35, 100, 1000}
    assert {case.batch for case in cases} == {1, 8, 32, 64, 256}
    assert {case.hidden_size for case in cases} == {32, 64, 128, 200, 256, 512, 1024}
    assert {case.dtype for case in cases} == {"float32", "bfloat16", "float16"}
    assert {case.threads for case in suites.select("core", threads=[1, 2])} == {1, 2}


def test_random_cases_are_log_uniform_within_their_bounds():
    cases = suites.select("random", seed=3, count=400)
    assert cases == suites.select("random", seed=3, count=400)
    assert cases[:50] == suites.select("random", seed=3, count=50)
    assert cases[:50] != suites.select("random", seed=4, count=50)
    assert len({case.key for case in cases}) == 400
    for name, (low, high) in drawn.RANGES.items():
        sizes = [getattr(case, name) for case in cases if case.kind == "sequence" or name != "steps"]
        assert low <= min(sizes) <= 2 * low and max(sizes) <= high
        assert max(sizes) > high / 8, name
        # The bounds cut off large sizes; below them each factor of 4 is as likely as the next.
        first, second = (sum(low * a <= size < low * 4 * a for size in sizes) for a in (1, 4))
        assert 0.5 < first / second < 2, name
    axes = ("training", "kind", "layout", "dtype", "threads")
    values = {name: {getattr(case, name) for case in cases} for name in axes}
    assert values == {
        "training": {False, True},
        "kind": {"sequence", "step"},
        "layout": {"dense", "packed"},
        "dtype": {"float32", "bfloat16", "float64"},
        "threads": {1, 2},
    }
    assert all(drawn.affordable(case) for case in cases)
    assert not drawn.affordable(Case(2000, 1000, 64, 1024))


def test_random_cases_run(tmp_path: Path, capfd):
    """Parent and workers draw the same cases; a second run measures no cell again."""
    path = tmp_path / "random.json"
    command = ["--suite", "random", "--seed", "3", "--count", "3", "--seconds", "0.001", "--json", str(path)]
    command += ["--peers", "rnnfast", "torch-rnn", "--filter", "forward"]
    assert run.main(command) == 0
    wanted = [case.key for case in suites.select("random", pattern="forward", seed=3, count=3)]
    first = read(path)["cells"]
    assert wanted and set(first) == set(wanted)
    out = capfd.readouterr().out
    assert "torch-rnn: ours is ahead in " in out and f"of {len(wanted)} cells" in out
    assert run.main(command) == 0
    assert read(path)["cells"] == first
    with pytest.raises(SystemExit):
        run.main(["--suite", "random", "--count", "0"])


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


def test_long_cases_are_checked_on_their_first_steps(monkeypatch):
    checked = []
    plain = cell.check
    monkeypatch.setattr(cell, "check", lambda case, *rest: checked.append(case.steps) or plain(case, *rest))
    case = Case(9, 2, 3, 4, training=True, threads=1)
    measured = cell.measure(case, {"torch-rnn": TorchRNN()}, replace(FAST, checked_steps=6))
    assert checked == [6] and measured["case"] == case.to_dict()
    assert measured["results"]["torch-rnn"]["status"] == "timed"
    wrong = cell.measure(case, {"altered": Altered(_output_off)}, replace(FAST, checked_steps=6))
    assert wrong["results"]["altered"]["status"] == "wrong"


class Rounded(Peer):
    """torch.nn.RNN with operands that are rounded to some number of bits at every product."""

    name = "rounded"

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def available(self):
        return None

    def prepare(self, case, given):
        w_ih, w_hh, b_ih, b_hh = (p.clone().requires_grad_() for p in given.parameters.values())

        def product(a, b):
            return Product.apply(a, b, self.bits)

        def forward():
            h, output = given.h0[0], []
            for x in given.x:
                h = torch.tanh(product(x, w_ih) + product(h, w_hh) + b_ih + b_hh)
                output.append(h)
            return torch.stack(output)

        return by_autograd(case, forward, [w_ih, w_hh, b_ih, b_hh], lambda y: y, given.grad_output)


class Product(torch.autograd.Function):
    """a b^T, forward and backward of operands with `bits` bits."""

    @staticmethod
    def forward(ctx, a, b, bits):
        ctx.save_for_backward(a, b)
        ctx.bits = bits
        return rounded(a, bits) @ rounded(b, bits).T

    @staticmethod
    def backward(ctx, grad):
        a, b, grad = (rounded(t, ctx.bits) for t in (*ctx.saved_tensors, grad))
        return grad @ b, grad.T @ a, None


def rounded(tensor, bits):
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


@pytest.mark.parametrize("hidden", [16, 200])
def test_tf32_is_a_case_of_its_own(hidden):
    """Operands of TF32's 11 bits are right where the case allows them, and nowhere else; 6 bits are wrong."""
    exact = Case(6, 4, hidden, hidden, training=True, threads=1)
    tf32 = replace(exact, tf32=True)
    assert tf32.key == exact.key.replace("1thr", "tf32 1thr")

    def status(case, bits):
        return cell.check(case, Rounded(bits), inputs.make_inputs(case))[0]["status"]

    assert [status(exact, bits) for bits in (24, 11)] == ["timed", "wrong"]
    assert [status(tf32, bits) for bits in (11, 6)] == ["timed", "wrong"]
    with pytest.raises(ValueError, match="TF32"):
        replace(tf32, dtype="bfloat16")
