"""The rungs on a GPU."""

from __future__ import annotations

from bench.study.rung import Rung

RUNGS: tuple[Rung, ...] = ()
