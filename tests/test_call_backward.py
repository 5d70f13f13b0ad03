"""A call of saved tensors: native code and its Python twin compute the same and take no other tensors."""

import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode

from rnnfast import testing
from rnnfast.call import READY, made, read
from rnnfast.functional import run
from tests.calls import (
    CHANGES,
    NETWORKS,
    Tagged,
    arguments,
    each_dtype,
    each_network,
    quietly,
    replaced,
)

if not READY:
    pytest.skip("needs the native extension and a torch with DLPack's C functions", allow_module_level=True)


# ---- the native Call and its twin -------------------------------------------------------------------


def results_and_gradients(call, leaves, backend="cpu", gradient=lambda out: out.detach().cos()):
    results = run(call, backend)[:2]
    return *results, *torch.autograd.grad(results, leaves, [gradient(r) for r in results])


@each_network
@each_dtype
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_same_bits(steps, packed, dtype, network):
    given = arguments(network, dtype, packed and not network.step, steps)
    calls = [make(network, *given) for make in (read, made)]
    for left, right in zip(*[run(call, "cpu") for call in calls], strict=True):
        assert torch.equal(left, right) and not left.requires_grad
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]
    for left, right in zip(*[results_and_gradients(call, leaves) for call in calls], strict=True):
        assert torch.equal(left, right) and left.stride() == right.stride()


@pytest.mark.parametrize("backend", testing.BACKENDS)
def test_the_same_problem_for_every_backend(backend):
    network = NETWORKS["stack"]
    given = arguments(network, torch.float64)
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]
    found = [results_and_gradients(make(network, *given), leaves, backend) for make in (read, made)]
    torch.testing.assert_close(*found)


# ---- bare, and having the saved tensors -------------------------------------------------------------

WRONG = [
    "float64",
    "float16",
    "integers",
    "narrower",
    "one dimension more",
    "one dimension less",
    "meta",
    "empty",
]
each_maker = pytest.mark.parametrize("make", [read, made], ids=["native", "twin"])


@each_maker
@each_network
@pytest.mark.parametrize("change", WRONG)
def test_a_call_has_no_other_tensors(change, network, make):
    given = arguments(network, packed=not network.step)
    bare = make(network, *given).bare()
    again = bare.having(*given)
    assert (again.x, again.h0, again.batch_sizes) == (given[0], given[1], given[3])
    assert all(a is b for a, b in zip(again.weights, given[2], strict=True))
    for index, tensor in enumerate((*given[:2], *given[2])):
        with pytest.raises(RuntimeError, match="is not what the forward pass of this call had"):
            bare.having(*replaced(given, index, CHANGES[change](tensor)))
        assert bare.having(*replaced(given, index, None)).network is network
    with pytest.raises(RuntimeError, match="weights must be a tuple of"):
        bare.having(*given[:2], given[2][:-1], given[3])


@each_maker
def test_a_call_has_no_other_batch_sizes(make):
    network = NETWORKS["stack"]
    given = arguments(network, packed=True)
    bare = make(network, *given).bare()
    for sizes in ([2, 2], [2, 2, 2, 2], [3, 2, 1], [2, 1, 3], [2, 2, 3], [2, 4, 0], [2, 3, 1]):
        with pytest.raises(RuntimeError, match="batch_sizes are not those"):
            bare.having(*given[:3], torch.tensor(sizes))
    with pytest.raises(RuntimeError, match="batch_sizes are not those"):
        bare.having(*given[:3], given[3].int())


@each_maker
@pytest.mark.parametrize(
    "change", ["strided", "lazily negated", "subclass", "sparse", "zeros without memory"]
)
@quietly
def test_saved_tensors_are_made_dense(change, make):
    if change == "subclass" and make is made:
        return  # whose backward pass is then an operator's
    network = NETWORKS["layer"]
    given = arguments(network)
    for index, tensor in enumerate((*given[:2], *given[2])):
        call = make(network, *given).bare().having(*replaced(given, index, CHANGES[change](tensor)))
        kept = [call.x, call.h0, *call.weights][index]
        expected = CHANGES[change](tensor)
        torch.testing.assert_close(kept, expected.to_dense() if expected.is_sparse else 1 * expected)
        assert kept.is_contiguous() and not kept.is_neg()


