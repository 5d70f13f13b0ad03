"""Every GPU backend, dtype and shape against float64, with all gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from bench.cases.precision import KINDS, products
from bench.suites.progress import progress
from rnnfast import testing
from rnnfast.functional import rnn_sequence, rnn_step

BACKENDS = ("cuda", "triton")
Put = Callable[[str, Any], None]

# Those of a group share their Triton kernels, which take longer to compile than everything else.
HIDDEN = ((1,), (20,), (33, 64), (128,), (131, 192, 200, 256), (257, 512, 1000, 1024, 2048))
BATCHES = (1, 9, 70)


@lru_cache(maxsize=4)
def problem(
    shape: tuple[int, int, int, int], nonlinearity: str, packed: bool, delicate: bool
) -> testing.Case:
    """In float64. Of `delicate` relu, rounding errors must not decide the derivative: see `testing.make`."""
    steps, batch, *_ = shape
    lengths = [max(1, steps - b * steps // batch) for b in range(batch)] if packed else None
    like = torch.bfloat16 if delicate else torch.float64
    return testing.make(shape, like, nonlinearity, lengths=lengths).to(torch.float64)


def compare(
    backend: str, device: str, case: testing.Case, nonlinearity: str, reverse: bool, bound: float
) -> dict:
    """The result of one problem: its worst error, as a part of the tolerated one."""
    step = case.inputs["x"].dim() == 3 and case.inputs["x"].shape[0] == 1 and case.batch_sizes is None
    if step:
        case = testing.Case(case.inputs, case.grad_out, torch.zeros_like(case.grad_hn))
    out, h_n, grads = testing.expected(case, nonlinearity, reverse)
    leaves = [t.detach().to(device).requires_grad_() for t in case.args]
    try:
        if step:
            results = [rnn_step(leaves[0][0], *leaves[1:], nonlinearity, backend=backend)]
            outputs, wanted = [case.grad_out[0]], {"output": out[0]}
        else:
            results = list(
                rnn_sequence(
                    *leaves, nonlinearity, reverse=reverse, batch_sizes=case.batch_sizes, backend=backend
                )
            )
            outputs, wanted = [case.grad_out, case.grad_hn], {"output": out, "h_n": h_n}
        actual = torch.autograd.grad(results, leaves, [g.to(device) for g in outputs])
    except RuntimeError as error:
        status = "refused" if "can't run this problem" in str(error) else "failed"
        return {"status": status, "reason": str(error)[:500]}
    wanted.update({f"gradient of {name}": grad for name, grad in zip(testing.NAMES, grads, strict=True)})
    worst = max(
        (testing.error(a.cpu(), e) / bound, name)
        for (name, e), a in zip(wanted.items(), [*results, *actual], strict=True)
    )
    return {"status": "right" if worst[0] <= 1 else "wrong", "worst": worst[1], "of_tolerance": worst[0]}


def check(
    put: Put,
    device: str = "cuda",
    backends: tuple[str, ...] = BACKENDS,
    hidden: tuple[int, ...] = sum(HIDDEN, ()),
    batches: tuple[int, ...] = BATCHES,
    kinds: tuple[str, ...] = tuple(KINDS),
) -> None:
    ways = [(1, False, False), (6, False, False), (6, False, True), (6, True, False), (6, True, True)]
    problems = [
        (T, B, H, packed, reverse, "relu" if (H + B + T) % 3 == 0 else "tanh")
        for H in hidden
        for B in batches
        for T, packed, reverse in ways
    ]
    for T, B, H, packed, reverse, nonlinearity in progress(problems, "check"):
        for kind in kinds:
            dtype, tf32 = KINDS[kind]
            delicate = nonlinearity == "relu" and kind != "float32"
            case = problem((T, B, 28 + H % 3, H), nonlinearity, packed, delicate).to(getattr(torch, dtype))
            case.tf32 = tf32
            bound = case.tolerance()
            way = "step" if T == 1 else ("packed" if packed else "dense") + (" reverse" if reverse else "")
            for backend in backends:
                with products(tf32):
                    found = compare(backend, device, case, nonlinearity, reverse, bound)
                put(f"{backend} {kind} T{T} B{B} H{H} {way} {nonlinearity}", found)
