"""What is made of results: comparisons, tables, pictures, the documents."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.cases import suites
from bench.machine import environment, gpu_roofline
from bench.report import compare, crossover, documents, losses, markdown, report, results, table, targets
from bench.report.summary import summary
from bench.tests.cells import SMALL, timed_cell


def test_compare_finds_moves_beyond_spread_only():
    before = {
        "moved": timed_cell(SMALL, rnnfast=(0.9, 1.0, 1.1)),
        "noisy": timed_cell(SMALL, rnnfast=(0.5, 1.0, 1.5)),
        "small": timed_cell(SMALL, rnnfast=(0.999, 1.0, 1.001)),
        "faster": timed_cell(SMALL, rnnfast=(0.9, 1.0, 1.1), torch_rnn=(1.0, 1.0, 1.0)),
        "gone": timed_cell(SMALL, rnnfast=(0.9, 1.0, 1.1)),
    }
    after = {
        "moved": timed_cell(SMALL, rnnfast=(1.2, 1.3, 1.4)),
        "noisy": timed_cell(SMALL, rnnfast=(1.0, 1.4, 2.0)),
        "small": timed_cell(SMALL, rnnfast=(1.009, 1.01, 1.011)),
        "faster": timed_cell(SMALL, rnnfast=(0.4, 0.5, 0.6), torch_rnn=(2.0, 2.0, 2.0)),
    }
    rows = compare.moved(before, after, least=0.03)
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("moved", "rnnfast", "SLOWER"),
        ("faster", "rnnfast", "faster"),
    ]
    assert ("faster", "torch-rnn") in {(row[0], row[1]) for row in compare.moved(before, after, 0.03, True)}
    assert compare.drift(before, after) == 2.0


def test_compare_command(tmp_path, capsys):
    data = {"environment": environment.describe(), "cells": {"c": timed_cell(SMALL, rnnfast=(1, 1, 1))}}
    slower = {**data, "cells": {"c": timed_cell(SMALL, rnnfast=(2, 2, 2))}}
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for path, content in ((a, data), (b, slower)):
        path.write_text(json.dumps(content))
    assert compare.main([str(a), str(a)]) == 0
    assert "0 slower" in capsys.readouterr().out
    assert compare.main([str(a), str(b)]) == 1
    assert "SLOWER" in capsys.readouterr().out


def test_report_rewrites_between_its_markers_only():
    text = f"# Title\n\n{documents.BEGIN}\nold\n{documents.END}\n\nlast words\n"
    once = documents.between_markers(text, "new | table")
    assert once == f"# Title\n\n{documents.BEGIN}\nnew | table\n{documents.END}\n\nlast words\n"
    assert documents.between_markers(once, "new | table") == once


@pytest.mark.parametrize(
    "text",
    [
        "none",
        documents.BEGIN,
        f"{documents.END}{documents.BEGIN}",
        f"{documents.BEGIN * 2}{documents.END}",
    ],
)
def test_report_refuses_a_readme_without_markers(text):
    with pytest.raises(ValueError, match="README"):
        documents.between_markers(text, "table")


def test_tables_show_losses():
    case = suites.core()[0]
    cells = {case.key: timed_cell(case, rnnfast=(2, 2, 2), torch_rnn=(4, 4, 4), jax_scan=(1, 1, 1))}
    (line,) = [line for line in markdown.all_cells(cells).splitlines() if line.startswith("| T100")]
    assert "| 2.00 |" in line
    assert "**0.50**" in line
    assert "(jax-scan)" in line
    short = markdown.ten_rows({"cells": cells}).splitlines()[2:]
    assert len(short) == 10 and "| 2.00 | **0.50** |" in short[0] and short[1].count("| - ") == 6
    assert markdown.ratio(0.9996) == "**0.9996**"


def test_losses_come_first():
    cells = {
        "won": timed_cell(SMALL, rnnfast=(1, 1, 1), torch_rnn=(3, 4, 5)),
        "within the spread": timed_cell(SMALL, rnnfast=(1, 2, 3), torch_rnn=(1, 1.5, 2)),
        "lost": timed_cell(SMALL, rnnfast=(1.9, 2, 2.1), torch_rnn=(0.9, 1, 1.1)),
        "lost more": timed_cell(SMALL, rnnfast=(3.9, 4, 4.1), torch_rnn=(0.9, 1, 1.1)),
        "wrong": {"case": SMALL.to_dict(), "results": {"rnnfast": {"status": "wrong", "reason": "off"}}},
    }
    assert list(losses.ordered(cells)) == ["wrong", "lost more", "lost", "within the spread", "won"]
    (line,) = losses.shares(cells)
    assert "ahead in 1 of 4 cells (25%), behind beyond the spread in 2" in line
    assert "forward 0.78, training -" in line  # (4 * 0.75 / 2 / 4) ** (1 / 4)


def test_a_table_of_named_backends_shows_the_fastest():
    case = replace(suites.core()[0], device="cuda", tf32=True)
    cell = timed_cell(case, rnnfast_cuda=(1, 1, 1), rnnfast_triton=(3, 3, 3), torch_rnn=(2, 2, 2))
    assert table.ours(cell) == "rnnfast-cuda"
    assert table.row(case.key, cell)[5] == "2.00"
    assert table.ratio(cell, table.TORCH, "rnnfast-triton") == pytest.approx(2 / 3)


@pytest.mark.slow
def test_summary_and_pictures_of_a_gpu_run(tmp_path):
    cases = [case for case in suites.select("gpu") if case.hidden_size in (256, 512)]
    assert {case.dtype for case in cases} == {"float32", "bfloat16"}
    cells = {}
    for case in cases:
        cells[case.key] = {**timed_cell(case, rnnfast=(1, 2, 3), torch_rnn=(4, 4, 4)), "bound_seconds": 1.0}
    gpu = gpu_roofline.Gpu({"float32": 5e13, "bfloat16": 8e14}, 4e12, 1e-7, None, 400_000).to_dict()
    here = {**environment.describe(), "gpu": "a GPU"}
    run = {"environment": here, "roofline": {"gpu": gpu}, "memory": {}, "cells": cells}
    text = summary(run, cells, with_targets=False)
    assert "copies 4000 GB/s" in text
    assert "not measured: no nvcc" in text
    pytest.importorskip("matplotlib")
    (tmp_path / "gpu.json").write_text(json.dumps(run))
    assert report.main([str(tmp_path / "gpu.json"), "--pictures"]) == 0
    names = {path.name for path in tmp_path.glob("*.png")}
    kinds = ("float32", "bfloat16")
    assert names == {f"gpu-{kind}-{what}.png" for kind in kinds for what in ("ratio", "hidden", "scaling")}


def test_targets_say_not_measured_rather_than_met():
    empty = targets.check({"cells": {}, "memory": {}})
    assert {row[-1] for row in empty} == {"not measured"}
    case = suites.core()[0]  # T100 B1 H64 forward: 10x
    for torchs, verdict in ((11.0, "met"), (9.0, "MISSED")):
        cells = {case.key: timed_cell(case, rnnfast=(1, 1, 1), torch_rnn=(torchs,) * 3)}
        assert targets.check({"cells": cells, "memory": {}})[0][-1] == verdict


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.12"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_numbers(value, text):
    assert table.number(value) == text


def test_report_refuses_files_of_two_machines(tmp_path, capsys):
    for name in ("a", "b"):
        run = {"environment": {"cpu": name, "gpu": None}, "roofline": {}, "memory": {}, "cells": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "of another machine" in capsys.readouterr().err


@pytest.mark.parametrize("command", [report, compare, crossover])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.json", "cannot read missing.json: No such file"),
        (str(documents.README), "is no JSON file"),
        (str(documents.RESULTS / "zen4" / "calls.json"), "it has no cells"),
    ],
)
def test_files_that_are_no_results_are_refused(command, source, message, capsys):
    with pytest.raises(SystemExit) as exit:
        command.main([source, source])
    assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(environment.commit() == "unknown", reason="no checkout")
def test_compare_says_what_git_says(capsys):
    with pytest.raises(SystemExit):
        compare.main(["HEAD:missing.json", "HEAD:missing.json"])
    assert "missing.json" in capsys.readouterr().err


RUNS = results.load(documents.RESULTS)


@pytest.mark.parametrize(
    ("machine", "name"),
    [(machine, name) for machine, files in RUNS.items() for name, run in files.items() if "cells" in run],
)
def test_every_result_is_a_cell_of_its_suite(machine, name):
    """Of the present schema, whatever wrote it."""
    known = {case.key: case for case in suites.select(name)}
    cells = RUNS[machine][name]["cells"]
    assert cells and cells.keys() <= known.keys()
    for key, cell in cells.items():
        assert cell["case"] == known[key].to_dict() and cell["flops"] == known[key].flops
        for result in cell["results"].values():
            assert result["status"] != "timed" or result["q1"] <= result["median"] <= result["q3"]


def test_results_readme_is_up_to_date():
    path = documents.RESULTS / "README.md"
    assert path.read_text() == results.document(documents.RESULTS), "run: python -m bench report --all"


def test_readme_is_up_to_date():
    text = documents.README.read_text()
    block = documents.readme_block(RUNS[results.SHOWN_CPU]["core"])
    assert text == documents.between_markers(text, block), "run: python -m bench report --all"
