"""All rungs, in order."""

from __future__ import annotations

from bench.study import cpu, gpu

LADDER = tuple(sorted((*cpu.RUNGS, *gpu.RUNGS), key=lambda rung: (rung.number, rung.variant)))
