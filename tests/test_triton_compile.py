"""The Triton kernels compiled without a GPU: registers, shared memory, spills, and the loops.

Runs with whatever Triton is installed; CI runs it under each release that a supported torch comes with.
"""

import re
from dataclasses import replace
from functools import cache

import pytest

pytest.importorskip("triton", reason="no Triton for this platform")

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from rnnfast.inspect import triton as provider
from rnnfast.inspect.report import Options
from rnnfast.kernels import table

if provider.unavailable() is not None:
    pytest.skip(provider.unavailable(), allow_module_level=True)

# Bytes of shared memory that a program may have.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 103: 227 * 1024}
LEAST_SHARED = 99 * 1024  # of all others since 8.6
NEWEST = max(provider.architectures())
RESIDENT = ["resident_forward", "resident_backward"]
OTHERS = [name for name in provider.kernels() if name not in RESIDENT]

each_row = pytest.mark.parametrize(
    "row",
    table.RESIDENT,
    ids=lambda row: "16-bit {2}".format(*row) if row[0] == 2 else "{1} {2}".format(*row),
)


@cache
def compiled(name, options):
    report = provider.inspect(name, options)
    numbers = {fact: int(report.facts[fact].split()[0]) for fact in ("registers", "warps", "shared memory")}
    return report, numbers


def options_of(row, arch, **changes):
    size, precision, hidden = row
    options = Options(arch, "bf16" if size == 2 else "fp32", hidden, tf32=precision == table.TF32)
    return replace(options, **changes)


def check(name, options):
    report, numbers = compiled(name, options)
    assert report.spilled == 0, f"{report}"
    assert numbers["registers"] * 32 * numbers["warps"] <= 65536, f"{report}"
    assert report.loop["local memory"] == 0, f"{report}"
    assert not re.search(r"\b(ATOM|RED)[GS]?\b", report.listings["sass"]), "an atomic operation"
    return report, numbers


@pytest.mark.sample(6)
@each_row
@pytest.mark.parametrize("arch", sorted({80, 90, NEWEST}))
@pytest.mark.parametrize("name", RESIDENT)
def test_every_row_fits(name, row, arch):
    """No spills, and no more shared memory than the table says, by which the backend decides what fits."""
    _, numbers = check(name, options_of(row, arch))
    assert numbers["shared memory"] <= table.RESIDENT[row].shared
    if arch in SHARED:
        assert table.RESIDENT[row].shared <= SHARED[arch], "the table claims what the device lacks"


@pytest.mark.sample(4)
@each_row
@pytest.mark.parametrize("change", [{"packed": True}, {"nonlinearity": "relu"}], ids=["packed", "relu"])
@pytest.mark.parametrize("name", RESIDENT)
def test_every_form_fits(name, row, change):
    check(name, options_of(row, 90, **change))


CELLS = {
    "leaky": {"cell": "leaky", "nonlinearity": "softplus"},
    "ctrnn": {"cell": "ctrnn", "nonlinearity": "sigmoid"},
    "leaky with resets": {"cell": "leaky", "resets": True},
    "ctrnn with resets": {"cell": "ctrnn", "resets": True},
    "elman with resets": {"nonlinearity": "identity", "resets": True},
}


@pytest.mark.sample(6)
@each_row
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", RESIDENT)
def test_every_cell_fits(name, cell, row):
    """With all that such a cell can have: noise, a gradient of its inner values, one of its states."""
    _, numbers = check(name, options_of(row, 90, **CELLS[cell]))
    assert numbers["shared memory"] <= table.RESIDENT[row].shared


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["stepwise_forward", "stepwise_backward"])
def test_a_step_of_every_cell_fits(name, dtype, cell):
    for hidden in (512, 333):
        _, numbers = check(name, Options(90, dtype, hidden, tf32=False, **CELLS[cell]))
        assert numbers["shared memory"] <= LEAST_SHARED


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.parametrize("hidden", [1, 17, 100, 200])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_sizes_between_the_rows(hidden, dtype):
    if dtype == "fp32" and hidden > 128:
        with pytest.raises(ValueError, match="does not fit one multiprocessor"):
            provider.inspect("resident_forward", Options(90, dtype, hidden))
        return
    for name in RESIDENT:
        check(name, Options(90, dtype, hidden, packed=True))


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "row", [row for row, made in table.RESIDENT.items() if made.keep and row[2] > 16], ids=str
)
@pytest.mark.parametrize("name", RESIDENT)
def test_the_weights_stay_in_registers(name, row, monkeypatch):
    """The walk reads less from shared memory than the same kernel with W_hh left there."""
    kept, _ = compiled(name, options_of(row, 90))
    monkeypatch.setitem(table.RESIDENT, row, replace(table.RESIDENT[row], keep=False))
    left = provider.inspect(name, options_of(row, 90))
    assert kept.loop["matrix multiply"] == left.loop["matrix multiply"] > 0
    assert kept.loop["shared load"] < left.loop["shared load"], f"{kept}\n{left}"


@pytest.mark.slow
@pytest.mark.sample(6)
@pytest.mark.parametrize("arch", sorted({80, 90, NEWEST}))
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "exact"])
@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of_one_step_fit(name, dtype, arch):
    """Of aligned sizes, and of odd ones, which load element by element."""
    for hidden in (512, 333):
        options = Options(arch, "fp32" if dtype == "exact" else dtype, hidden, tf32=dtype != "exact")
        _, numbers = check(name, options)
        assert numbers["shared memory"] <= SHARED.get(arch, LEAST_SHARED)


@pytest.mark.slow
def test_instructions_are_those_wanted():
    """Tensor-core products everywhere; the approximate tanh for bfloat16 and nothing else."""
    for dtype, tanh in (("bf16", True), ("fp16", False), ("fp32", False)):
        for name in ("resident_forward", "stepwise_forward", "step_forward"):
            report, _ = compiled(name, Options(90, dtype, 128))
            assert report.loop["matrix multiply"] > 0, f"{report}"
            assert ("MUFU.TANH" in report.listings["sass"]) == tanh, f"{report}"


def test_unknown_architecture_and_type():
    with pytest.raises(ValueError, match=r"Triton knows no architecture 77; it knows 80, .*90"):
        provider.inspect("step_forward", Options(arch=77))
    with pytest.raises(ValueError, match="the Triton kernels have no fp64, only fp32, bf16, fp16"):
        provider.inspect("step_forward", Options(dtype="fp64"))
    with pytest.raises(ValueError, match=r"triton\.step_forward is not compiled with cell 'leaky', resets"):
        provider.inspect("step_forward", Options(cell="leaky", resets=True))


class Driver:
    """A GPU as far as Triton asks about one before it launches."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("hidden", [64, 33])
def test_what_is_inspected_is_what_is_launched(packed, hidden, monkeypatch, tmp_path):
    """Triton's own way from a call with tensors to code gives the code that is compiled here without them."""
    # Code that another checkout has put into the common cache names that one's files.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(type(driver), "active", Driver(), raising=False)
    options = Options(90, "bf16", hidden, packed=packed)
    for name in provider.kernels():
        launch = provider.plan_launch(name, options)
        real = {
            k: torch.zeros(v.shape, dtype=v.dtype) if isinstance(v, torch.Tensor) else v
            for k, v in launch.arguments.items()
        }
        launched = launch.kernel.warmup(**real, **launch.constants, **launch.options(), grid=launch.grid)
        assert launched.asm["ptx"] == launch.compile(90).asm["ptx"], name
