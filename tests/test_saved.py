"""What a backward pass reads is saved, and nothing else: the rest may be changed after the forward pass."""

import itertools

import pytest
import torch

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS, make

each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])
NAMES = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")


def read_by(wanted, several_steps):
    """The arguments that the gradients of `wanted` read. All but the biases' need no other's than these."""
    read = {"x": "weight_ih", "h0": "weight_hh", "weight_ih": "x", "weight_hh": "h0"}
    return {read[name] for name in wanted if name in read} | ({"weight_hh"} if several_steps else set())


def run(kind, leaves, backend):
    if kind == "step":
        return rnn_step(*leaves, backend=backend)
    if kind == "packed":
        return rnn_sequence(*leaves, batch_sizes=torch.tensor([3, 2, 1]), backend=backend)[0]
    return rnn_sequence(*leaves, backend=backend)[0]


def in_torch(kind, x, h0, *weights):
    if kind == "step":
        return torch.rnn_tanh_cell(x, h0, *weights)
    rest = (h0[None], weights, True, 1, 0.0, True, False)
    if kind == "packed":
        return torch.rnn_tanh(x, torch.tensor([3, 2, 1]), *rest)[0]
    return torch.rnn_tanh(x, *rest, False)[0]


def problem(kind):
    steps = 1 if kind == "1 step" else 4
    lengths = [3, 2, 1] if kind == "packed" else None
    x, *rest = make((steps, 3, 5, 7), torch.float64, lengths=lengths).args
    return [x[0].clone() if kind == "step" else x, *rest]


@each_backend
@pytest.mark.parametrize("kind", ["step", "1 step", "4 steps", "packed"])
def test_every_argument_changed_for_every_gradient(kind, backend):
    """The change of an argument that is read raises; that of another changes no gradient."""
    args = problem(kind)
    for flags in itertools.product([False, True], repeat=6):
        wanted = [name for name, flag in zip(NAMES, flags, strict=True) if flag]
        if not wanted:
            continue
        read = read_by(wanted, kind in ("4 steps", "packed"))
        leaves = [a.clone().requires_grad_(flag) for a, flag in zip(args, flags, strict=True)]
        wrt = [leaf for leaf in leaves if leaf.requires_grad]
        expected = torch.autograd.grad(run(kind, leaves, backend).sum(), wrt)
        for name in NAMES:
            changed = [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves]
            loss = run(kind, changed, backend).sum()
            with torch.no_grad():
                changed[NAMES.index(name)].mul_(3)
            wrt = [leaf for leaf in changed if leaf.requires_grad]
            if name in read:
                with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
                    torch.autograd.grad(loss, wrt)
            else:
                torch.testing.assert_close(torch.autograd.grad(loss, wrt), expected)


@pytest.mark.parametrize("kind", ["step", "1 step", "4 steps"])
@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.parametrize("changed", NAMES)
def test_as_torch(changed, wanted, kind):
    """torch's operators raise for the same changes."""
    raised = []
    for function in (in_torch, lambda kind, *leaves: run(kind, leaves, "cpu")):
        leaves = [
            a.clone().requires_grad_(name == wanted) for name, a in zip(NAMES, problem(kind), strict=True)
        ]
        loss = function(kind, *leaves).sum()
        with torch.no_grad():
            leaves[NAMES.index(changed)].mul_(3)
        try:
            loss.backward()
            raised.append(False)
        except RuntimeError:
            raised.append(True)
    assert raised[0] == raised[1]


@each_backend
def test_an_optimizer_s_step_between_two_backward_passes(backend):
    cell = rnnfast.RNNCell(3, 5, backend=backend)
    theirs = torch.nn.RNNCell(3, 5)
    theirs.load_state_dict(cell.state_dict())
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    grads = []
    for module in (theirs, cell):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        loss = module(x, h).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        loss.backward()
        grads.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(grads[1], grads[0])


@each_backend
def test_a_frozen_layer_whose_state_is_overwritten(backend):
    rnn = rnnfast.RNN(3, 5, backend=backend).requires_grad_(False)
    x, hx = torch.randn(4, 2, 3, requires_grad=True), torch.randn(1, 2, 5)
    (expected,) = torch.autograd.grad(rnn(x, hx)[0].sum(), x)
    output, _ = rnn(x, hx)
    hx.zero_()
    torch.testing.assert_close(torch.autograd.grad(output.sum(), x), (expected,))


@each_backend
@pytest.mark.parametrize("wanted", ["x", "h0", "weight_ih", "weight_hh", "bias_ih"])
def test_second_derivatives_of_one_gradient(wanted, backend):
    """Of what was saved alone."""
    for kind in ("step", "1 step", "4 steps", "packed"):
        args, at = problem(kind), NAMES.index(wanted)

        def of_one(leaf, kind=kind, args=args, at=at):
            return run(kind, [*args[:at], leaf, *args[at + 1 :]], backend)

        assert torch.autograd.gradgradcheck(of_one, args[at].requires_grad_(), fast_mode=True)


@each_backend
def test_a_hook_that_brings_back_something_else(backend):
    """A faulty hook on saved tensors must not reach a kernel."""
    rnn = rnnfast.RNN(3, 5, backend=backend)
    if rnnfast.explain(rnn, torch.randn(4, 2, 3)).backend == "aten":
        pytest.skip("torch's own operator saves for itself")
    for change in (lambda t: t.half(), lambda t: t[..., :1], lambda t: t[:0], lambda t: t.to("meta")):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, change):
            output, _ = rnn(torch.randn(4, 2, 3))
        with pytest.raises((RuntimeError, ValueError)):
            output.sum().backward()
