"""Calls captured in CUDA graphs, and the kernels that nn.RNN launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from bench.cases.timing import seconds_on_gpu
from rnnfast import testing
from rnnfast.functional import rnn_sequence

Put = Callable[[str, Any], None]

# T, B, I, H: one that stays in a multiprocessor, one that takes the device or a launch a step.
SHAPES = [(32, 16, 64, 128), (32, 16, 64, 1024)]


def graphs(put: Put, backends: tuple[str, ...]) -> None:
    """Captures a layer's forward pass, replays it on other data, and compares with an ordinary call."""
    for shape in SHAPES:
        for backend in backends:
            case = testing.make(shape, torch.bfloat16)
            tensors = [t.cuda() for t in case.args]
            other = torch.randn_like(tensors[0])
            with torch.no_grad():
                try:
                    put(f"{backend} H{shape[3]}", _captured(tensors, other, backend))
                except RuntimeError as error:
                    put(f"{backend} H{shape[3]}", {"status": "failed", "reason": str(error)[:500]})


def _captured(tensors: list[torch.Tensor], other: torch.Tensor, backend: str) -> dict:
    # Before a capture everything must have run once, on another stream: kernels are compiled and loaded then.
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        rnn_sequence(*tensors, backend=backend)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, h_n = rnn_sequence(*tensors, backend=backend)
    tensors[0].copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    wanted = rnn_sequence(*tensors, backend=backend)
    same = torch.equal(out, wanted[0]) and torch.equal(h_n, wanted[1])

    def ordinary() -> object:
        return rnn_sequence(*tensors, backend=backend)

    times = {"replay": seconds_on_gpu(graph.replay), "call": seconds_on_gpu(ordinary)}
    return {"status": "right" if same else "wrong", "seconds": times}


def kernels(put: Put) -> None:
    """Which kernels nn.RNN runs, how often and for how long: cuDNN's choice shows in their names."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for hidden in (64, 128, 256, 384, 512, 1024):
            for batch in (16, 64):
                rnn = torch.nn.RNN(hidden, hidden, device="cuda", dtype=dtype)
                x = torch.randn(512, batch, hidden, device="cuda", dtype=dtype, requires_grad=True)
                rnn(x)[0].sum().backward()
                torch.cuda.synchronize()
                activities = [torch.profiler.ProfilerActivity.CUDA]
                with torch.profiler.profile(activities=activities) as profile:
                    rnn(x)[0].sum().backward()
                    torch.cuda.synchronize()
                count: Counter[str] = Counter()
                spent: Counter[str] = Counter()
                for event in profile.events():
                    count[event.name] += 1
                    spent[event.name] += event.device_time
                longest = [[name, count[name], us] for name, us in spent.most_common(4)]
                key = f"{str(dtype)[6:]} B{batch} H{hidden}"
                put(key, {"status": "timed", "kernels [name, count, us]": longest})
