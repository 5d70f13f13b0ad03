"""The table that `bench.gpu` prints: us per step of every contender, and ours over cuDNN.

`python -m bench.gpu_table bench/results/gpu-h200-timing.json --write README.md` puts a short one between the
markers of a document.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.store import read

THEIRS = "torch-rnn"


def table(cells: dict[str, dict]) -> str:
    """Markdown, a row for each cell that was timed."""
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell["results"]))
    ours = [name for name in names if name != THEIRS]
    lines = [
        "| " + " | ".join(["us per step", *names, "best of ours, times as fast as nn.RNN"]) + " |",
        "|---|" + "---:|" * (len(names) + 1),
    ]
    for key, cell in cells.items():
        seconds = {name: result.get("median") for name, result in cell["results"].items()}
        steps = cell["case"]["steps"]
        figures = [
            f"{seconds[name] / steps * 1e6:.3g}"
            if seconds.get(name)
            else cell["results"].get(name, {}).get("status", "-")
            for name in names
        ]
        best = min((seconds[name] for name in ours if seconds.get(name)), default=None)
        ratio = f"{seconds[THEIRS] / best:.2f}" if best and seconds.get(THEIRS) else "-"
        lines.append("| " + " | ".join([key, *figures, ratio]) + " |")
    return "\n".join(lines)


KINDS = {"bfloat16": "bfloat16", "float16": "float16", "tf32": "float32, TF32 allowed", "float32": "float32"}
SHOWN_STEPS, SHOWN_BATCHES = 512, (1, 16, 64, 256)
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"


def short_table(data: dict) -> str:
    """Markdown: how many times as fast as nn.RNN the cuda backend is, forward and training."""
    ratios: dict[tuple[int, int], dict[tuple[str, bool], str]] = {}
    for cell in data["timing"].values():
        case, results = cell["case"], cell["results"]
        if case["steps"] == SHOWN_STEPS and case["batch"] in SHOWN_BATCHES:
            ours, theirs = (results.get(name, {}).get("median") for name in ("rnnfast-cuda", THEIRS))
            ratio = theirs / ours if ours and theirs else None
            text = "-" if ratio is None else f"{ratio:.2g}" if ratio >= 1 else f"**{ratio:.2f}**"
            row = ratios.setdefault((case["hidden_size"], case["batch"]), {})
            row[cell["kind"], case["training"]] = text
    lines = ["| I = H | B | " + " | ".join(KINDS.values()) + " |", "|---:|---:|" + "---:|" * len(KINDS)]
    for (hidden, batch), row in sorted(ratios.items()):
        pairs = [f"{row.get((kind, False), '-')} / {row.get((kind, True), '-')}" for kind in KINDS]
        lines.append(f"| {hidden} | {batch} | " + " | ".join(pairs) + " |")
    here = data["environment"]
    versions = here["versions"]
    lines += [
        "",
        f"{here['gpu']}, driver {here['driver']}, torch {versions['torch']}, cuDNN {here['cudnn']};"
        f" T = {SHOWN_STEPS}, forward / training, medians; commit {here['commit']}, {here['date'][:10]}."
        " A ratio under 1 (bold) is a loss.",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document, with markers in it")
    options = parser.parse_args(arguments)
    text = short_table(read(options.json))
    if options.write is None:
        print(text)
        return 0
    document = options.write.read_text()
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
