"""`python -m bench charlm` from end to end: output, files, exit status, two processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from bench.lm import charlm

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["--hidden=12", "--batch-size=4", "--num-steps=6", "--max-tokens=2000", "--steps=25"]
TINY = [*SIZES, "--letters-only", "--dtype=float64", "--optimizer=sgd", "--lr=0.5"]


def start(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from the command line: its process, its JSON, its folder."""
    folder = tmp_path_factory.mktemp("charlm")
    process = start("-m", "bench", "charlm", *TINY, "--out", str(folder), "--json", str(folder / "run.json"))
    assert process.returncode == 0, process.stderr
    return process, json.loads((folder / "run.json").read_text()), folder


@pytest.mark.slow
def test_run_reports_every_model(finished):
    process, result, _ = finished
    models = {row["model"]: row for row in result["models"]}
    assert list(models) == [
        "rnnfast.RNN",
        "torch.nn.RNN",
        "window, no hidden state",
        "3-gram counts",
        "5-gram counts",
    ]
    for name, row in models.items():
        assert name in process.stdout and f"{row['held_out_perplexity']:.3f}" in process.stdout
        assert 1 < row["held_out_perplexity"] < 1000
    fast, reference = models["rnnfast.RNN"], models["torch.nn.RNN"]
    assert fast["parameters"] == reference["parameters"]
    assert reference["ratio_to_torch"] == 1
    assert "training 100%" in process.stderr


@pytest.mark.slow
def test_loss_curves_agree(finished):
    process, result, _ = finished
    assert result["agreement"]["agrees"] and result["agreement"]["steps"] == result["steps"] == 25
    assert "within what rounding explains" in process.stdout
    losses = torch.tensor(result["losses"]["rnnfast.RNN"])
    assert losses[-5:].mean() < losses[:5].mean()


@pytest.mark.slow
def test_samples_and_picture(finished):
    pytest.importorskip("matplotlib")
    process, result, folder = finished
    for kind in ("greedy", "sampled"):
        assert result["samples"][kind].startswith("The ")
        assert f"{kind}: {result['samples'][kind]}" in process.stdout
    assert (folder / "charlm.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_json_names_no_folder(finished):
    _, result, folder = finished
    assert str(folder) not in json.dumps(result)
    assert result["settings"]["text"] == "pydoc_data.topics"


@pytest.mark.slow
@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo"
)
def test_two_processes_learn_what_one_does(finished, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    target = tmp_path / "run.json"
    process = start(*launch, "-m", "bench", "charlm", *TINY, "--out", str(tmp_path), "--json", str(target))
    assert process.returncode == 0, process.stderr
    shared, alone = json.loads(target.read_text()), finished[1]
    assert shared["environment"]["processes"] == 2
    for name, expected in alone["losses"].items():
        # float64, means of 24 terms taken in two halves, over 20 steps
        torch.testing.assert_close(
            torch.tensor(shared["losses"][name], dtype=torch.float64),
            torch.tensor(expected, dtype=torch.float64),
            rtol=20 * 24 * torch.finfo(torch.float64).eps,
            atol=0,
        )


def run(tmp_path, *arguments):
    return charlm.main([*TINY, "--out", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "missing.txt"], "cannot read missing.txt: No such file"),
        (["--hidden", "0"], "argument --hidden: must be above 0"),
        (["--batch-size", "-1"], "argument --batch-size: must be above 0"),
        (["--num-steps", "many"], "argument --num-steps: invalid int value: 'many'"),
        (["--lr", "nan"], "argument --lr: must be above 0"),
        (["--prefix", ""], "argument --prefix: must not be empty"),
        (["--batch-size", "10000"], "the text is too short"),
        (["--backend", "abacus"], "abacus"),
        (["--quick", "--d2l"], "not allowed with"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        run(tmp_path, *arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe\xff", "not UTF-8"), (b"short", "too short"), (b"", "too short")]
)
def test_bad_text_exits_with_2_and_says_why(tmp_path, capsys, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        run(tmp_path, "--text", str(tmp_path / "text.txt"))
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_found_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit:
        run(tmp_path, "--out", str(tmp_path / "file"))
    assert exit.value.code == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.slow
def test_curves_that_do_not_agree_fail_the_run(tmp_path, capsys, monkeypatch):
    class Wrong(charlm.rnnfast.RNN):
        def forward(self, input, hx=None):
            output, h_n = super().forward(input, hx)
            return 1.0001 * output, h_n

    monkeypatch.setattr(charlm.rnnfast, "RNN", Wrong)
    assert run(tmp_path) == 1
    captured = capsys.readouterr()
    assert "BEYOND" in captured.out and "do not agree" in captured.err


@pytest.mark.slow
def test_training_that_diverges_fails_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: None)
    assert run(tmp_path, "--lr", "1e300") == 1
    assert "training perplexity is no longer finite" in capsys.readouterr().err


@pytest.mark.slow
def test_without_torch_and_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(tmp_path, "--no-torch", "--partition", "random", "--input", "one-hot") == 0
    output = capsys.readouterr().out
    assert "torch.nn.RNN" not in output and "no picture: matplotlib is not installed" in output


def test_a_preset_gives_way_to_the_command_line():
    parser = charlm.make_parser(None)
    args = charlm.parse_arguments(parser, ["--d2l", "--epochs", "3"])
    assert (args.epochs, args.hidden, args.optimizer, args.lr, args.seconds) == (3, 256, "sgd", 1.0, None)
    assert charlm.parse_arguments(charlm.make_parser(None), []).seconds == 100
    assert charlm.parse_arguments(charlm.make_parser(None), ["--steps", "5"]).seconds is None
