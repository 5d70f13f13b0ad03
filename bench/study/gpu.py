"""The rungs on a GPU."""

from __future__ import annotations

from bench.study.ladder import Rung

RUNGS: tuple[Rung, ...] = ()
