"""Attributes set after construction: obeyed as torch obeys them, or torch's error with the name of one."""

import copy
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from tests.pairs import flat, pair

STACKS = {
    "one layer": {},
    "no bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "deep": {"num_layers": 2, "bidirectional": True},
    "deep, no bias": {"num_layers": 2, "bias": False},
}
# Every attribute of RNNBase with values that torch obeys, and with some that it rejects.
VALUES = {
    "mode": ["RNN_TANH", "RNN_RELU", "LSTM", "x", None, ["RNN_TANH"]],
    "nonlinearity": ["tanh", "relu", "x", None],
    "bias": [True, False, 1, None],
    "batch_first": [True, False, 1, None],
    "bidirectional": [True, False, 1, 0, None],
    "num_layers": [0, 1, 2, 3, "2", 1.0, True],
    "dropout": [0, 0.5, 1, -1, 2, True, "a", None],
    "input_size": [3, 7, 3.0, "3", None],
    "hidden_size": [5, 7, 5.0, None],
    "proj_size": [0, 2, 5, -1, None],
    "training": [True, False, 1, None],
}
CELL_VALUES = {
    "nonlinearity": ["tanh", "relu", "x", None],
    "bias": [True, False, None],
    "input_size": [3, 7, None],
    "hidden_size": [5, 7, 5.0, None],
    "training": [True, None],
}


def outcome(module, *args):
    """What a call gives: the tensors, or the exception."""
    torch.manual_seed(1)
    try:
        return flat(module(*args))
    except Exception as error:
        return error


def same_outcome(theirs, ours, name, *args):
    """The same results, or torch's exception; True if it was the latter."""
    expected, actual = outcome(theirs, *args), outcome(ours, *args)
    if not isinstance(expected, Exception):
        torch.testing.assert_close(actual, expected)
        return False
    assert type(actual) is type(expected), actual
    assert str(actual).startswith(str(expected))
    return True


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", VALUES)
def test_set_later(name, stack):
    states = 4 if "bidirectional" in STACKS[stack] else STACKS[stack].get("num_layers", 1)
    x, hx = torch.randn(4, 4, 3).double(), torch.randn(states, 4, 5).double()
    packed = pack_sequence([torch.randn(n, 3).double() for n in (4, 2, 1)])
    calls = [(x,), (x, hx), (x[:, 0],), (x[:, 0], hx[:, 0]), (packed,)]
    raised = []
    for value in VALUES[name]:
        for args in calls:
            modules = pair(3, 5, **STACKS[stack])
            for module in modules:
                setattr(module, name, value)
            raised.append(same_outcome(*modules, name, *args))
    assert not all(raised)


@pytest.mark.parametrize("name", CELL_VALUES)
def test_set_later_on_a_cell(name):
    x, hx = torch.randn(2, 3).double(), torch.randn(2, 5).double()
    for value in CELL_VALUES[name]:
        for args in [(x,), (x, hx), (x[0],), (x[0], hx[0])]:
            modules = pair(3, 5, cell=True)
            for module in modules:
                setattr(module, name, value)
            same_outcome(*modules, name, *args)


@pytest.mark.parametrize("via", ["convert", "deepcopy", "pickle", "vars"])
@pytest.mark.parametrize("name, value", [("mode", "RNN_RELU"), ("bias", False), ("batch_first", True)])
def test_set_before_the_module_becomes_ours_or_is_copied(name, value, via):
    theirs, ours = pair(3, 5)
    setattr(theirs, name, value)
    if via == "convert":
        ours = rnnfast.convert(copy.deepcopy(theirs))
    elif via == "vars":
        ours = rnnfast.convert(copy.deepcopy(theirs))
        again = rnnfast.RNN.__new__(rnnfast.RNN)
        again.__dict__.update(ours.__dict__)
        ours = again
    else:
        setattr(ours, name, value)
        ours = copy.deepcopy(ours) if via == "deepcopy" else pickle.loads(pickle.dumps(ours))
    x = torch.randn(4, 2, 3).double()
    same_outcome(theirs, ours, name, x)
    for module in (theirs, ours):
        setattr(module, name, {"mode": "RNN_TANH", "bias": True, "batch_first": False}[name])
    assert not same_outcome(theirs, ours, name, x)


