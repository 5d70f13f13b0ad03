"""JAX: jax.lax.scan under jit on the CPU (or on JAX's own default device), forward and gradient.

Fair: the input product of all steps is hoisted out of the scan; compiled ahead of time for the case (the
seconds are reported, not timed) and warm; arrays live on the device; every call waits for its result. The
gradient is one compiled function, forward and vjp together, as a training step would have it. No buffer is
donated: inputs and parameters are those of the next call too, and XLA already reuses the carry. `UNROLL`
was chosen by timing 1, 2, 4 and 8. The size of XLA's thread pool is fixed when the process starts:
`bench.suites.run` sets NPROC before it starts the worker. On a GPU calls are queued as torch's are, the
results of a batch of calls waited for at its end, and float32 products are float32's unless the case allows
TF32.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any, Optional

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.inputs import Inputs
from bench.peers.base import Peer, Prepared

UNROLL = 1


class JaxScan(Peer):
    name = "jax-scan"
    devices = ("cpu", "cuda")

    def available(self) -> Optional[str]:
        return None if find_spec("jax") else "not installed: jax"

    def refuses(self, case: Case) -> Optional[str]:
        import jax

        if case.kind == "step":
            return "the adapter is a scan over a sequence"
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        return None if here == case.device else f"JAX's device is {here}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        import jax
        import jax.numpy as jnp

        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.nonlinearity]
        lengths = None if inputs.lengths is None else jnp.asarray(inputs.lengths.numpy())

        def one_direction(x: Any, h0: Any, weights: Any, reverse: bool) -> Any:
            w_ih, w_hh, b_ih, b_hh = weights
            pre = x @ w_ih.T + (b_ih + b_hh)

            def step(h: Any, inputs_at_t: Any) -> tuple[Any, Any]:
                p, t = inputs_at_t
                new = activation(p + h @ w_hh.T)
                if lengths is None:
                    return new, new
                inside = (t < lengths)[:, None]
                return jnp.where(inside, new, h), jnp.where(inside, new, 0)

            times = jnp.arange(len(x))
            return jax.lax.scan(step, h0, (pre, times), reverse=reverse, unroll=UNROLL)[1]

        def forward(parameters: Any, x: Any, h0: Any) -> Any:
            for layer in range(case.layers):
                sides = []
                for direction in range(case.directions):
                    i = layer * case.directions + direction
                    sides.append(one_direction(x, h0[i], parameters[4 * i : 4 * i + 4], direction == 1))
                x = sides[0] if len(sides) == 1 else jnp.concatenate(sides, axis=2)
            return x

        def train(parameters: Any, x: Any, h0: Any, grad_output: Any) -> Any:
            output, pullback = jax.vjp(lambda p: forward(p, x, h0), parameters)
            return output, pullback(grad_output)[0]

        parameters = [_to_jax(p) for p in inputs.parameters.values()]
        arguments = [parameters, _to_jax(inputs.x), _to_jax(inputs.h0)]
        arguments += [_to_jax(inputs.grad_output)] if case.training else []
        start = time.perf_counter()
        exact = "tensorfloat32" if case.tf32 else "highest"
        with jax.default_matmul_precision(exact if case.dtype == "float32" else "default"):
            compiled = jax.jit(train if case.training else forward).lower(*arguments).compile()
        seconds = time.perf_counter() - start
        wait = jax.block_until_ready

        def call() -> Any:
            return wait(compiled(*arguments))

        def queue() -> Any:
            return compiled(*arguments)

        def unpack(result: Any) -> tuple[Tensor, list[Tensor]]:
            output, gradients = result if case.training else (result, [])
            return _to_torch(output), [_to_torch(g) for g in gradients]

        return Prepared(queue if case.device == "cuda" else call, unpack, seconds, wait)


def _to_jax(tensor: Tensor) -> Any:
    import jax.numpy as jnp

    # numpy has no bfloat16; the way through float32 is exact.
    return jnp.asarray(tensor.float().numpy()).astype(str(tensor.dtype).removeprefix("torch."))


def _to_torch(array: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(array, dtype=np.float32))
