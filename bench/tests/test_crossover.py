"""`python -m bench crossover`: where `auto` may take a GPU backend."""

import json
import re
from dataclasses import replace

from bench.cases.case import Case
from bench.cases.precision import KINDS
from bench.report import crossover


def measured(batch, hidden, ours, theirs, kind="bfloat16", steps=512, **changed):
    dtype, tf32 = KINDS[kind]
    case = Case(steps, batch, hidden, hidden, kind="step" if steps == 1 else "sequence", device="cuda")
    case = replace(case, dtype=dtype, tf32=tf32, **changed)
    results = {"rnnfast-cuda": {"median": ours}, "torch-rnn": {"median": theirs}}
    return {"case": case.to_dict(), "results": results}


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
        files[-1].write_text(json.dumps({"environment": environment, "cells": cells}))
    monkeypatch.setattr(crossover, "TABLE", tmp_path / "crossovers.py")
    crossover.main([*map(str, files), "--write"])
    found: dict = {}
    exec((tmp_path / "crossovers.py").read_text(), found)
    assert "- a.json: a, commit c\n- b.json: b, commit c\n" in found["__doc__"]
    assert found["CUDA"] == (("sequence", False, "bfloat16", 1, 64, 1, 512),)


def test_crossover_reads_plain_cells_alone():
    """Longer sequences of a batch that was not measured are no objection, a loss is one."""
    cells = [
        measured(1, 64, 1, 2, steps=100),
        measured(16, 64, 1, 2, steps=100),
        measured(16, 64, 3, 2, steps=100, layout="packed"),
        measured(16, 64, 3, 2, steps=100, nonlinearity="relu"),
        measured(16, 64, 3, 2, steps=100, input_size=28),
        measured(64, 64, 3, 2, steps=100),
        measured(1, 128, 1, 2, "float32", steps=100),  # with TF32 it was not measured
        measured(1, 64, 1, 2),
        measured(64, 64, 1, 2),
    ]
    assert crossover.rows(crossover.cells({"cells": dict(enumerate(cells))}), "cuda") == [
        ("sequence", False, "bfloat16", 1, 64, 16, 100),
        ("sequence", False, "bfloat16", 1, 64, 64, 512),
    ]


def test_the_table_is_what_was_measured(tmp_path, monkeypatch):
    before = crossover.TABLE.read_text()
    sources = re.findall(r"^- (\S+\.json):", before, re.MULTILINE)
    assert len(sources) == 3
    monkeypatch.setattr(crossover, "TABLE", tmp_path / "crossovers.py")
    crossover.main([*(str(crossover.ROOT / name) for name in sources), "--write"])
    assert (tmp_path / "crossovers.py").read_text() == before
