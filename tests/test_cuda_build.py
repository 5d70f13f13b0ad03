"""What nvcc makes of csrc/cuda, without a GPU: that it compiles, and what each kernel takes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from rnnfast.backends import cuda
from rnnfast.inspect import cuda as inspect
from rnnfast.inspect.report import Options
from tests import cuda_on_cpu

ROOT = Path(__file__).parents[1]


def load_helper():
    spec = importlib.util.spec_from_file_location("nvcc", ROOT / "csrc" / "cuda" / "nvcc.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


nvcc = load_helper()
needs_nvcc = pytest.mark.skipif(nvcc.find() is None, reason="there is no nvcc")


def whole_build(test):
    """Marks a test of all kernels for all architectures: minutes of processor time for nvcc."""
    return pytest.mark.thorough(needs_nvcc(test))


# Registers that a thread may take: a multiprocessor has 65536, and no thread more than 255. The first pattern
# that matches a kernel's name counts.
BUDGET = {
    r"resident_\w+<MatrixEngine16<\w+, 256, 8>": 255,  # 256 threads, one block a multiprocessor
    r"resident_\w+<MatrixEngine16<\w+, 192, 6>": 255,  # 192 threads, one block
    r"resident_\w+<MatrixEngine16<\w+, 128, 4>": 248,  # 128 threads, two blocks
    r"resident_\w+<FmaEngine<256, 1, ": 255,  # 256 threads, one block
    r"resident_\w+<FmaEngine<256, 2, ": 128,  # 512 threads, one block
    r"resident_\w+<FmaEngine<192, 1, ": 255,  # 192 threads, one block
    r"resident_\w+<FmaEngine<192, 2, ": 168,  # 384 threads, one block
    r"resident_\w+<FmaEngine<128, 2, ": 128,  # 256 threads, two blocks
    r"resident_\w+<FmaEngine<128, 1, ": 248,  # 128 threads, two blocks
    r"resident_\w+<": 168,  # at most 128 threads, three blocks
    r"step_\w+<": 168,
    r"grid::recur<.*, 16>": 128,  # 512 threads
    r"grid::recur<": 255,  # 256 threads
}


@lru_cache
def compiled():
    """The objects of all kernels for all architectures. One process compiles what isn't compiled yet."""
    nvcc.CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(nvcc.CACHE / "lock"):
        return nvcc.compile_all(nvcc.find())


