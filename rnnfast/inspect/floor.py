"""A lower bound on the time of one step of a resident kernel, from the instructions of its main loop.

A step is a chain: the exchange of h through shared memory, the products of one warp, the activation, and the
barriers between them. The model adds up the latencies of that chain, and takes the larger of what the matrix
units and the shared memory need for the work itself. The latencies are those of an H100, measured by
`python -m bench latency` (bench/results/h100/device.json): use the result to compare kernels, not to promise
times.
"""

from __future__ import annotations

import re
from collections import Counter

CLOCK = 1.98e9  # Hz
BARRIER = 28  # cycles
SHARED_LATENCY = 29
MATRIX_LATENCY = 27
MATRIX_ISSUE = 7  # m16n8k16, each of the four units of a multiprocessor
SHARED_WIDTH = 128  # bytes a cycle
ACTIVATION = {"relu": 8, "tanh_approx": 17, "tanh_exp": 59, "tanh": 63}


def of_step(opcodes: Counter[str], warps: int, activation: str) -> str:
    """The floor of one round of a loop with these instructions in each of `warps` warps."""
    matrix = sum(n for opcode, n in opcodes.items() if re.match(r"HMMA", opcode))
    barriers = sum(n for opcode, n in opcodes.items() if opcode.startswith("BAR"))
    shared_bytes = sum(n * _bytes(opcode) for opcode, n in opcodes.items()) * warps
    issue = matrix * MATRIX_ISSUE * max(1, warps / 4)
    traffic = shared_bytes / SHARED_WIDTH
    chain = barriers * BARRIER + SHARED_LATENCY + MATRIX_LATENCY + ACTIVATION.get(activation, 0)
    cycles = chain + max(issue, traffic)
    return (
        f"{cycles / CLOCK * 1e6:.2f} us at {CLOCK / 1e9:.3f} GHz (model: {barriers} barriers, {matrix} matrix"
        f" products a warp = {issue:.0f} cycles, {shared_bytes} bytes through shared memory = {traffic:.0f}"
        f" cycles, {cycles:.0f} cycles in all)"
    )


def _bytes(opcode: str) -> int:
    """What a warp moves between registers and shared memory in one instruction."""
    name, *modifiers = opcode.split(".")
    if name in ("LDSM", "STSM"):
        return 128 * int(modifiers[-1] if modifiers[-1].isdigit() else 1)
    if name in ("LDS", "STS"):
        return 32 * next((int(m) // 8 for m in modifiers if m.isdigit() and int(m) >= 32), 4)
    return 0
