"""What LeakyRNN, CTRNN, resets, alpha, noise and cells refuse, one by one, and in which words."""

import re

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_stack
from rnnfast.testing import BACKENDS
from tests import cells, stacks
from tests.calls import CHANGES, quietly

LEAKING = [rnnfast.LeakyRNN, rnnfast.CTRNN]
each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])

CONSTRUCTORS = [
    ({"alpha": 0.0}, ValueError, "alpha must be in (0, 1], got 0.0"),
    ({"alpha": -0.5}, ValueError, "alpha must be in (0, 1], got -0.5"),
    ({"alpha": 1.5}, ValueError, "alpha must be in (0, 1], got 1.5"),
    ({"alpha": float("nan")}, ValueError, "alpha must be in (0, 1], got nan"),
    ({"alpha": True}, TypeError, "'alpha' must be float or Tensor, not bool"),
    ({"alpha": "0.5"}, TypeError, "'alpha' must be float or Tensor, not str"),
    ({"alpha": None}, TypeError, "'alpha' must be float or Tensor, not NoneType"),
    ({"alpha": torch.ones(4)}, ValueError, "alpha must be a float, or a tensor [5]"),
    ({"alpha": torch.ones(5, dtype=torch.int64)}, ValueError, "of a floating dtype"),
    ({"alpha": torch.tensor([0.1, 0.2, 0.0, 1, 1])}, ValueError, "every alpha must be in (0, 1]"),
    ({"alpha": torch.full((5,), float("nan"))}, ValueError, "every alpha must be in (0, 1]"),
    ({"learn_alpha": True}, ValueError, "a learned alpha must be in (0, 1)"),
    ({"alpha": torch.linspace(0.5, 1, 5), "learn_alpha": True}, ValueError, "a learned alpha must be"),
    ({"alpha": 0.5, "learn_alpha": 1}, TypeError, "'learn_alpha' must be bool, not int"),
    ({"noise_std": -1.0}, ValueError, "noise_std must be a number that is not negative, got -1.0"),
    ({"noise_std": float("inf")}, ValueError, "noise_std must be a number"),
    ({"noise_std": torch.ones(5)}, ValueError, "noise_std must be a number"),
    ({"noise_in_eval": 1}, TypeError, "'noise_in_eval' must be bool, not int"),
    (
        {"nonlinearity": "gelu"},
        ValueError,
        "Unknown nonlinearity 'gelu'. Select from 'tanh', 'relu', 'sigmoid'",
    ),
    ({"backend": "nobody"}, ValueError, "Unknown backend 'nobody'"),
    ({"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
]


@pytest.mark.parametrize("module", LEAKING)
@pytest.mark.parametrize(("options", "error", "message"), CONSTRUCTORS, ids=str)
def test_constructor(options, error, message, module):
    with pytest.raises(error, match=re.escape(message)):
        module(3, 5, **options)


@pytest.mark.parametrize("module", LEAKING)
@pytest.mark.parametrize("name", ["alpha", "noise_std"])
def test_attributes_set_later(name, module):
    rnn = module(3, 5, alpha=0.5)
    for value in (-1, float("nan"), "a", torch.ones(2)):
        with pytest.raises((TypeError, ValueError), match=name):
            setattr(rnn, name, value)
    rnn.nonlinearity = "gelu"
    with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
        rnn(torch.randn(4, 2, 3))


SHAPES = ["empty", "narrower", "one dimension more", "four dimensions", "numpy", "list"]
KINDS = ["float64", "float16", "complex", "conjugate", "float8", "meta", "sparse"]
WRONG = {
    "alpha": [*SHAPES, *KINDS, "integers", "booleans", "quantized", "zeros without memory", "none"],
    "noise": [
        *SHAPES,
        *KINDS,
        "integers",
        "booleans",
        "quantized",
        "zeros without memory",
        "one dimension less",
    ],
    "resets": [*SHAPES, "float64", "integers", "meta", "sparse", "one dimension less"],
}
RIGHT = {
    "alpha": ["strided", "expanded", "lazily negated", "one dimension less"],
    "noise": ["strided", "expanded", "lazily negated", "none"],
    "resets": ["expanded", "none"],
}


def each(changes):
    pairs = [(name, change) for name in changes for change in changes[name]]
    return pytest.mark.parametrize(("name", "change"), pairs, ids=lambda value: value)


def changed(cell, name, change):
    """The arguments of a call, one of which has become something else."""
    problem = cells.make((4, 2, 3, 5), torch.float32, cell, resets="some")
    x, h0, *weights, alpha, noise = problem.tensors.values()
    given = {"alpha": alpha, "noise": noise, "resets": problem.resets}
    return (x, h0, *weights), {**given, name: CHANGES[change](given[name]), "cell": cell}


@quietly
@pytest.mark.parametrize("cell", ["leaky", "ctrnn"])
@each(WRONG)
@each_backend
def test_wrong_tensors(backend, name, change, cell):
    tensors, options = changed(cell, name, change)
    with pytest.raises((TypeError, RuntimeError, ValueError), match=f"{name}|the cell '{cell}' has an alpha"):
        rnn_sequence(*tensors, backend=backend, **options)


@pytest.mark.parametrize("cell", ["leaky", "ctrnn"])
@each(RIGHT)
def test_tensors_of_any_layout(name, change, cell):
    tensors, options = changed(cell, name, change)
    dense = {key: t.clone() if isinstance(t, torch.Tensor) else t for key, t in options.items()}
    torch.testing.assert_close(rnn_sequence(*tensors, **options), rnn_sequence(*tensors, **dense))


@quietly
@pytest.mark.parametrize("module", [rnnfast.RNN, *LEAKING])
@pytest.mark.parametrize("change", WRONG["resets"])
@pytest.mark.parametrize("batch_first", [False, True])
@each_backend
def test_resets_of_modules(backend, batch_first, change, module):
    rnn, right = module(3, 5, batch_first=batch_first, backend=backend), torch.zeros(4, 2, dtype=torch.bool)
    with pytest.raises((TypeError, RuntimeError), match="resets"):
        rnn(torch.randn(4, 2, 3), resets=CHANGES[change](right))
    with pytest.raises(RuntimeError, match=r"resets must be \[4, 2\]"):
        rnn(torch.randn(4, 2, 3), resets=right.T.contiguous())
    with pytest.raises(RuntimeError, match=r"resets must be \[4\]"):
        rnn(torch.randn(4, 3), resets=right)
    with pytest.raises(ValueError, match="resets and packed sequences don't go together"):
        rnn(pack_sequence([torch.randn(4, 3), torch.randn(4, 3)]), resets=right)


def test_cells_and_their_arguments():
    x, h0, *weights, _, _ = cells.make((4, 2, 3, 5), torch.float32, "elman").tensors.values()
    wrong = [
        ({"cell": "gru"}, ValueError, "Unknown cell 'gru'. Select from 'elman', 'leaky', 'ctrnn'."),
        ({"cell": None}, ValueError, "Unknown cell 'None'"),
        ({"cell": "leaky"}, ValueError, "the cell 'leaky' has an alpha"),
        ({"cell": "ctrnn"}, ValueError, "the cell 'ctrnn' has an alpha"),
        ({"alpha": 0.5}, ValueError, "the cell 'elman' has no alpha"),
        ({"cell": "leaky", "alpha": 2}, ValueError, "alpha must be in (0, 1], got 2"),
        ({"cell": "leaky", "alpha": True}, TypeError, "'alpha' must be float or Tensor, not bool"),
        ({"cell": "leaky", "alpha": torch.ones(4)}, RuntimeError, "alpha must be [5]"),
        ({"noise": 1.0}, TypeError, "'noise' must be Tensor, not float"),
        ({"noise": torch.ones(4, 2, 4)}, RuntimeError, "noise must be [8, 5]"),
        ({"noise": torch.ones(2, 4, 5)}, RuntimeError, "noise must be [4, 2, 5]"),
        ({"noise": torch.ones(8, 5)}, RuntimeError, "noise must be [4, 2, 5]"),
        ({"resets": [True]}, TypeError, "'resets' must be Tensor, not list"),
        ({"resets": torch.ones(4, 3, dtype=torch.bool)}, RuntimeError, "resets must be [4, 2]"),
    ]
    for options, error, message in wrong:
        with pytest.raises(error, match=re.escape(message)):
            rnn_sequence(x, h0, *weights, **options)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
        rnn_sequence(x, h0, *weights, "gelu", cell="leaky", alpha=0.5)
    sizes, mask = torch.tensor([2, 2, 2, 2]), torch.ones(4, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="resets and packed sequences don't go together"):
        rnn_sequence(x.flatten(0, 1), h0, *weights, batch_sizes=sizes, resets=mask)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # torch's own, of what torch knows
        rnn_sequence(x[..., :2], h0, *weights, cell="leaky", alpha=0.5)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_what_torch_would_take_is_refused_by_name():
    """Complex numbers, which `auto` leaves to torch where torch has an operator."""
    for module in LEAKING:
        rnn = module(3, 5, alpha=0.5).to(torch.complex64)
        with pytest.raises(RuntimeError, match="dense tensors of"):
            rnn(torch.randn(4, 2, 3, dtype=torch.complex64))
    rnn = rnnfast.RNN(3, 5).to(torch.complex64)
    x, resets = torch.randn(4, 2, 3, dtype=torch.complex64), torch.zeros(4, 2, dtype=torch.bool)
    assert rnn(x)[0].is_complex()
    with pytest.raises(RuntimeError, match="dense tensors of"):
        rnn(x, resets=resets)


def test_rnn_stack_and_operators():
    stack = stacks.make((2, 1, 3, 2, 3, 5), torch.float64, cell="leaky", noise=True)
    call, network = stack.call, stack.call.network
    given = (call.x, call.h0)
    with pytest.raises(ValueError, match="Unknown cell 'gru'"):
        rnn_stack(network._replace(cell="gru"), *given, call.weights)
    with pytest.raises((RuntimeError, ValueError), match="number of RNN parameters"):
        rnn_stack(network._replace(cell="elman"), *given, call.weights)
    with pytest.raises(ValueError, match="an elman cell has nothing beside its output"):
        rnn_stack(network._replace(cell="elman", noise=False), *given, call.weights, inner=True)
    for i, name in ((4, "alpha"), (5, "noise"), (10, "alpha")):
        for change in (lambda t: t[..., :-1], lambda t: t.float(), lambda t: t[None]):
            weights = list(call.weights)
            weights[i] = change(weights[i])
            with pytest.raises(RuntimeError, match=f"{name} must be"):
                rnn_stack(network, *given, tuple(weights))
            fields = ("tanh", 2, [0], True, False, "leaky", True)
            with pytest.raises(RuntimeError, match=f"{name} must be"):
                torch.ops.rnnfast.rnn(*given, weights, None, None, *fields, False, "auto")
            out, h_n, hidden, inner = torch.ops.rnnfast.rnn(
                *given, list(call.weights), None, None, *fields, False, "auto"
            )
            grads = (out, h_n, None)
            needs = [True] * 14
            inputs = (*given, weights, None, None, *fields)
            with pytest.raises(RuntimeError, match=f"{name} must be"):
                torch.ops.rnnfast.rnn_backward(*inputs, out, hidden, inner, *grads, needs, "auto")
            inputs = (*given, list(call.weights), None, None, *fields)
            with pytest.raises(RuntimeError, match="inner must be"):
                torch.ops.rnnfast.rnn_backward(*inputs, out, hidden, change(inner), *grads, needs, "auto")
            with pytest.raises(RuntimeError, match="inner, which a leaky cell"):
                torch.ops.rnnfast.rnn_backward(*inputs, out, hidden, None, *grads, needs, "auto")
    step = (call.x[0], call.h0[0], list(call.weights[:4]), None, None)
    for cell, noise in (("leaky", False), ("elman", True)):
        with pytest.raises(ValueError, match="a single step has no"):
            torch.ops.rnnfast.rnn(*step, "tanh", 1, [0], True, True, cell, noise, False, "auto")
