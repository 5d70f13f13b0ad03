"""The speeds that the project has set itself, and whether a run meets them.

Ratios are torch.nn.RNN's time over ours, float32, 2 threads, medians. A target without a measurement is
"not measured", which is not "met".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from bench.cases.suites import CORE, core
from bench.report.table import OURS, TORCH, number, percent, ratio

# Forward at least, forward + backward at least, in the order of CORE.
AT_LEAST = [
    (10, 15),  # T100 B1 H64
    (3, 6),  # T100 B1 H256
    (1.6, 4),  # T100 B1 H512
    (1.2, 2),  # T100 B1 H1024
    (2.5, 3),  # T100 B8 H256
    (2, 2.5),  # T100 B32 H128
    (1.7, 2),  # T100 B32 H256
    (1.6, 1.5),  # T100 B32 H512
    (1.35, 1.3),  # T100 B64 H1024
    (2.5, 3),  # T35 B32 I28 H256
]
OF_FMA_PEAK = 0.85
BEHIND_ATEN = 1.03
OF_TORCH_MEMORY = 0.5

Row = tuple[str, str, str, str]  # what, wanted, measured, verdict


def check(data: dict) -> list[Row]:
    return [*_ratios(data), *_steps(data), *_peak(data), *_aten(data), *_memory(data)]


def _verdict(met: Optional[bool]) -> str:
    return {True: "met", False: "MISSED", None: "not measured"}[met]


def _ratios(data: dict) -> list[Row]:
    rows = []
    for shape, wanted in zip(CORE, AT_LEAST, strict=True):
        for training, least in zip((False, True), wanted, strict=True):
            case = replace(shape, training=training)
            got = ratio(data["cells"].get(case.key, _NOTHING), TORCH)
            met = None if got is None else got >= least
            rows.append((case.key, f">= {least:g}x torch", number(got, 3, "x"), _verdict(met)))
    return rows


def _steps(data: dict) -> list[Row]:
    rows = []
    for case in core():
        if case.kind == "step":
            got = ratio(data["cells"].get(case.key, _NOTHING), TORCH)
            rows.append(
                (case.key, ">= 1x torch", number(got, 3, "x"), _verdict(None if got is None else got >= 1))
            )
    return rows


def _peak(data: dict) -> list[Row]:
    rows = []
    for key in [case.key for case in CORE if case.batch >= 8]:
        measured = data["cells"].get(key, _NOTHING).get("recurrence")
        got = measured and measured["fraction_of_peak"]
        met = None if got is None else got >= OF_FMA_PEAK
        rows.append(
            (f"{key}, recurrence alone", f">= {OF_FMA_PEAK:.0%} of FMA peak", percent(got), _verdict(met))
        )
    return rows


def _aten(data: dict) -> list[Row]:
    """One row for the cell in which auto lies farthest behind the aten backend."""
    behind = {key: ratio(cell, OURS, "rnnfast-aten") for key, cell in data["cells"].items()}
    measured = {key: value for key, value in behind.items() if value is not None}
    if not measured:
        return [("auto against aten", "", "-", _verdict(None))]
    worst = max(measured, key=lambda key: measured[key])
    met = measured[worst] <= BEHIND_ATEN
    what = f"auto against aten, worst of {len(measured)} cells: {worst}"
    return [(what, f"<= {BEHIND_ATEN:g}x its time", number(measured[worst], 3, "x"), _verdict(met))]


def _memory(data: dict) -> list[Row]:
    rows = []
    for kind in ("live", "resident"):
        ours, torchs = (data["memory"].get(name, {}).get(kind) for name in (OURS, TORCH))
        share = ours / torchs if ours and torchs else None
        what = f"peak {kind} memory, T1000 B32 H256 training"
        wanted = f"<= {OF_TORCH_MEMORY:.0%} of torch's"
        rows.append(
            (what, wanted, percent(share), _verdict(None if share is None else share <= OF_TORCH_MEMORY))
        )
    return rows


_NOTHING: dict = {"results": {}}
