"""For `bench.gpu`: the backends and torch's modules over layers and steps of all sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from bench import cell, gpu_graphs
from bench.gpu_check import BACKENDS, KINDS, Put, products
from bench.inputs import Inputs, make_inputs
from bench.peers import TorchRNN
from bench.peers.rnnfast_rnn import Rnnfast
from bench.progress import progress
from bench.shapes import Case
from bench.timing import Budget, alternate

STEPS, STEPS_CHECKED = (512, 32), 6
# What matters most comes first, in case time runs out.
TIMED = [(B, H) for H in (128, 256, 512, 1024, 64, 2048) for B in (16, 64, 1, 256) if B * H <= 2**18]


def timing(
    put: Put,
    device: str = "cuda",
    backends: tuple[str, ...] = BACKENDS,
    sizes: Sequence[tuple[int, int]] = tuple(TIMED),
    seconds: float = 0.1,
) -> None:
    cells = [
        (kind, Case(T, B, H, H, training=training, dtype=str(KINDS[kind][0])[6:], device=device))
        for T in STEPS
        for B, H in sizes
        for kind in KINDS
        for training in (False, True)
    ]
    time_cells(put, "timing", cells, backends, seconds)


STEP_SIZES = [(B, H) for H in (128, 256, 512, 64, 1024, 2048) for B in (64, 1, 256)]


def steps(
    put: Put,
    device: str = "cuda",
    backends: tuple[str, ...] = BACKENDS,
    sizes: Sequence[tuple[int, int]] = tuple(STEP_SIZES),
    seconds: float = 0.05,
) -> None:
    dtypes = {kind: str(KINDS[kind][0])[6:] for kind in ("bfloat16", "tf32")}
    cells = [
        (kind, Case(1, B, H, H, training=training, kind="step", dtype=dtype, device=device))
        for B, H in sizes
        for kind, dtype in dtypes.items()
        for training in (False, True)
    ]
    time_cells(put, "steps", cells, backends, seconds)


def lengthened(few: Inputs, case: Case) -> Inputs:
    """The same weights and first states, with sequences of the case's length, made where they are needed."""
    dtype = getattr(torch, case.dtype)

    def normal(width: int) -> torch.Tensor:
        return torch.randn(case.steps, case.batch, width, device=case.device, dtype=dtype)

    return replace(few, x=normal(case.input_size), grad_output=normal(case.hidden_size))


def time_cells(
    put: Put, part: str, cells: Sequence[tuple[str, Case]], backends: Sequence[str], seconds: float
) -> None:
    """Each cell as named by kind, steps, batch, hidden size and mode: contenders are checked, then timed."""
    contenders = [*map(Rnnfast, backends), TorchRNN()]

    def wait(name: str, result: object) -> None:
        if on_gpu:
            torch.cuda.synchronize()

    on_gpu = cells[0][1].device == "cuda"
    for kind, case in progress(cells, part):
        results: dict[str, dict] = {}
        calls: dict[str, Callable[[], object]] = {}
        short = replace(case, steps=min(case.steps, STEPS_CHECKED))
        few_inputs = make_inputs(short)
        inputs = lengthened(few_inputs, case)
        with products(KINDS[kind][1]):
            for peer in contenders:
                # cuDNN's TF32 is as inexact as ours, which bench.inputs does not provide for: `check` does.
                results[peer.name], prepared = (
                    cell.check(short, peer, few_inputs) if kind != "tf32" else ({"status": "timed"}, peer)
                )
                if prepared is None:
                    continue
                try:
                    calls[peer.name] = peer.prepare(case, inputs).call
                    calls[peer.name]()
                except RuntimeError as error:
                    del calls[peer.name]
                    results[peer.name] = {"status": "failed", "reason": str(error)[:500]}
            timed = alternate(
                calls,
                Budget(seconds=seconds, min_rounds=3),
                wait=wait,
                clock=gpu_graphs.device_clock() if on_gpu else time.perf_counter,
            )
        for name, measured in timed.items():
            results[name].update(vars(measured))
        put(
            f"{kind} T{case.steps} B{case.batch} H{case.hidden_size} {case.mode}",
            {"kind": kind, "case": case.to_dict(), "results": results},
        )
