"""The documents that results are shown in: where they are, and what the README's marked part says."""

from __future__ import annotations

from pathlib import Path

from bench.report import markdown

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def between_markers(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced.

    Raises ValueError unless each marker is there once, and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README needs one {BEGIN} and after it one {END}")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def readme_block(run: dict) -> str:
    """The README's table, of one file of `core`."""
    here = run["environment"]
    note = (
        f"{here['cpu']}, 2 threads, float32, medians of alternating runs; commit {markdown.commits(run)}, "
        f"{here['date'][:10]}, torch {here['versions']['torch']}. Ratios are the others' time over ours; the "
        "best other is ONNX Runtime, OpenVINO, JAX or a loop in torch. "
        f"{markdown.LOSS} All figures: [bench/results](bench/results/README.md)."
    )
    return f"{markdown.ten_rows(run)}\n\n{note}"
