"""Calls for the tests of calls: networks of every kind, their arguments, and what may become of these."""

import pytest
import torch

from rnnfast import testing
from rnnfast.call import Network

NETWORKS = {
    "step": Network("tanh", step=True),
    "step of a module": Network("relu", step=True, module=True, input_size=5, hidden_size=7),
    "layer": Network("tanh"),
    "layer from the end": Network("relu", reverse=(True,)),
    "layer without biases": Network("tanh", biases=False),
    "module": Network("tanh", module=True, input_size=5, hidden_size=7),
    "stack": Network("tanh", 3, (False, True), module=True, input_size=5, hidden_size=7),
    "stack without biases": Network("relu", 2, biases=False, module=True),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
each_dtype = pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)


def arguments(network, dtype=torch.float32, packed=False, steps=3, batch=2):
    """x, h0, weights and batch_sizes of a call with 5 inputs and 7 hidden units."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return (torch.randn(size, generator=generator) / 3).to(dtype)

    count = network.layers * len(network.reverse)
    x = normal(batch, 5) if network.step else normal(batch * steps, 5) if packed else normal(steps, batch, 5)
    h0 = normal(count, batch, 7) if network.module and not network.step else normal(batch, 7)
    weights = []
    for i in range(count):
        width = 5 if i < len(network.reverse) else 7 * len(network.reverse)
        weights += [normal(7, width), normal(7, 7), normal(7), normal(7)][: network.per]
    return x, h0, tuple(weights), torch.full((steps,), batch) if packed else None


def replaced(given, index, value):
    """The arguments with another one at `index`: x, h0, then the weights."""
    flat = [*given[:2], *given[2]]
    flat[index] = value
    return flat[0], flat[1], tuple(flat[2:]), given[3]


class Tagged(torch.Tensor):
    pass


# What an argument may become that is not dense memory of torch's own, or doesn't fit beside the others.
CHANGES = {
    "strided": lambda t: torch.stack([t, -t], -1)[..., 0],
    "expanded": lambda t: t[..., :1].expand(t.shape),
    "lazily negated": lambda t: torch._neg_view(-t),
    "subclass": lambda t: t.as_subclass(Tagged),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "complex": lambda t: t.to(torch.complex64),
    "conjugate": lambda t: t.to(torch.complex64).conj(),
    "integers": lambda t: t.long(),
    "booleans": lambda t: t > 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
    "empty": lambda t: t[:0],
    "narrower": lambda t: t[..., :-1].contiguous(),
    "one dimension more": lambda t: t[None],
    "one dimension less": lambda t: t[0],
    "four dimensions": lambda t: t.reshape(1, 1, 1, *t.shape)[..., :1].contiguous(),
    "numpy": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "none": lambda t: None,
}
each_change = pytest.mark.parametrize("change", CHANGES)
quietly = pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor", "ignore:Sparse")
