"""python -m rnnfast.inspect, as it is typed."""

import subprocess
import sys

import pytest

from rnnfast.inspect import __main__ as command
from rnnfast.inspect import sass


def run(capsys, *arguments):
    """What is printed to each stream, and the exit status."""
    status = 0
    try:
        command.main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    return printed.out, printed.err, status


def needs(family):
    reason = command.PROVIDERS[family].unavailable()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.slow
def test_lists_every_kernel_when_given_none():
    done = subprocess.run([sys.executable, "-m", "rnnfast.inspect"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for family, provider in command.PROVIDERS.items():
        for kernel in provider.kernels():
            assert f"{family}.{kernel} " in done.stdout


def test_triton_kernel(capsys):
    needs("triton")
    out, _, status = run(
        capsys, "triton.resident_forward", "--arch", "80", "--dtype", "fp16", "--hidden", "64"
    )
    assert status == 0
    for text in (
        "sm_80",
        "fp16",
        "registers",
        "shared memory",
        "spills",
        "matrix multiply",
        "barrier",
        "floor",
    ):
        assert text in out, out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "text"), [("ttir", "tt.dot"), ("ttgir", "ttg."), ("ptx", ".entry"), ("sass", "HMMA")]
)
def test_dumps(capsys, form, text):
    needs("triton")
    out, _, status = run(capsys, "triton.step_forward", "--dump", form)
    assert status == 0 and text in out


@pytest.mark.parametrize("kernel", command.cpu.kernels())
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16"])
def test_cpu_kernel(capsys, kernel, dtype):
    needs("cpu")
    out, err, status = run(capsys, f"cpu.{kernel}", "--dtype", dtype)
    assert status == 0, err
    assert "instructions" in out
    if kernel == "tile":
        assert "fused multiply-add" in out
    out, _, _ = run(capsys, f"cpu.{kernel}", "--dtype", dtype, "--dump", "asm")
    assert "Disassembly" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["triton.no_such"], "there is no kernel 'triton.no_such'; these exist"),
        (["resident_forward"], "there is no kernel 'resident_forward'"),
        (["triton.step_forward", "--arch", "77"], "Triton knows no architecture 77"),
        (["triton.step_forward", "--dtype", "fp64"], "have no fp64"),
        (["triton.step_forward", "--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["triton.resident_forward", "--hidden", "1000"], "does not fit one multiprocessor"),
        (["triton.step_forward", "--dump", "hex"], "has no hex; it has"),
    ],
)
def test_mistakes_get_an_answer(capsys, arguments, message):
    needs("triton")
    out, err, status = run(capsys, *arguments)
    assert status == 2 and out == "" and message in err


def test_main_loop_is_found():
    """The loop with the matrix products, whatever other loops there are."""
    listing = """
        /*0000*/                   IMAD R1, R2, R3, R4 ;          /* 0x0 */
        /*0010*/                   LDS.128 R4, [R1] ;             /* 0x0 */
        /*0020*/                   HMMA.16816.F32 R4, R4, R4, R4 ; /* 0x0 */
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;  /* 0x0 */
        /*0040*/              @!P1 BRA 0x10 ;                     /* 0x0 */
        /*0050*/                   FADD R1, R1, R2 ;              /* 0x0 */
        /*0060*/              @P0  BRA 0x50 ;                     /* 0x0 */
        /*0070*/                   EXIT ;                         /* 0x0 */
    """
    code = sass.analyse(listing)
    assert code.loop == {"shared load": 1, "matrix multiply": 1, "barrier": 1, "other": 1}
    assert sum(code.instructions.values()) == 8
    assert sass.analyse("").loop == {}
