"""README, CONTRIBUTING and the other documents: their examples run, and what they name exists."""

import re
from pathlib import Path

import pytest
import torch

import rnnfast
from rnnfast import reference, testing

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md", "bench/README.md")
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
