"""The command line of `rnnfast.inspect`."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn, Optional

from ..call import CELLS, NONLINEARITIES
from . import __doc__ as about
from . import cpu, cuda, triton
from .report import DTYPES, Options

PROVIDERS: dict[str, Any] = {"triton": triton, "cuda": cuda, "cpu": cpu}


def main(arguments: Optional[list[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m rnnfast.inspect", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernel", nargs="?", help="FAMILY.KERNEL; none lists them all")
    parser.add_argument("--arch", type=int, default=90, help="NVIDIA's architecture: 80, 90, 120, ...")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--hidden", type=int, default=128, metavar="H")
    parser.add_argument("--nonlinearity", choices=NONLINEARITIES, default="tanh")
    parser.add_argument("--cell", choices=CELLS, default="elman", help="of the Triton kernels of a sequence")
    parser.add_argument("--resets", action="store_true", help="as compiled where some steps start from zero")
    parser.add_argument("--packed", action="store_true", help="as compiled for packed sequences")
    parser.add_argument(
        "--no-tf32", dest="tf32", action="store_false", help="float32 products at full precision"
    )
    parser.add_argument(
        "--dump", metavar="FORM", help="print the code instead: ttir, ttgir, llir, ptx, sass, asm"
    )
    parser.add_argument("--table", action="store_true", help="what every row of the Triton table takes")
    asked = parser.parse_args(arguments)

    if asked.table:
        reason = triton.unavailable()
        if reason is not None:
            fail(f"the Triton kernels can't be compiled here: {reason}")
        try:
            print(triton.table(asked.arch))
        except (ValueError, RuntimeError) as error:
            fail(str(error))
        return
    if asked.kernel is None:
        print(listing())
        return
    family, _, name = asked.kernel.partition(".")
    if family not in PROVIDERS or name not in PROVIDERS[family].kernels():
        fail(f"there is no kernel {asked.kernel!r}; these exist:\n{listing()}")
    if asked.hidden < 1:
        fail(f"--hidden must be at least 1, got {asked.hidden}")
    reason = PROVIDERS[family].unavailable()
    if reason is not None:
        fail(f"{family} kernels can't be inspected here: {reason}")
    try:
        report = PROVIDERS[family].inspect(
            name,
            Options(
                *(asked.arch, asked.dtype, asked.hidden, asked.nonlinearity),
                *(asked.packed, asked.tf32, asked.cell, asked.resets),
            ),
        )
    except (ValueError, RuntimeError) as error:
        fail(str(error))
    if asked.dump is None:
        print(report)
    elif asked.dump in report.listings:
        print(report.listings[asked.dump])
    else:
        fail(f"{asked.kernel} has no {asked.dump}; it has {', '.join(sorted(report.listings))}")


def listing() -> str:
    lines = []
    for family, provider in PROVIDERS.items():
        reason = provider.unavailable()
        lines.append(f"{family}" + (f" (can't be inspected here: {reason})" if reason else ""))
        lines += [f"  {family}.{name:<22} {line}" for name, line in provider.kernels().items()]
    return "\n".join(lines)


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
