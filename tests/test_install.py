"""What depends on the installation or on the environment, tried in a fresh process."""

import os
import subprocess
import sys

import pytest

WITHOUT_EXTENSION = """
import sys
sys.modules["rnnfast._cpu"] = None  # importing it raises ImportError, as where no compiler was found
"""

TRAIN = """
import torch, rnnfast
torch.manual_seed(0)
ours, theirs = rnnfast.RNN(4, 8, 2, bidirectional=True), torch.nn.RNN(4, 8, 2, bidirectional=True)
theirs.load_state_dict(ours.state_dict())
x = torch.randn(5, 3, 4)
for backend in ("auto", "eager", "aten"):
    ours.backend = backend
    ours.zero_grad(), theirs.zero_grad()
    for model in (ours, theirs):
        output, h_n = model(x)
        (output.sum() + h_n.sum()).backward()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
print(rnnfast.show_config())
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_package_works_without_its_native_extension():
    result = run(WITHOUT_EXTENSION + TRAIN)
    assert result.returncode == 0, result.stderr
    assert "eager    available" in result.stdout
    assert "cpu      not available: the native extension is not built" in result.stdout


@pytest.mark.slow
def test_backend_that_is_missing_raises_with_the_reason():
    result = run(WITHOUT_EXTENSION + "import rnnfast; rnnfast.RNN(4, 8, backend='cpu')")
    message = "RuntimeError: backend 'cpu' is not available: the native extension is not built"
    assert message in result.stderr


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", "aten"])
def test_environment_variable_stands_for_auto(name):
    code = """
import torch, rnnfast
x = torch.zeros(3, 2, 4)
for backend in ("auto", "eager"):
    print(rnnfast.explain(rnnfast.RNN(4, 8, backend=backend), x).backend)
"""
    result = run(code, RNNFAST_BACKEND=name)
    assert result.stdout.split() == [name, "eager"], result.stderr


@pytest.mark.slow
def test_environment_variable_with_an_unknown_name():
    result = run("import rnnfast; rnnfast.RNN(4, 8)", RNNFAST_BACKEND="fast")
    assert "ValueError: Unknown backend 'fast'" in result.stderr


@pytest.mark.slow
def test_importing_loads_no_compiler():
    code = "import sys, torch; before = set(sys.modules); import rnnfast; print(*(set(sys.modules) - before))"
    result = run(code)
    assert "rnnfast.ops" in result.stdout.split(), result.stderr
    assert not [
        name for name in result.stdout.split() if name.startswith(("torch._dynamo", "torch._inductor"))
    ]
