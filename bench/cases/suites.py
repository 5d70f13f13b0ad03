"""The suites: each is a list of cases.

The whole grid is T {1, 35, 100, 1000} x B {1, 8, 32, 64, 256} x H {32, 64, 128, 200, 256, 512, 1024} x I
{H, 28} x {float32, bfloat16, float16} x {tanh, relu} x {dense, packed, bidirectional} x {1, 2} threads x
{forward, training}: over ten thousand cells, days of work. `cpu` covers it like this, to stay under half an
hour:

- the whole B x H plane, the two sizes that decide which bound a kernel meets, in both modes, at the middle
  of everything else: T = 100, I = H, float32, tanh, dense, 2 threads;
- every other axis by itself, all of its values, through a handful of points of that plane that lie in
  different regimes (per-step latency, cache bandwidth, arithmetic): T, I, dtype, activation, layout,
  threads. An interaction between two of these axes (bfloat16 with packing, say) is not covered;
- a case of more than `MOST_FLOPS` a call takes T = 35 in place of 100: time per step does not depend on T
  there.

`core` is the shapes for which the project has set itself targets: layers, stacks, single steps. `quick` is a
part of `core` for a first look. `gpu`, on a CUDA device, is a B x H plane at T = 100 in float32 (exact, no
TF32) and bfloat16, and a few points for T, I, activation, layout and single steps, for every contender.
`gpu-layers` and `gpu-steps` time our CUDA and Triton kernels against cuDNN over more sizes, with float16 and
TF32; `auto` takes a GPU backend where these were won. `random` is drawn for a seed (`drawn.py`), to
find what no list of cases holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Optional

from bench.cases.case import Case
from bench.cases.drawn import draw
from bench.cases.precision import KINDS
from bench.cases.timing import Budget

MOST_FLOPS = 50e9

CORE = [
    Case(100, 1, 64, 64),
    Case(100, 1, 256, 256),
    Case(100, 1, 512, 512),
    Case(100, 1, 1024, 1024),
    Case(100, 8, 256, 256),
    Case(100, 32, 128, 128),
    Case(100, 32, 256, 256),
    Case(100, 32, 512, 512),
    Case(100, 64, 1024, 1024),
    Case(35, 32, 28, 256),
]
STACKS = [
    *(
        Case(100, 1, H, H, layout=layout)
        for layout in ("bidirectional", "2layers", "4layers")
        for H in (64, 128, 256)
    ),
    Case(100, 8, 128, 128, layout="bidirectional"),
    Case(100, 32, 256, 256, layout="bidirectional"),
    Case(1, 1, 64, 64, layout="bidirectional"),
]
MEMORY = Case(1000, 32, 256, 256, training=True)  # whose peak memory is measured
STEP_SIZES = [(B, H) for B in (1, 8, 64) for H in (64, 256, 1024)]

# Points of the B x H plane in different regimes: latency, L2 bandwidth, L3 bandwidth, arithmetic, odd sizes.
REGIMES = [(1, 64), (1, 512), (8, 256), (32, 128), (32, 256), (64, 200)]


def _both_modes(cases: Iterable[Case]) -> list[Case]:
    return [replace(case, training=training) for case in cases for training in (False, True)]


def _square(B: int, H: int, T: int = 100, **options) -> Case:
    return Case(T, B, H, H, **options)


def _affordable(case: Case) -> Case:
    return replace(case, steps=35) if case.steps == 100 and case.flops > MOST_FLOPS else case


def core() -> list[Case]:
    return _both_modes(CORE + STACKS) + _steps()


def _steps() -> list[Case]:
    return _both_modes(Case(1, B, H, H, kind="step") for B, H in STEP_SIZES)


def quick() -> list[Case]:
    light = [case for case in CORE if case.flops < 1e9]
    return _both_modes([*light, Case(1, 1, 256, 256, kind="step")])


def cpu() -> list[Case]:
    plane = [_square(B, H) for B in (1, 8, 32, 64, 256) for H in (32, 64, 128, 200, 256, 512, 1024)]
    steps_axis = [_square(B, H, T) for B, H in REGIMES for T in (1, 35, 1000)]
    input_axis = [Case(100, B, 28, H) for B, H in [(1, 64), (8, 512), (256, 128)]] + [Case(35, 32, 28, 256)]
    dtype_axis = [_square(B, H, dtype="bfloat16") for B, H in [(1, 256), (8, 256), (32, 128), (32, 512)]]
    dtype_axis.append(_square(32, 256, dtype="float16"))
    relu_axis = [_square(B, H, nonlinearity="relu") for B, H in [(1, 64), (8, 256), (32, 256)]]
    packed_axis = [_square(B, H, layout="packed") for B, H in [(8, 128), (32, 256), (64, 512)]]
    deep_axis = [_square(B, H, layout="bidirectional") for B, H in [(1, 128), (8, 512), (32, 256)]]
    threads_axis = [_square(B, H, threads=1) for B in (1, 32) for H in (32, 64, 128, 200, 256, 512, 1024)]
    sequences = (
        plane + steps_axis + input_axis + dtype_axis + relu_axis + packed_axis + deep_axis + threads_axis
    )
    return [_affordable(case) for case in _both_modes(sequences)] + _steps()


def gpu() -> list[Case]:
    plane = [_square(B, H) for B in (1, 32, 256) for H in (64, 128, 256, 512, 1024)]
    steps_axis = [_square(32, H, T) for H in (256, 512) for T in (35, 1000)]
    others = [Case(35, 32, 28, 256), _square(32, 256, nonlinearity="relu")]
    others += [_square(32, 256, layout=layout) for layout in ("packed", "bidirectional")]
    single = [Case(1, B, H, H, kind="step") for B, H in [(1, 64), (32, 256), (256, 1024)]]
    cases = _both_modes(plane + steps_axis + others + single)
    # XLA compiles for 1 to 10 s a cell in bfloat16 and up to 28 in float32, most of it to tune the products.
    return [replace(c, device="cuda", dtype=dtype) for dtype in ("bfloat16", "float32") for c in cases]


# What matters most comes first, in case time runs out.
LAYER_SIZES = [(B, H) for H in (128, 256, 512, 1024, 64, 2048) for B in (16, 64, 1, 256) if B * H <= 2**18]
CELL_SIZES = [(B, H) for H in (128, 256, 512, 64, 1024, 2048) for B in (64, 1, 256)]


def _of_kind(case: Case, kind: str) -> Case:
    dtype, tf32 = KINDS[kind]
    return replace(case, device="cuda", dtype=dtype, tf32=tf32)


def gpu_layers() -> list[Case]:
    layers = [_square(B, H, T) for T in (512, 32) for B, H in LAYER_SIZES]
    return _both_modes(_of_kind(layer, kind) for layer in layers for kind in KINDS)


def gpu_steps() -> list[Case]:
    cells = [Case(1, B, H, H, kind="step") for B, H in CELL_SIZES]
    return _both_modes(_of_kind(cell, kind) for cell in cells for kind in ("bfloat16", "tf32"))


@dataclass(frozen=True)
class Suite:
    """A list of cases, and how they are measured."""

    cases: Callable[..., list[Case]]  # of a seed and a number where they are `drawn`, else of nothing
    budget: Budget
    peers: tuple[str, ...] = ()  # who takes part where nobody is named: all who can, if empty
    checked_steps: Optional[int] = None  # so many steps are checked before all are timed; all, if None
    device_clock: bool = False  # CUDA events of the current stream rather than the host's clock
    bounds: bool = True  # measure the machine's peaks, and how near to its bound each cell comes
    drawn: bool = False


_CUDNN_AND_OURS = ("rnnfast-cuda", "rnnfast-triton", "torch-rnn")

SUITES = {
    "core": Suite(core, Budget(seconds=1.0, min_rounds=7)),
    "quick": Suite(quick, Budget(seconds=0.1, min_rounds=3)),
    "cpu": Suite(cpu, Budget(seconds=0.25, min_rounds=5)),
    "gpu": Suite(gpu, Budget(seconds=0.2)),
    "gpu-layers": Suite(
        gpu_layers,
        Budget(seconds=0.1, min_rounds=3),
        _CUDNN_AND_OURS,
        checked_steps=6,
        device_clock=True,
        bounds=False,
    ),
    "gpu-steps": Suite(
        gpu_steps, Budget(seconds=0.05, min_rounds=3), _CUDNN_AND_OURS, device_clock=True, bounds=False
    ),
    "random": Suite(
        draw, Budget(seconds=0.15, min_rounds=5), ("rnnfast", "torch-rnn"), bounds=False, drawn=True
    ),
}


def select(
    suite: str, threads: Iterable[int] = (), pattern: str = "", seed: int = 1, count: int = 200
) -> list[Case]:
    """The cases of a suite, at the given thread counts if any, whose key contains every word of `pattern`.

    `seed` and `count` are those of a suite that is drawn.
    """
    cases = SUITES[suite].cases(seed, count) if SUITES[suite].drawn else SUITES[suite].cases()
    if threads:
        cases = list(dict.fromkeys(replace(case, threads=n) for case in cases for n in threads))
    return [case for case in cases if all(word in case.key.split() for word in pattern.split())]
