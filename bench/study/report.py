"""What a climb is shown as: tables, a rung's page, the staircase, the generated parts of the guide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

from bench.study.rung import Rung

GUIDE = Path(__file__).parent / "README.md"
PICTURE = GUIDE.parent / "staircase.png"
FIGURES = GUIDE.parent / "figures.json"
BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"
HEAD = (
    "rung",
    "idea",
    "us a step",
    "quartiles",
    "over the one before",
    "predicted",
    "most of it, by the model",
)


def shapes(run: dict) -> list[str]:
    """The shapes that were timed, in order."""
    return list(dict.fromkeys(shape for entry in run["rungs"].values() for shape in entry["times"]))


def table(run: dict, rungs: tuple[Rung, ...], shape: str) -> list[tuple[str, ...]]:
    """A row for every rung that was timed on a shape."""
    rows, last = [], ""
    for rung in rungs:
        time = run["rungs"][rung.label]["times"].get(shape)
        if time is None:
            continue
        before = run["rungs"].get(rung.before or last, {"times": {}})["times"].get(shape)
        predicted = sum(time["terms"].values())
        name, most = max(time["terms"].items(), key=lambda item: item[1])
        rows.append(
            (
                rung.label,
                rung.idea,
                figure(time["us"]),
                f"{figure(time['q1'])} to {figure(time['q3'])}",
                "" if before is None else f"{before['us'] / time['us']:.2f}",
                f"{figure(predicted)} ({predicted / time['us']:.2f})",
                f"{name}, {most / predicted:.0%}",
            )
        )
        last = rung.label
    return rows


def figure(us: float) -> str:
    return f"{us:.3f}" if us < 1 else f"{us:.2f}" if us < 100 else f"{us:.0f}"


def text(run: dict, rungs: tuple[Rung, ...]) -> str:
    """Tables for a terminal."""
    lines = []
    for shape in shapes(run):
        rows = [HEAD, *table(run, rungs, shape)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
        lines += ["", shape]
        lines += [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    return "\n".join([*lines, *[f"not timed: rung {name}: {why}" for name, why in untimed(run)]])


def untimed(run: dict) -> list[tuple[str, str]]:
    """The rungs without a time, and why."""
    return [
        (label, f"{entry['state']}{'' if entry['why'] is None else ', ' + entry['why'].splitlines()[0]}")
        for label, entry in run["rungs"].items()
        if not entry["times"]
    ]


def page(rung: Rung, entry: dict) -> str:
    """What changed, what was predicted from which quantity, what came out."""
    lines = [
        rung.page(),
        "",
        f"State here: {entry['state']}{'' if not entry['why'] else ': ' + entry['why']}",
    ]
    for shape, time in entry["times"].items():
        parts = ", ".join(f"{name} {figure(us)}" for name, us in time["terms"].items())
        total = sum(time["terms"].values())
        lines += ["", f"{shape}", f"  predicted {figure(total)} us a step: {parts}"]
        lines += [f"  measured  {figure(time['us'])} ({figure(time['q1'])} to {figure(time['q3'])})"]
    lines += ["", f"What came out: {rung.outcome}", f"It turns into: {rung.becomes}", "", rung.exercise()]
    return "\n".join(lines)


def draw(run: dict, path: Path, title: Optional[str] = None) -> None:
    """The staircase: us a step of every rung, a line a shape, the predictions beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure_, axis = plt.subplots(figsize=(8, 4.5))
    labels = [label for label, entry in run["rungs"].items() if entry["times"]]
    for colour, shape in enumerate(shapes(run)):
        timed = [(labels.index(n), run["rungs"][n]["times"].get(shape)) for n in labels]
        points = [(x, time["us"], sum(time["terms"].values())) for x, time in timed if time]
        x, us, predicted = zip(*points, strict=True)
        axis.step(x, us, where="mid", color=f"C{colour}", label=shape)
        axis.plot(x, us, "o", color=f"C{colour}", ms=4)
        axis.plot(x, predicted, "x", color=f"C{colour}", label="predicted" if colour == 0 else None)
    axis.set_yscale("log")
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlabel("rung")
    axis.set_ylabel("us a step")
    axis.set_title(title or run["environment"]["cpu"], fontsize=8)
    axis.legend(fontsize=7)
    figure_.tight_layout()
    figure_.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure_)


def block(run: dict, rungs: tuple[Rung, ...]) -> str:
    """The generated part of the guide."""
    here = run["environment"]
    parts = [f"![us a step, by rung]({PICTURE.name})"]
    for shape in shapes(run):
        rows = table(run, rungs, shape)
        parts.append(
            "\n".join(
                [f"**{shape}**", "", _row(HEAD), _row(["---"] * len(HEAD))]
                + [_row([f"[{row[0]}](rungs/{run['rungs'][row[0]]['file']})", *row[1:]]) for row in rows]
            )
        )
    missing = [f"- rung {label} was not timed: {why}" for label, why in untimed(run)]
    parts += ["\n".join(missing)] if missing else []
    quantities = "; ".join(f"{name}: {value:.3g}" for name, value in run["machine"].items())
    parts.append(f"Quantities of the machine, measured in the same run. {quantities}.")
    versions = here["versions"]
    parts.append(f"{here['cpu']}, {here['date'][:10]}, commit {here['commit']}, torch {versions['torch']}.")
    return "\n\n".join(parts)


def _row(cells: object) -> str:
    return "| " + " | ".join(cells) + " |"  # type: ignore[arg-type]


def write_guide(run: dict, rungs: tuple[Rung, ...]) -> None:
    """Writes the figures, the picture and the guide's tables."""
    FIGURES.write_text(json.dumps(run, indent=1) + "\n")
    draw(run, PICTURE)
    GUIDE.write_text(between(GUIDE.read_text(), block(run, rungs)))


def between(guide: str, generated: str) -> str:
    """The guide with its generated part replaced."""
    head, rest = guide.split(BEGIN)
    return f"{head}{BEGIN}\n\n{generated}\n\n{END}{rest.split(END)[1]}"
