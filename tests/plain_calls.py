"""What the tests of plain calls share: a spy, a comparison of two ways, and what is not plain."""

import pytest
import torch
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from rnnfast import plain, testing

NAMES = ("step", "sequence", "backward")


@pytest.fixture
def taken(monkeypatch):
    """Which calls went the short way."""
    calls = []

    def spy(name, function):
        def call(*args):
            result = function(*args)
            if result is not None:
                calls.append(name)
            return result

        return call

    for name in NAMES:
        monkeypatch.setattr(plain, name, spy(name, getattr(plain, name)))
    return calls


def both_ways(call):
    """What `call` gives with the short way and without: results, or the type and text of what it raises."""
    outcomes = []
    for ready in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plain, "ready", ready)
            try:
                outcomes.append(call())
            except Exception as error:
                outcomes.append((type(error), str(error)))
    return outcomes


def assert_identical(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.shape == right.shape and left.stride() == right.stride() and left.dtype == right.dtype
        assert left.requires_grad == right.requires_grad
        assert torch.equal(left, right)
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_identical(a, b)
    else:
        assert left == right


def arguments(dtype=torch.float32, steps=3, batch=2, bias=True, step=False, **kwargs):
    case = testing.make((steps, batch, 5, 7), dtype, bias=bias, **kwargs)
    x, *rest = case.args
    return [x[0].clone() if step else x, *rest]


each_dtype = pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)


class Tagged(torch.Tensor):
    pass


def strided(t):
    return torch.stack([t, -t], -1)[..., 0]


def negated(t):
    return torch._neg_view(-t)


# For every argument, what it may become that is not plain.
CHANGES = {
    "strided": strided,
    "expanded": lambda t: t[:1].expand(t.shape),
    "lazily negated": negated,
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
    "empty": lambda t: t[:0],
    "narrower": lambda t: t[..., :-1].contiguous(),
    "one dimension more": lambda t: t[None],
    "one dimension less": lambda t: t[0],
    "four dimensions": lambda t: t.reshape(1, 1, 1, *t.shape)[..., :1].contiguous(),
    "numpy": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "none": lambda t: None,
}


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu"),
    "dispatch mode": Watching,
    "profiler": lambda: profile(),
    "forward AD": torch.autograd.forward_ad.dual_level,
}
