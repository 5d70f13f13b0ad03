"""How near to the FMA peak a product can come here: `python -m bench ceiling [--json FILE]`.

For each layer, the fraction of the measured peak that torch's products reach (MKL, where torch is built
with it), and ours: the input product is a forward pass less its recurrence, a gradient is a backward pass
that wants it and that of h0 less one that wants that of h0 alone; "gradients" are those of all parameters
together. It tells how much of a missed target is the machine's.

A recurrence has H multiply-adds for each vector of its output, and then the rest: adding the input's part,
the activation, storing. "besides" is the time of the rest in multiply-adds, H (1 / fraction - 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import linear

from bench import command
from bench.cases.timing import single_calls, time_one
from bench.machine import environment
from rnnfast.backends.cpu import CpuBackend
from rnnfast.native import native
from rnnfast.testing import NAMES, Case, backward

LAYERS = [  # T, B, I, H
    (100, 8, 256, 256),
    (100, 32, 128, 128),
    (100, 32, 256, 256),
    (35, 32, 28, 256),
    (100, 32, 512, 512),
    (100, 64, 1024, 1024),
]


def seconds(f: Callable[[], object], budget: float = 0.5) -> float:
    """The first quartile of the times of f, called by itself for `budget` seconds."""
    return time_one(f, single_calls(5, budget)).q1


def fractions(steps: int, batch: int, inputs: int, hidden: int) -> dict[str, float]:
    rows, threads, cpu = steps * batch, torch.get_num_threads(), CpuBackend()
    x, grad, h0 = torch.randn(rows, inputs), torch.randn(rows, hidden), torch.zeros(batch, hidden)
    w_ih, w_hh = torch.randn(hidden, inputs) / inputs**0.5, torch.randn(hidden, hidden) / (2 * hidden**0.5)
    bias, pre = torch.zeros(hidden), torch.randn(rows, hidden)
    tensors = (x.view(steps, batch, inputs), h0, w_ih, w_hh, bias, bias)
    call = Case(dict(zip(NAMES, tensors, strict=True)), grad, h0).call()
    results = cpu.forward(call)

    def gradients(*wanted: str) -> float:
        needs, grads = tuple(name in wanted for name in NAMES), (grad.view_as(results[0]), None)
        return seconds(lambda: backward(cpu, call, results, grads, needs))

    recurrence = seconds(lambda: cpu.recurrence_forward(pre, h0, w_hh, "tanh"))
    relu = seconds(lambda: cpu.recurrence_forward(pre, h0, w_hh, "relu"))
    forward = seconds(lambda: cpu.forward(call))
    alone = gradients("h0")
    flops = 2 * rows * inputs * hidden
    found = {
        "torch product": flops / seconds(lambda: linear(x, w_ih, bias)),
        "torch weight gradient": flops / seconds(lambda: grad.t() @ x),
        "product": flops / (forward - recurrence),
        "weight gradient": flops / (gradients("h0", "weight_ih") - alone),
        "gradients": (flops + 2 * rows * hidden**2)
        / (gradients("h0", "weight_ih", "weight_hh", "bias_ih") - alone),
        "input gradient": flops / (gradients("h0", "x") - alone),
        "recurrence": 2 * rows * hidden**2 / recurrence,
        "recurrence, relu": 2 * rows * hidden**2 / relu,
        "backward recurrence": 2 * rows * hidden**2 / alone,
    }
    peak = max(native.fma_peak(threads, 0.1) for _ in range(3))
    fractions = {name: rate / peak for name, rate in found.items()}
    for name in ("recurrence", "recurrence, relu"):
        fractions[f"{name}: besides"] = hidden * (1 / fractions[name] - 1)
    return fractions | {"peak, GF/s": peak / 1e9}


def main(arguments: list[str]) -> int:
    p = command.parser("ceiling", __doc__)
    p.add_argument("--json", type=Path)
    p.add_argument("--threads", type=int, default=2)
    options = p.parse_args(arguments)
    torch.set_num_threads(options.threads)
    square = torch.randn(2048, 2048)
    peak = max(native.fma_peak(options.threads, 0.1) for _ in range(3))
    found = {"2048^3, torch": {"torch product": 2 * 2048**3 / seconds(lambda: square @ square, 2) / peak}}
    for layer in LAYERS:
        steps, batch, inputs, hidden = layer
        found[f"T{steps} B{batch} I{inputs} H{hidden}"] = fractions(*layer)
    for name, cells in found.items():
        print(name)
        for what, value in cells.items():
            plain = "peak" in what or "besides" in what
            print(f"  {what:<28}{value:8.0f}" if plain else f"  {what:<28}{value:8.0%}")
    if options.json:
        options.json.write_text(
            json.dumps({"environment": environment.describe(), "fractions": found}, indent=1) + "\n"
        )
    return 0
