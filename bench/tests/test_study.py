"""The study ladder: every rung is right, a wrong one is found, the guide is current."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from bench.study import build, command, problem, report, run
from bench.study.ladder import LADDER
from bench.study.rung import Rung

GUIDE = report.GUIDE.read_text()


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.label)
def test_a_rung_is_right(rung):
    state, why, _ = run.examine(rung)
    if state == "unavailable":
        pytest.skip(str(why))
    assert (state, why) == ("right", None)


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.label)
def test_a_rung_has_a_page(rung):
    assert rung.page().startswith(f"Rung {rung.label}") and "Floor" in rung.page()
    assert f"test_exercise_{rung.label}" in rung.exercise() and rung.outcome
    assert len(rung.path.read_text().splitlines()) <= 140
    for name in re.findall(r"[\w/]+\.\w+", rung.becomes):
        assert (Path(__file__).parents[2] / name).exists(), name


def equation(p: problem.Problem) -> problem.Result:
    return (problem.forward_truth(list(p.parameters()))[0].float(),)


def gradients(p: problem.Problem) -> problem.Result:
    return tuple(gradient.float() for gradient in problem.backward_truth(p))


def unwritten(p):
    return (torch.empty_like(p.out),)


def lossy(p):
    return (equation(p)[0].nan_to_num(0.5),)


def mixed(p):  # a row's NaN reaches its neighbours
    (out,) = equation(p)
    return (out + 0 * out.sum(1, keepdim=True),)


def late(p):  # h0 is forgotten
    return (torch.cat([torch.zeros_like(p.out[:1]), equation(p)[0][1:]]),)


def impure(p):
    result = equation(p)
    p.x.add_(1e-6)
    return result


@pytest.mark.parametrize(
    ("solve", "words"),
    [
        (unwritten, "off by inf"),
        (lossy, "lost"),
        (mixed, "reached another"),
        (late, "off by"),
        (impure, "differ|written to"),
        (lambda p: (equation(p)[0].double(),), "float64"),
    ],
)
def test_a_wrong_rung_is_found(solve, words):
    assert re.search(words, problem.wrong(solve, False) or "")


def test_a_right_rung_is_not_found_wrong():
    assert problem.wrong(equation, False) is None
    assert problem.wrong(gradients, True) is None


def broken(tmp_path, text) -> Rung:
    source = tmp_path / "broken.cpp"
    source.write_text(text)
    return Rung(0, str(source), "", lambda: build.load(source), lambda m, s: {}, "", "")


def test_a_rung_that_does_not_compile_says_why_and_stops_no_other(tmp_path):
    rung = broken(tmp_path, "int forward( {")
    found = run.climb((rung, LADDER[1]), 0.0, timed=False)["rungs"]
    assert found["0"]["state"] == "unavailable" and "error" in found["0"]["why"]
    assert found["1"]["state"] == "right"


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.compiler.cache_clear()
    try:
        with pytest.raises(build.Unavailable, match="no-such-compiler"):
            build.compiler()
    finally:
        build.compiler.cache_clear()


@pytest.mark.slow
def test_a_climb_is_timed_and_shown(tmp_path, monkeypatch, capsys):
    small = problem.Shape(3, 2, 8, 8)
    rungs = [rung for rung in LADDER if rung.label in ("2", "5", "6", "7a")]
    monkeypatch.setattr(
        command, "LADDER", tuple(Rung(**{**vars(rung), "shapes": (small,)}) for rung in rungs)
    )
    out, picture = tmp_path / "run.json", tmp_path / "picture.png"
    arguments = ["--explain", "--seconds", "0", "--json", str(out), "--picture", str(picture)]
    assert command.main(arguments) == 0
    printed, figures = capsys.readouterr().out, json.loads(out.read_text())
    for rung in rungs:
        times = figures["rungs"][rung.label]["times"]
        if figures["rungs"][rung.label]["state"] == "right":
            assert times[str(small)]["us"] > 0 and all(us >= 0 for us in times[str(small)]["terms"].values())
        assert rung.idea in printed and rung.exercise() in printed
    assert picture.stat().st_size > 1000


def test_an_unknown_rung(capsys):
    with pytest.raises(SystemExit):
        command.main(["99"])
    assert "there is no rung 99" in capsys.readouterr().err


def test_the_generated_part_of_the_guide_is_current():
    """It follows from the committed figures, and they have every rung with its present idea and file."""
    figures = json.loads(report.FIGURES.read_text())
    assert report.between(GUIDE, report.block(figures, LADDER)) == GUIDE
    for rung in LADDER:
        entry = figures["rungs"][rung.label]
        assert (entry["file"], entry["idea"], entry["state"]) == (rung.file, rung.idea, "right"), rung.label
    assert report.PICTURE.exists()


def test_the_snippets_of_the_guide_run():
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet, names)


@pytest.mark.slow
def test_clang_builds_the_rungs(tmp_path):
    if subprocess.run(["sh", "-c", "command -v clang++"], capture_output=True).returncode != 0:
        pytest.skip("there is no clang++")
    for rung in LADDER:
        if rung.path.suffix == ".cpp" and rung.number < 8:
            command_line = ["clang++", *build.FLAGS, str(rung.path), "-o", str(tmp_path / "rung.so")]
            done = subprocess.run(command_line, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
