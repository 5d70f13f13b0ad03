"""The bench as one tool: its commands, what its modules import, who looks at a clock."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from bench import __main__ as tool
from bench.cases.suites import SUITES

ROOT = Path(__file__).resolve().parents[2]
BENCH = sorted((ROOT / "bench").rglob("*.py"))
# Who may look at a clock beside the timer, which says why in its head: compilers' first calls, and training.
CLOCKS = ("bench/cases/timing.py", "bench/peers/", "bench/lm/", "bench/neuro/train.py", "bench/tests/")


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, those of a package that it names among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_modules_import_in_one_direction():
    modules = {module(path): path for path in BENCH}
    # A package is no dependency of its own modules: none of them does anything but gather names.
    graph = {
        name: {other for other in imports(path) & modules.keys() if not name.startswith(f"{other}.")}
        for name, path in modules.items()
    }
    assert graph["bench.suites.run"] >= {"bench.cases.suites", "bench.suites.memory"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_folders_import_in_one_direction():
    """cases, peers, machine, report, suites, gpu: each knows those before it alone."""
    order = ["cases", "peers", "machine", "report", "suites", "gpu"]
    for path in BENCH:
        folder = path.relative_to(ROOT).parts[1]
        if folder in order:
            above = order[order.index(folder) + 1 :]
            wrong = {name for name in imports(path) if name.startswith(tuple(f"bench.{n}" for n in above))}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


APART = [("bench", "tests"), ("tests", "bench"), ("rnnfast", "bench"), ("rnnfast", "tests")]
SHARED = "tests.cuda_on_cpu"  # not a test but a machine, on which the study's GPU rungs run as well


@pytest.mark.parametrize(("importer", "imported"), APART)
def test_bench_tests_and_package_stay_apart(importer, imported):
    for path in sorted((ROOT / importer).rglob("*.py")):
        others = {name for name in imports(path) if name == imported or name.startswith(f"{imported}.")}
        others -= {name for name in others if f"{name}.".startswith(f"{SHARED}.")}
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


def test_one_timer():
    for path in BENCH:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        words |= {node.id for node in nodes if isinstance(node, ast.Name)}
        name = path.relative_to(ROOT).as_posix()
        clocks = words & {"perf_counter", "monotonic", "timeit", "Event"}
        assert name.startswith(CLOCKS) or not clocks, f"{name} times on its own: {clocks}"


@pytest.mark.parametrize("name", tool.COMMANDS)
def test_every_command_helps(name, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main([name, "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m bench {name} ")


def test_the_readme_names_every_command_suite_and_folder():
    text = (ROOT / "bench" / "README.md").read_text()
    folders = {f"{path.name}/" for path in (ROOT / "bench").iterdir() if (path / "__init__.py").exists()}
    for name in {*tool.COMMANDS, *SUITES, *folders} - {"tests/"}:
        assert f"`{name}`" in text, name


def test_every_command_is_a_function():
    for where, line in tool.COMMANDS.values():
        name, function = where.split(":")
        assert callable(getattr(import_module(name), function)) and line


def test_the_index_imports_nothing():
    """It lists the commands where nothing is installed: no site-packages, so no torch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-m", "bench"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(tool.COMMANDS)


def test_an_unknown_command(capsys):
    assert tool.main(["abacus"]) == 2
    assert "there is no command 'abacus'" in capsys.readouterr().err
