"""README, CONTRIBUTING and the other documents: their examples run, and what they name exists."""

import re
from pathlib import Path

import pytest
import torch

import rnnfast
from rnnfast import reference, testing

ROOT = Path(__file__).parent.parent
NAMES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md", "tests/README.md", "bench/README.md"),
    "bench/study/GPU.md",
)
DOCUMENTS = [ROOT / name for name in NAMES]


def named(document):
    return document.relative_to(ROOT).as_posix()


def examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_equivalent_torch_code():
    case = testing.make((5, 3, 4, 6), torch.float64)
    x, h0, W_ih, W_hh, b_ih, b_hh = case.args
    names = {"torch": torch, "x": x, "h0": h0, "W_ih": W_ih, "W_hh": W_hh, "b_ih": b_ih, "b_hh": b_hh}
    exec(examples()[0], names)
    output, h_n = rnnfast.functional.rnn_sequence(*case.args)
    torch.testing.assert_close(torch.stack(names["output"]), output)
    torch.testing.assert_close(names["h"], h_n)


def test_example_of_use():
    names: dict = {}
    exec(examples()[1], names)
    assert names["output"].shape == (32, 35, 256)
    assert isinstance(names["model"]["encoder"], rnnfast.RNN)


@pytest.mark.parametrize("name", ["masked", "Dale", "low rank"])
def test_constrained_weights(name):
    """The README's parametrizations hold, have gradients, and compute what a loop over steps does."""
    names: dict = {"torch": torch, "rnnfast": rnnfast}
    exec(examples()[2], names)
    constraint = names["constraints"][name]
    rnn = rnnfast.CTRNN(3, 50, alpha=0.2)
    torch.nn.utils.parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    x, resets = names["x"], names["episode_starts"]
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output, _ = rnn(x, resets=resets)
        output.square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in rnn.parameters())
        optimizer.step()
    weight = rnn.weight_hh_l0.detach()
    if name == "masked":
        assert not weight[constraint.mask == 0].any() and weight.any()
    elif name == "Dale":
        assert (weight[:, :40] >= 0).all() and (weight[:, 40:] <= 0).all() and weight.any()
    else:
        assert torch.linalg.matrix_rank(weight) == 2
    h0 = torch.zeros(8, 50)
    given = rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0
    expected = reference.rnn_sequence(x, h0, *given, cell="ctrnn", alpha=0.2, resets=resets)[0]
    torch.testing.assert_close(rnn(x, resets=resets)[0], expected)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, heading = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_functions_exist(document):
    """Every `file:name` is a function, class or value that the file defines."""
    for file, name in re.findall(r"`((?:rnnfast|csrc)/[\w./]+):(\w+)`", document.read_text()):
        defined = rf"(^|[\w>*&] ){name}(\(|:| =| \{{)"
        assert re.search(defined, (ROOT / file).read_text(), re.MULTILINE), f"{file}:{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_make_targets_exist(document):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    for target in re.findall(r"(?:`|^)make ([\w-]+)", document.read_text(), re.MULTILINE):
        assert target in targets, f"make {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_paths_exist(document):
    folders = "rnnfast|csrc|tests|bench"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*\w)`", document.read_text()):
        assert (ROOT / path).exists() or "NAME" in path, path


# ---- csrc/README.md --------------------------------------------------------------------------------

CSRC = ROOT / "csrc"


def tables_of_csrc():
    """The rows of the tables under a heading, as lists of cells."""
    sections = re.split(r"^## ", (CSRC / "README.md").read_text(), flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: [
            [cell.strip() for cell in line.strip("| ").split(" | ")]
            for line in section.splitlines()
            if line.startswith("| ")
        ][1:]
        for section in sections
    }


def test_the_reading_order_names_every_file_of_csrc_once():
    tables = tables_of_csrc()
    read = [*tables["Reading order: CPU"], *tables["Reading order: CUDA"]]
    named_files = [re.fullmatch(r"\[`(.+)`\]\((.+)\)", row[0]).groups() for row in read]
    assert all(label == target for label, target in named_files)
    files = {
        path.relative_to(CSRC).as_posix()
        for path in CSRC.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert sorted(label for label, _ in named_files) == sorted(files)
    assert all(len(row) == 2 and len(row[1]) > 10 for row in read)


def test_the_glossary_of_csrc_names_where_a_word_is_used():
    for words, meaning, where in tables_of_csrc()["Words"]:
        files = re.findall(r"`(.+?)`", where)
        assert files and meaning, words
        for file in files:
            text = (CSRC / file).read_text().lower()
            assert any(word in text for word in words.split(", ")), (words, file)


def test_what_an_engine_must_have_is_what_the_engines_have():
    members = [
        name
        for row in tables_of_csrc()["What an Engine must have"]
        for name in re.findall(r"`(\w+)[^`]*`", row[0])
    ]
    assert {"kTile", "multiply", "publish", "update"} <= set(members)
    for file in ("fma.cuh", "matrix.cuh"):
        text = (CSRC / "cuda" / "resident" / file).read_text()
        missing = [name for name in members if not re.search(rf"\b{name}\b", text)]
        assert not missing, (file, missing)
    # What the kernels use of an engine is in the table.
    kernels = "".join((CSRC / "cuda" / "resident" / f).read_text() for f in ("resident.cuh", "rows.cuh"))
    used = set(re.findall(r"\b[Ee]ngine(?:::|\.)(?:template )?(\w+)", kernels))
    assert used <= set(members), used - set(members)
