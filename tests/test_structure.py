"""What the modules of rnnfast import: those below them, at the head of the file, and in no circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rnnfast"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}

# From the bottom to the top. A module imports from the lines before its own, and from its own folder.
ORDER = """
version native context interchange crossovers reference layer
call
arguments attributes
kernels
backends
dispatch
derivative onnx
ops
flops functional
modules cell
continuous
config convert
inspect testing
""".strip().splitlines()
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line.split()}


def imports(name: str, nodes: list[ast.AST]) -> set[str]:
    """The modules of the package that these nodes import, without its name."""
    folder, found = name.split(".")[:-1], set()
    for node in nodes:
        if isinstance(node, ast.Import):
            named = [alias.name.split(".") for alias in node.names]
            found |= {".".join(parts[1:]) for parts in named if parts[0] == "rnnfast" and parts[1:]}
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level == 0 and module[0] != "rnnfast":
                continue
            base = folder[: len(folder) + 1 - node.level] + module if node.level else module[1:]
            found |= {".".join([*base, alias.name]) for alias in node.names} | {".".join(base)}
    return found & FILES.keys()


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def test_every_module_has_a_place():
    assert {name.split(".")[0] for name in FILES} == RANK.keys()


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards(name):
    top = name.split(".")[0]
    above = {other for other in RANK if other != top and RANK[other] >= RANK[top]}
    found = imports(name, list(ast.walk(tree(name))))
    wrong = {other for other in found if other.split(".")[0] in above}
    assert not wrong, f"rnnfast/{name.replace('.', '/')}.py imports {sorted(wrong)}"


def test_no_circles():
    graph = {name: imports(name, list(ast.walk(tree(name)))) for name in FILES}
    assert graph["modules"] >= {"functional", "call"} and "backends.base" in graph["backends.cpu"]
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("name", FILES)
def test_imports_are_at_the_head(name):
    """But for Triton and the kernels in it, which are imported where they are run: it is optional."""
    for function in ast.walk(tree(name)):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in nodes:
            found = node.names[0].name if isinstance(node, ast.Import) else node.module or ""
            assert found.split(".")[0] in ("triton", "kernels"), f"{name}.{function.name} imports {found}"
