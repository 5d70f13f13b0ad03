"""Result files as tables in Markdown and as pictures.

    python -m bench report FILE [FILE ...]    prints the cells of all files as one table
    python -m bench report --all              writes bench/results/README.md and the README's table

With --pictures it draws, too, into the folder of the first file: heat maps over B x H, time against H and T,
memory. Files that are shown together have to be of one machine.
"""

from __future__ import annotations

from pathlib import Path

from bench import command
from bench.report import documents, markdown, results, store


def main(arguments: list[str]) -> int:
    p = command.parser("report", __doc__)
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="of `python -m bench run`")
    p.add_argument("--all", action="store_true", help="the documents, from all that is in bench/results")
    p.add_argument("--pictures", action="store_true", help="draw the files' cells (needs matplotlib)")
    options = p.parse_args(arguments)
    if bool(options.files) == options.all:
        p.error("name files, or --all")
    if options.all:
        try:
            write_documents()
        except ValueError as error:
            p.error(str(error))
        return 0
    try:
        runs = [store.read_cells(path) for path in options.files]
    except ValueError as error:
        p.error(str(error))
    for path, run in zip(options.files, runs, strict=True):
        if any(run["environment"][key] != runs[0]["environment"][key] for key in ("cpu", "gpu")):
            p.error(f"{path} is of another machine than {options.files[0]}: one table can't show both")
    cells = {key: cell for run in runs for key, cell in run["cells"].items()}
    print(markdown.all_cells(cells))
    for run in runs:
        print(f"\n{markdown.origin(run)} {markdown.LOSS}")
    if options.pictures:
        from bench.report import pictures  # matplotlib is an optional extra

        memory = {name: found for run in runs for name, found in run["memory"].items()}
        for path in pictures.draw_all(cells, memory, runs[0], options.files[0].parent):
            print(path)
    return 0


def write_documents() -> None:
    core = store.read(documents.RESULTS / results.SHOWN_CPU / "core.json")
    block = documents.readme_block(core)
    documents.README.write_text(documents.between_markers(documents.README.read_text(), block))
    (documents.RESULTS / "README.md").write_text(results.document(documents.RESULTS))
    for path in (documents.README, documents.RESULTS / "README.md"):
        print(path.relative_to(documents.ROOT))
