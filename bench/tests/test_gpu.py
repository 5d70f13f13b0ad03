"""bench.gpu and bench.crossover: their parts, run on the CPU with backends that run there."""

import json
import subprocess
import sys

import pytest
import torch

from bench import crossover, gpu, gpu_check, gpu_peaks, gpu_table, gpu_timing


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
    found = collect(gpu_check.check, backends=("aten",), hidden=(20,), batches=(3,))
    assert len(found) == 5 * 4
    assert {result["status"] for result in found.values()} == {"right"}, found


def test_check_finds_what_is_wrong_and_what_is_refused(monkeypatch):
    plain = gpu_check.rnn_sequence
    monkeypatch.setattr(gpu_check, "rnn_sequence", lambda *a, **k: [1.2 * r for r in plain(*a, **k)])
    found = collect(gpu_check.check, backends=("eager", "cuda"), hidden=(20,), batches=(3,))
    assert {r["status"] for key, r in found.items() if "eager" in key and "T6" in key} == {"wrong"}
    assert {r["status"] for key, r in found.items() if "eager" in key and "T1" in key} == {"right"}
    assert {r["status"] for key, r in found.items() if key.startswith("cuda")} == {"failed"}


def test_timing_and_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_timing, "STEPS", (8, 2))
    found = collect(gpu_timing.timing, backends=("eager",), sizes=[(2, 16)], seconds=0.01)
    assert set(found) == {
        f"{kind} T{T} B2 H16 {mode}"
        for kind in gpu_check.KINDS
        for T in (8, 2)
        for mode in ("forward", "training")
    }
    for value in found.values():
        assert all(value["results"][name]["median"] > 0 for name in ("rnnfast-eager", "torch-rnn"))
    text, well = gpu.summary({"timing": found}, {"timing": "complete"})
    assert well and text == "timing: complete; 32 timed"
    wrong = {"a": {"status": "wrong", "worst": "h_n"}}
    assert gpu.summary({"check": wrong}, {"check": "complete"}) == (
        "check: complete; 1 wrong\n  a: wrong h_n",
        False,
    )
    assert not gpu.summary({"timing": found}, {"timing": "stopped after 300 s"})[1]


def test_part_keeps_what_it_has(tmp_path, monkeypatch):
    def stopped(put, backends):
        put("first", 1)
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.PARTS, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_part("check", tmp_path, ("cuda", "triton"))
    assert json.loads((tmp_path / "check.json").read_text()) == {"first": 1}


def measured(batch, hidden, ours, theirs, training=False, kind="bfloat16", steps=512):
    case = {"dtype": "float32" if kind == "tf32" else kind, "training": training, "steps": steps}
    case |= {"hidden_size": hidden, "batch": batch, "kind": "step" if steps == 1 else "sequence"}
    results = {"rnnfast-cuda": {"median": ours}, "torch-rnn": {"median": theirs}}
    return {"kind": kind, "case": case, "results": results}


def test_crossover():
    cells = [
        measured(1, 64, 1, 2),
        measured(16, 64, 1.02, 1),  # within what is tolerated
        measured(64, 64, 1.2, 1),  # lost: no claim from here on
        measured(256, 64, 1, 2),
        measured(1, 128, 1, 2),
        measured(1, 256, 2, 1),
        measured(1, 64, 1, 2, kind="tf32"),
        measured(1, 64, 3, 2, kind="float32"),
        measured(1, 64, None, 2, training=True),
        # Shorter sequences: won up to 16, lost at 64, won where longer ones are lost.
        *(measured(batch, 512, 1, 2) for batch in (1, 16, 64)),
        measured(256, 512, 2, 1),
        *(measured(batch, 512, ours, 2, steps=32) for batch, ours in ((1, 1), (16, 1), (64, 3), (256, 1))),
        measured(1, 1024, 1, 2, steps=32),
        measured(1, 1024, 3, 2),
        measured(1, 64, 1, 2, steps=1),
    ]
    for index, value in enumerate(cells):
        if value["results"]["rnnfast-cuda"]["median"] is None:
            cells[index]["results"]["rnnfast-cuda"] = {"status": "refused"}
    assert crossover.rows(cells, "cuda") == [
        ("sequence", False, "bfloat16", 1, 64, 16, 512),
        ("sequence", False, "bfloat16", 65, 128, 1, 512),
        ("sequence", False, "bfloat16", 257, 512, 16, 32),
        ("sequence", False, "bfloat16", 257, 512, 64, 512),
        ("step", False, "bfloat16", 1, 64, 1, 1),
    ]


def test_crossover_of_float32_needs_both_precisions():
    cells = [measured(1, hidden, 1, 2, kind=kind) for hidden in (64, 128) for kind in ("tf32", "float32")]
    assert crossover.rows(cells[:3], "cuda") == [("sequence", False, "float32", 1, 64, 1, 512)]
    lost = measured(1, 64, 3, 2, kind="tf32")
    assert crossover.rows([*cells[1:], lost], "cuda") == [("sequence", False, "float32", 65, 128, 1, 512)]


