"""One process or several: what a data-parallel run under torchrun needs, and nothing changes without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def joined() -> Iterator[None]:
    """Within it, the processes that torchrun started form a group (gloo)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
        distributed.barrier()  # nobody leaves while another still talks to it
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Which process this is; the first is 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def parallel(model: nn.Module) -> nn.Module:
    """`model`, its gradients the mean over all processes."""
    return DistributedDataParallel(model, broadcast_buffers=False) if distributed.is_initialized() else model


def mean(values: Tensor) -> Tensor:
    """The mean of every process's `values`."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values / world_size()


def from_first(value: float) -> float:
    """The first process's `value`, so that all decide alike."""
    if not distributed.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    distributed.broadcast(shared, src=0)
    return shared.item()
