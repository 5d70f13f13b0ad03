"""`python -m bench gpu`: its parts, run on the CPU with backends that run there."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bench.cases import suites, timing
from bench.gpu import check, run
from bench.machine import gpu_latency
from bench.peers import PEERS
from bench.suites import cell
from bench.suites.options import parser

CONTENDERS = ("rnnfast-eager", "torch-rnn")


@pytest.fixture(autouse=True)
def one_thread():
    """Others would spend longer waking up than working."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def collect(part, **options):
    found = {}
    part(found.__setitem__, device="cpu", **options)
    return found


def test_check_finds_what_is_right():
    found = collect(check.check, backends=("aten",), hidden=(20,), batches=(3,))
    assert len(found) == 5 * 4
    assert {result["status"] for result in found.values()} == {"right"}, found


def test_check_finds_what_is_wrong_and_what_is_refused(monkeypatch):
    plain = check.rnn_sequence
    monkeypatch.setattr(check, "rnn_sequence", lambda *a, **k: [1.2 * r for r in plain(*a, **k)])
    found = collect(check.check, backends=("eager", "cuda"), hidden=(20,), batches=(3,))
    assert {r["status"] for key, r in found.items() if "eager" in key and "T6" in key} == {"wrong"}
    assert {r["status"] for key, r in found.items() if "eager" in key and "T1" in key} == {"right"}
    assert {r["status"] for key, r in found.items() if key.startswith("cuda")} == {"failed"}


@pytest.mark.slow
def test_suites_and_summary():
    cells = {}
    cases = suites.select("gpu-layers", pattern="T32 B1 H64") + suites.select("gpu-steps", pattern="B1 H64")
    for case in cases:
        case = replace(case, device="cpu", threads=1)
        suite = replace(suites.SUITES["gpu-layers"], budget=timing.Budget(seconds=0.01, min_rounds=3))
        cells[case.key] = cell.measure(case, {name: PEERS[name] for name in CONTENDERS}, suite)
    assert len(cells) == 4 * 2 + 2 * 2
    for value in cells.values():
        assert all(value["results"][name]["median"] > 0 for name in CONTENDERS)
    text, well = run.summary({"gpu-layers": cells}, {"gpu-layers": "complete"})
    assert well and text == "gpu-layers: complete; 24 timed"
    wrong = {"a": {"status": "wrong", "worst": "h_n"}}
    assert run.summary({"check": wrong}, {"check": "complete"}) == (
        "check: complete; 1 wrong\n  a: wrong h_n",
        False,
    )
    assert not run.summary({"gpu-layers": cells}, {"gpu-layers": "stopped after 240 s"})[1]


def test_a_part_is_a_command_that_the_tool_understands(tmp_path):
    """Suites run as suites, into the file that the command reads afterwards."""
    for name in run.SECONDS:
        program, dash, bench, command, *arguments = run.command_of(name, tmp_path, ("cuda",))
        assert (program, dash, bench) == (sys.executable, "-m", "bench")
        assert command == ("gpu" if name in run.PARTS else "run")
        if command == "run":
            options = parser().parse_args(arguments)
            assert options.suite == name and options.json == str(tmp_path / f"{name}.json")
            assert options.peers == ["rnnfast-cuda", "torch-rnn"]


def test_part_keeps_what_it_has(tmp_path, monkeypatch):
    def stopped(put, backends):
        put("first", 1)
        raise KeyboardInterrupt

    monkeypatch.setitem(run.PARTS, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.run_part("check", tmp_path, ("cuda", "triton"))
    assert json.loads((tmp_path / "check.json").read_text()) == {"first": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_part_is_skipped(tmp_path, capsys):
    assert run.main(["--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "device.json").read_text())
    assert set(written["ended"]) == set(run.SECONDS) and written["environment"]["versions"]["torch"]
    printed = capsys.readouterr().out
    for name in run.SECONDS:
        assert f"{name}: skipped: torch finds no CUDA device" in printed


@pytest.mark.slow
def test_needs_nothing_but_torch():
    """As on a machine that has a GPU, torch and Triton and no leave to install anything."""
    others = ("tqdm", "numpy", "matplotlib", "pytest", "onnx", "onnxruntime", "jax", "openvino")
    needed = "bench.gpu.run, bench.suites.run, bench.suites.worker, bench.report.crossover"
    program = f"import sys; sys.modules.update(dict.fromkeys({others!r})); import {needed}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(gpu_latency.nvcc() is None, reason="no nvcc")
def test_latencies_compile_without_a_warning(tmp_path):
    gpu_latency.build(tmp_path / "gpu_latency", "sm_90a")