def kernels(objects=None):
    """(readable name, usage) of every kernel and architecture, by default of all."""
    reports = [path.with_suffix(".txt").read_text() for path in objects or compiled()]
    found = [usage for report in reports for usage in nvcc.usage(report)]
    names = subprocess.run(
        ["c++filt"], input="\n".join(u.kernel for u in found), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert sum(report.count("Compiling entry function") for report in reports) == len(found)
    return [(name.replace("rnnfast::cuda::", ""), usage) for name, usage in zip(names, found, strict=True)]


@whole_build
def test_every_kernel_is_there_for_every_architecture():
    by_architecture = {
        architecture: {name for name, usage in kernels() if usage.architecture == architecture}
        for architecture in nvcc.architectures(nvcc.find())
    }
    assert all(by_architecture.values())
    assert len(set(map(frozenset, by_architecture.values()))) == 1


@whole_build
def test_no_warnings():
    for path in compiled():
        report = path.with_suffix(".txt").read_text()
        assert "warning" not in report.lower(), report


@whole_build
def test_no_kernel_spills_or_has_a_stack():
    # Of the engines that fill all registers of a multiprocessor, some put away up to four in a step.
    for name, usage in kernels():
        if re.search(r"FmaEngine<(128, 2|192|256),", name):
            assert usage.stack <= 16, (name, usage)
        else:
            assert usage.stack == usage.spilled == 0, (name, usage)


@whole_build
def test_no_launcher_calls_what_exists_on_the_device_alone():
    """nvcc lets a template do so, and makes `exit(1)` of the function for the host."""
    for path in compiled():
        undefined = subprocess.run(["nm", "-u", path], capture_output=True, text=True, check=True).stdout
        assert "exit" not in undefined.split(), path.name


@whole_build
def test_registers_are_within_budget():
    assert_within_budget(kernels())


def assert_within_budget(found):
    for name, usage in found:
        budget = next(limit for pattern, limit in BUDGET.items() if re.search(pattern, name))
        assert usage.registers <= budget, f"{name} on {usage.architecture}: {usage.registers} registers"


@needs_nvcc
@pytest.mark.slow
def test_kernels_of_a_step_on_one_architecture():
    """The short twin of the above: 9 s of processor time."""
    (step,) = nvcc.compile_some(nvcc.find(), [nvcc.HERE / "step" / "step.cu"], ["sm_90a"])
    assert "warning" not in step.with_suffix(".txt").read_text().lower()
    found = kernels([step])
    assert {name.split("<")[0].split("::")[-1].removeprefix("void ") for name, _ in found} == {
        "step_forward",
        "step_backward",
        "step_forward_fma",
        "step_backward_fma",
    }
    assert all(usage.stack == usage.spilled == 0 for _, usage in found)
    assert_within_budget(found)


def test_nvcc_that_does_not_know_the_newest(tmp_path):
    older = tmp_path / "nvcc"
    older.write_text("#!/bin/sh\necho sm_75 sm_80 sm_90\n")
    older.chmod(0o755)
    assert nvcc.architectures(str(older)) == ["sm_80", "sm_90a"]


def test_where_nvcc_is_looked_for(tmp_path, monkeypatch):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.touch(0o755)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert nvcc.find() == str(compiler)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(compiler.parent))
    assert nvcc.find() == str(compiler)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert nvcc.find() is None


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"RNNFAST_CUDA": "auto", "FORCE_CUDA": "1"}, None),
        ({"RNNFAST_CUDA": "0"}, False),
        ({"RNNFAST_CUDA": "1"}, True),
        ({"FORCE_CUDA": "1"}, True),
    ],
)
def test_environment(environment, wanted, monkeypatch):
    for name in ("RNNFAST_CUDA", "FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert nvcc.wanted() is wanted


def test_environment_that_means_nothing(monkeypatch):
    monkeypatch.setenv("RNNFAST_CUDA", "yes")
    with pytest.raises(ValueError, match="RNNFAST_CUDA must be auto, 0 or 1, got 'yes'"):
        nvcc.wanted()


# ---- the extension ---------------------------------------------------------------------------------


@lru_cache
def extension():
    """rnnfast._cuda, linked of the objects above: an installation has none where it can't run."""
    objects = compiled()
    target = objects[0].parent / "_cuda.so"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        include = [sysconfig.get_paths()["include"], Path(torch.__file__).parent / "include"]
        command = [
            *(cuda_on_cpu.COMPILER, "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-shared"),
            *(flag for folder in include for flag in ("-isystem", str(folder))),
            *(str(nvcc.HERE / "bindings.cpp"), *map(str, objects), nvcc.static_runtime(nvcc.find())),
            *("-ldl", "-lrt", "-lpthread", "-o", str(partial)),
        ]
        subprocess.run(command, check=True)
        partial.rename(target)
    return target


# What a process does first to have the extension.
LOAD = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
path = {path!r}
spec = spec_from_file_location("rnnfast._cuda", path, loader=ExtensionFileLoader("_cuda", path))
sys.modules["rnnfast._cuda"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
"""

WITHOUT_DEVICE = """
import torch, rnnfast
from rnnfast import _cuda
from rnnfast.functional import rnn_step
assert _cuda.device_count() == 0 and _cuda.current_device() == (0, 0, 0), "there is a device"
for result in (-1, -2, -3, 35, 719):
    print(_cuda.message(result))
print(rnnfast.show_config())
rnnfast.RNN(4, 8, backend="cuda")
"""


def run(code):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@whole_build
def test_extension_without_a_driver_imports_and_says_so():
    result = run(LOAD.format(path=str(extension())) + WITHOUT_DEVICE)
    assert "there is no kernel for this dtype and size" in result.stdout, result.stderr
    assert "cuda     not available: no CUDA device" in result.stdout
    assert "RuntimeError: backend 'cuda' is not available: no CUDA device" in result.stderr


@pytest.fixture
def installed(monkeypatch):
    """As where the extension is installed: what `inspect` disassembles."""
    monkeypatch.setattr(cuda, "native", SimpleNamespace(__file__=str(extension())))
    monkeypatch.setattr(cuda, "MISSING", None)
    if inspect.unavailable() is not None:
        pytest.skip(inspect.unavailable())


@whole_build
@pytest.mark.parametrize("name", inspect.kernels())
def test_inspect(name, installed):
    for arch, dtype, tf32 in ((90, "fp32", False), (80, "fp32", True), (120, "bf16", True)):
        report = inspect.inspect(name, Options(arch, dtype, 100, tf32=tf32))
        assert report.spilled == 0
        # One block multiplies float32 exactly, in TF32, too.
        matrix = tf32 and not (dtype == "fp32" and name.startswith("resident"))
        assert report.loop["matrix multiply" if matrix else "fused multiply-add"] > 0
        assert (report.floor is not None) == name.startswith("resident")


@whole_build
def test_inspect_refuses_what_is_not_there(installed):
    for options, reason in (
        (Options(75), "no code for 75"),
        (Options(hidden=257), "hidden size of 257"),
        (Options(dtype="fp64"), "no cuda.resident_forward for fp64"),
    ):
        with pytest.raises(ValueError, match=reason):
            inspect.inspect("resident_forward", options)


@pytest.mark.slow
def test_package_without_the_extension():
    code = "import sys; sys.modules['rnnfast._cuda'] = None; import rnnfast; print(rnnfast.show_config())"
    assert "cuda     not available: the CUDA extension is not built" in run(code).stdout