@pytest.mark.parametrize(
    "name, value",
    [("bias", False), ("num_layers", 2), ("bidirectional", True), ("mode", "LSTM"), ("dropout", "a")],
)
def test_the_error_names_the_attribute(name, value):
    rnn = rnnfast.RNN(3, 5)
    setattr(rnn, name, value)
    with pytest.raises((RuntimeError, TypeError, AssertionError), match=rf"{name} is {value!r}"):
        rnn(torch.zeros(4, 2, 3))


@pytest.mark.parametrize("name, sizes", [("weight_ih_l0", (5, 7)), ("weight_hh_l0", (7, 7))])
@pytest.mark.parametrize("how", ["attribute", "data", "functional_call"])
def test_weights_of_other_sizes_than_the_module_states(name, sizes, how):
    """Weights that go with each other and with the input, but not with input_size and hidden_size."""
    replaced = {name: torch.zeros(sizes)}
    if name == "weight_hh_l0":
        replaced |= {"weight_ih_l0": torch.zeros(7, 3)}
        replaced |= {bias: torch.zeros(7) for bias in ("bias_ih_l0", "bias_hh_l0")}
    x = torch.zeros(4, 2, 7 if name == "weight_ih_l0" else 3)

    def call(module):
        if how == "functional_call":
            return torch.func.functional_call(module, replaced, (x,))
        for name, value in replaced.items():
            if how == "data":
                getattr(module, name).data = value
            else:
                setattr(module, name, torch.nn.Parameter(value))
        return module(x)

    for module in pair(3, 5, dtype=torch.float32):
        with pytest.raises(RuntimeError, match=r"input\.size|hidden|size|shape"):
            call(module)


@pytest.mark.parametrize(
    "value", [np.zeros((1, 2, 5), "float32"), [[[0.0] * 5] * 2], 3], ids=["ndarray", "list", "int"]
)
def test_arguments_that_are_no_tensors_are_named(value):
    x, cell_x = torch.zeros(4, 2, 3), torch.zeros(2, 3)
    packed = pack_sequence([torch.zeros(4, 3), torch.zeros(2, 3)])
    kind = type(value).__name__
    calls = [(False, x), (False, x[0]), (False, packed), (True, cell_x), (True, cell_x[0])]
    for cell, input in calls:
        theirs, ours = pair(3, 5, cell=cell, dtype=torch.float32)
        for name, args in (("hx", (input, value)), ("input", (value,))):
            expected = outcome(theirs, *args)
            assert isinstance(expected, Exception)
            text = re.escape(f"{expected} ({name} is of type {kind}, not a Tensor)")
            with pytest.raises(type(expected), match=f"^{text}$"):
                ours(*args)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_weight_set_to_none(name, layers):
    theirs, ours = pair(3, 5, num_layers=layers)
    weights = [getattr(module, name) for module in (theirs, ours)]
    for module in (theirs, ours):
        setattr(module, name, None)
    x = torch.randn(4, 2, 3).double()
    assert same_outcome(theirs, ours, name, x)
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        ours(x)
    for module, weight in zip((theirs, ours), weights, strict=True):
        setattr(module, name, weight)
    assert not same_outcome(theirs, ours, name, x)


@pytest.mark.parametrize("name", ["bias", "batch_first", "training", "mode", "num_layers"])
def test_deleted(name):
    theirs, ours = pair(3, 5)
    for module in (theirs, ours):
        delattr(module, name)
        module.dropout = 0
    assert same_outcome(theirs, ours, name, torch.randn(4, 2, 3).double())


def test_what_torch_computes_is_not_taken_back():
    """proj_size, which torch looks at for the size of hx alone, and sizes that are equal to integers."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, ours = pair(3, 5)
        for module in (theirs, ours):
            module.proj_size = module.hidden_size
            module.input_size = 3.0
        assert not same_outcome(theirs, ours, "proj_size", torch.randn(4, 2, 3).double())