@pytest.mark.parametrize("network", [NETWORKS["step"], NETWORKS["stack"]], ids=["step", "stack"])
def test_backward_lacks_or_rejects(network):
    """What native code needs is there and fits, whoever calls."""
    given = arguments(network, packed=not network.step)
    call = read(network, *given)
    out, *rest = call.forward(4, 1)
    hidden = rest[1] if rest else None
    h_n = None if network.step else rest[0]
    needs = (True,) * (2 + len(given[2]))
    right = [out, hidden, out, h_n, needs, 1]
    assert None not in call.backward(*right)
    for i, tensor in enumerate(right[:4]):
        for change in WRONG if tensor is not None else ():
            wrong = [*right[:i], CHANGES[change](tensor), *right[i + 1 :]]
            with pytest.raises(RuntimeError, match="is not what the forward pass of this call had"):
                call.backward(*wrong)
    for flags in ((), needs[1:], list(needs)):
        with pytest.raises(RuntimeError, match="needs must be a tuple of"):
            call.backward(*right[:4], flags, 1)
    lacking = [call.bare(), call.bare().having(given[0], given[1], given[2], None)][
        : 1 if network.step else 2
    ]
    lacking += [call.bare().having(*replaced(given, i, None)) for i in (0, 2, 3)]
    for other in lacking:
        with pytest.raises(RuntimeError, match="a tensor that this backward pass reads is missing"):
            other.backward(*right)
    with pytest.raises(RuntimeError, match="this call has no tensors"):
        call.bare().forward(4, 1)
    assert call.backward(*right[:4], (False,) * len(needs), 1) == (None,) * len(needs)


class Doubling(TorchFunctionMode):
    """Makes every new tensor twice as large."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return (
            torch.cat([result, result]) if function in (torch.Tensor.new_empty, torch.empty_like) else result
        )


def test_a_new_tensor_is_looked_at():
    call = read(NETWORKS["layer"], *arguments(NETWORKS["layer"]))
    with Doubling(), pytest.raises(RuntimeError, match="a new tensor has another shape"):
        call.forward(4, 1)
    with torch.device("meta"):
        assert call.forward(4, 1)[0].device.type == "cpu"


# ---- what autograd sends and saves ------------------------------------------------------------------

# What may come back that isn't a dense tensor of torch's own type.
GRADIENTS = {
    "expanded": lambda out: torch.ones((), dtype=out.dtype).expand_as(out),
    "strided": lambda out: CHANGES["strided"](out.detach().cos()),
    "transposed": lambda out: torch.arange(out.numel()).to(out).view(out.shape[::-1]).mT.reshape(out.shape),
    "permuted": lambda out: out.detach().permute(*reversed(range(out.dim()))).contiguous().mT.reshape_as(out),
    "lazily negated": lambda out: torch._neg_view(out.detach().cos()),
    "subclass": lambda out: out.detach().cos().as_subclass(Tagged),
    "sparse": lambda out: out.detach().cos().to_sparse(),
    "zeros without memory": lambda out: torch._efficientzerotensor(out.shape),
}


@quietly
@pytest.mark.parametrize("gradient", GRADIENTS)
@each_network
def test_gradients_of_any_layout(network, gradient):
    given = arguments(network)
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]

    def dense(out):
        sent = GRADIENTS[gradient](out)
        return sent.to_dense() if sent.is_sparse else 1 * sent.as_subclass(torch.Tensor)

    expected = results_and_gradients(read(network, *given), leaves, gradient=dense)
    actual = results_and_gradients(read(network, *given), leaves, gradient=GRADIENTS[gradient])
    torch.testing.assert_close([t.as_subclass(torch.Tensor) for t in actual], [*expected], rtol=0, atol=0)


UNPACKED = {
    "a copy": lambda t: t.clone(),
    "a view": lambda t: torch.stack([t, t], -1)[..., 0],
    "a parameter": lambda t: torch.nn.Parameter(t.clone(), False),
}


@pytest.mark.parametrize("unpack", UNPACKED)
@each_network
def test_hooks_on_saved_tensors(network, unpack):
    given = arguments(network, packed=not network.step)
    leaves = [t.requires_grad_() for t in (*given[:2], *given[2])]
    expected = results_and_gradients(read(network, *given), leaves)

    def bring_back(tensor):
        return UNPACKED[unpack](tensor) if tensor.is_floating_point() else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), bring_back):
        actual = results_and_gradients(read(network, *given), leaves)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each_maker
def test_references_are_given_back(make):
    network = NETWORKS["stack"]
    given = arguments(network, packed=True)
    wrong, short = torch.randn(6, 6), torch.tensor([2, 2])
    held = [network, *given[:2], *given[2], given[2], given[3], wrong, short, None, torch.float32]
    leaves = [t.requires_grad_() for t in (given[0], *given[2])]

    def use():
        for _ in range(300):
            call = make(network, *given)
            results_and_gradients(call, leaves)
            read(network, wrong, *given[1:])
            read(network, *given[:3], short)
            for other in ((wrong, *given[1:]), (*given[:3], short), (*given[:2], given[2][1:], given[3])):
                with pytest.raises(RuntimeError):
                    call.bare().having(*other)
            call.bare().having(None, None, (None,) * len(given[2]), None)

    use()
    before = [sys.getrefcount(thing) for thing in held]
    use()
    after = [sys.getrefcount(thing) for thing in held]
    assert all(abs(a - b) < 200 for a, b in zip(after, before, strict=True)), (before, after)