def test_crossover_of_several_devices(tmp_path, monkeypatch):
    """Won on both up to a batch of 1; the second device has no batch of 64."""
    files = []
    for name, ours in (("a", (1, 1, 1)), ("b", (1, 3))):
        cells = {str(b): measured(b, 64, t, 2) for b, t in zip((1, 16, 64), ours, strict=False)}
        files.append(tmp_path / f"{name}.json")
        environment = {"gpu": name, "commit": "c"}
        files[-1].write_text(json.dumps({"environment": environment, "timing": cells, "steps": {}}))
    monkeypatch.setattr(crossover, "TABLE", tmp_path / "crossovers.py")
    crossover.main([*map(str, files), "--write"])
    found: dict = {}
    exec((tmp_path / "crossovers.py").read_text(), found)
    assert found["CUDA"] == (("sequence", False, "bfloat16", 1, 64, 1, 512),)


def test_crossover_reads_the_suite_gpu_too():
    """Its plain cells: longer sequences of a batch that was not measured are no objection, a loss is one."""

    def of_suite(batch, ours, hidden=64, **changed):
        cell = measured(batch, hidden, ours, 2, steps=100)
        plain = {"layout": "dense", "nonlinearity": "tanh", "input_size": hidden}
        return {"case": {**cell["case"], **plain, **changed}, "results": cell["results"]}

    cells = [
        of_suite(1, ours=1),
        of_suite(16, ours=1),
        of_suite(16, ours=3, layout="packed"),
        of_suite(16, ours=3, nonlinearity="relu"),
        of_suite(16, ours=3, input_size=28),
        of_suite(64, ours=3),
        of_suite(1, ours=1, hidden=128, dtype="float32"),  # with TF32 it was not measured
    ]
    timing = [measured(1, 64, 1, 2), measured(64, 64, 1, 2)]
    runs = [{"cells": dict(enumerate(cells))}, {"timing": dict(enumerate(timing))}]
    assert crossover.rows([cell for run in runs for cell in crossover.cells(run)], "cuda") == [
        ("sequence", False, "bfloat16", 1, 64, 16, 100),
        ("sequence", False, "bfloat16", 1, 64, 64, 512),
    ]


def test_the_tables_are_what_was_measured(tmp_path, monkeypatch, capsys):
    root = crossover.TABLE.parents[1]
    results = [root / "bench" / "results" / name for name in ("gpu-h200-timing.json", "gpu-suite-h200.json")]
    assert gpu_table.main([str(results[0])]) == 0
    assert capsys.readouterr().out in (root / "README.md").read_text()
    before = crossover.TABLE.read_text()
    monkeypatch.setattr(crossover, "TABLE", tmp_path / "crossovers.py")
    crossover.main([*map(str, results), "--write"])
    assert (tmp_path / "crossovers.py").read_text() == before


def test_steps_and_table(capsys):
    found = collect(gpu_timing.steps, backends=("eager",), sizes=[(2, 16)], seconds=0.01)
    assert set(found) == {
        f"{kind} T1 B2 H16 {mode}" for kind in ("bfloat16", "tf32") for mode in ("forward", "training")
    }
    assert all(cell["case"]["kind"] == "step" for cell in found.values())
    found["bfloat16 T1 B2 H16 forward"]["results"]["rnnfast-cuda"] = {"status": "failed"}
    lines = gpu_table.table(found).splitlines()
    assert len(lines) == 2 + len(found) and len({line.count("|") for line in lines}) == 1
    results = found["tf32 T1 B2 H16 forward"]["results"]
    ratio = results["torch-rnn"]["median"] / results["rnnfast-eager"]["median"]
    assert any(line.startswith("| tf32 T1 B2 H16 forward") and f"{ratio:.2f}" in line for line in lines)
    assert "failed" in lines[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_part_is_skipped(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert set(written["ended"]) == set(gpu.PARTS) and written["environment"]["versions"]["torch"]
    printed = capsys.readouterr().out
    for name in gpu.PARTS:
        assert f"{name}: skipped: torch finds no CUDA device" in printed


def test_needs_nothing_but_torch():
    """As on a machine that has a GPU, torch and Triton and no leave to install anything."""
    others = ("tqdm", "numpy", "matplotlib", "pytest", "onnx", "onnxruntime", "jax", "openvino")
    program = f"import sys; sys.modules.update(dict.fromkeys({others!r})); import bench.gpu, bench.crossover"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_peaks():
    found = collect(gpu_peaks.peaks, copied=1000, side=50, clock=lambda call: call() is not None and 2e-6)
    assert found["copy"] == {"status": "timed", "GB/s": 1.0}
    assert {kind: found[kind]["TFLOP/s"] for kind in gpu_check.KINDS} == {
        kind: pytest.approx(0.125) for kind in gpu_check.KINDS
    }
