"""Wrong arguments: the type and text of torch's exception, to which ours may add a cause in brackets."""

import re
import warnings

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast
from rnnfast.testing import BACKENDS


def outcome(call):
    """The type and text of the exception that `call` raises; the call must raise."""
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    pytest.fail(f"no error, but {result!r}")


def same_outcome(theirs, ours):
    expected, actual = outcome(theirs), outcome(ours)
    if expected[0] is TypeError and "__init__()" in expected[1]:
        # Python's own complaint about a signature, which names the class.
        assert actual[0] is TypeError and "__init__()" in actual[1]
    else:
        assert actual[0] is expected[0]
        assert re.fullmatch(re.escape(expected[1]) + r"( \(.* not a Tensor\))?", actual[1])


CONSTRUCTOR = [
    ((10, 0), {}),
    ((10, -1), {}),
    ((0, 5), {}),
    ((-1, 5), {}),
    ((3.0, 5), {}),
    (("3", 5), {}),
    ((3, 5.0), {}),
    ((3, None), {}),
    ((3, 5, 0), {}),
    ((3, 5, -1), {}),
    ((3, 5, 1.5), {}),
    ((3, 5), {"num_layers": "2"}),
    ((3, 5), {"nonlinearity": "sin"}),
    ((3, 5), {"nonlinearity": None}),
    ((3, 5, 1, "TANH"), {}),
    ((0, 5), {"nonlinearity": "sin"}),
    ((3, 5), {"bias": 1}),
    ((3, 5), {"bias": "True"}),
    ((3, 5), {"batch_first": 0}),
    ((3, 5, 2), {"dropout": -0.1}),
    ((3, 5, 2), {"dropout": 1.1}),
    ((3, 5, 2), {"dropout": True}),
    ((3, 5, 2), {"dropout": "much"}),
    ((3, 5, 2), {"dropout": None}),
    ((3, 5), {"proj_size": 2}),
    ((3, 5), {"proj_size": 0}),
    ((3, 5), {"dtype": "float32"}),
    ((3, 5), {"dtype": torch.int64}),
    ((3, 5), {"device": "nowhere"}),
    ((3, 5), {"nonsense": 1}),
    ((3,), {}),
    ((), {}),
]


@pytest.mark.parametrize("args, kwargs", CONSTRUCTOR, ids=str)
def test_constructor(args, kwargs):
    same_outcome(lambda: torch.nn.RNN(*args, **kwargs), lambda: rnnfast.RNN(*args, **kwargs))


@pytest.mark.parametrize(
    "args, kwargs", [((3, -5), {}), ((3.0, 5), {}), ((3,), {}), ((3, 5), {"device": "x"})]
)
def test_cell_constructor(args, kwargs):
    same_outcome(lambda: torch.nn.RNNCell(*args, **kwargs), lambda: rnnfast.RNNCell(*args, **kwargs))


def test_dropout_with_one_layer_warns_as_torch_does():
    texts = []
    for cls in (torch.nn.RNN, rnnfast.RNN):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cls(3, 5, dropout=0.5)
        texts.append([(w.category, str(w.message)) for w in caught])
    assert texts[0] == texts[1] and len(texts[0]) == 1


def packed(features=3, lengths=(4, 2)):
    return pack_sequence([torch.zeros(n, features) for n in lengths])


# name -> (constructor's keywords, what is done to the module, input, hx)
CALLS = {
    "no dimensions": ({}, None, torch.zeros(()), None),
    "1 dimension": ({}, None, torch.zeros(3), None),
    "4 dimensions": ({}, None, torch.zeros(4, 2, 3, 3), None),
    "input_size": ({}, None, torch.zeros(4, 2, 9), None),
    "input_size, unbatched": ({}, None, torch.zeros(4, 9), None),
    "input_size, empty batch": ({}, None, torch.zeros(4, 0, 9), None),
    "dtype": ({}, None, torch.zeros(4, 2, 3).double(), None),
    "dtype, half": ({}, None, torch.zeros(4, 2, 3).half(), None),
    "dtype, integers": ({}, None, torch.zeros(4, 2, 3, dtype=torch.int64), None),
    "dtype, unbatched": ({}, None, torch.zeros(4, 3).double(), None),
    "dtype, complex": ({}, None, torch.zeros(4, 2, 3, dtype=torch.complex64), None),
    "no steps": ({}, None, torch.zeros(0, 2, 3), None),
    "no steps, batch_first": ({"batch_first": True}, None, torch.zeros(2, 0, 3), None),
    "no steps, unbatched": ({}, None, torch.zeros(0, 3), None),
    "hx dimensions": ({}, None, torch.zeros(4, 2, 3), torch.zeros(2, 5)),
    "hx 4 dimensions": ({}, None, torch.zeros(4, 2, 3), torch.zeros(1, 1, 2, 5)),
    "hx dimensions, unbatched": ({}, None, torch.zeros(4, 3), torch.zeros(1, 1, 5)),
    "hx layers": ({}, None, torch.zeros(4, 2, 3), torch.zeros(2, 2, 5)),
    "hx layers, deep": (
        {"num_layers": 2, "bidirectional": True},
        None,
        torch.zeros(4, 2, 3),
        torch.zeros(2, 2, 5),
    ),
    "hx batch": ({}, None, torch.zeros(4, 2, 3), torch.zeros(1, 4, 5)),
    "hx batch, batch_first": ({"batch_first": True}, None, torch.zeros(4, 2, 3), torch.zeros(1, 2, 5)),
    "hx hidden_size": ({}, None, torch.zeros(4, 2, 3), torch.zeros(1, 2, 6)),
    "hx hidden_size, unbatched": ({}, None, torch.zeros(4, 3), torch.zeros(1, 6)),
    "hx dtype": ({}, None, torch.zeros(4, 2, 3), torch.zeros(1, 2, 5).double()),
    "hx device": ({}, None, torch.zeros(4, 2, 3), torch.zeros(1, 2, 5, device="meta")),
    "hx is a tuple": ({}, None, torch.zeros(4, 2, 3), (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))),
    "input is a list": ({}, None, [[1.0, 2.0, 3.0]], None),
    "input is None": ({}, None, None, None),
    "input device": ({}, None, torch.zeros(4, 2, 3, device="meta"), None),
    "weight dtype": ({}, lambda m: m.weight_hh_l0.data.double(), torch.zeros(4, 2, 3), None),
    "packed, input_size": ({}, None, packed(9), None),
    "packed, hx batch": ({}, None, packed(), torch.zeros(1, 4, 5)),
    "packed, hx hidden_size": ({}, None, packed(), torch.zeros(1, 2, 6)),
    "packed, hx dimensions": ({}, None, packed(), torch.zeros(2, 5)),
    "packed, dtype": ({}, None, PackedSequence(packed().data.double(), packed().batch_sizes), None),
}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("name", CALLS)
def test_call(name, backend):
    kwargs, change, input, hx = CALLS[name]
    modules = [torch.nn.RNN(3, 5, **kwargs), rnnfast.RNN(3, 5, **kwargs, backend=backend)]
    if change is not None:
        for module in modules:
            module.weight_hh_l0 = torch.nn.Parameter(change(module))
    theirs, ours = (lambda m=m: m(input, hx) for m in modules)
    same_outcome(theirs, ours)


# name -> (constructor's keywords, input, hx)
CELL_CALLS = {
    "no dimensions": ({}, torch.zeros(()), None),
    "3 dimensions": ({}, torch.zeros(4, 2, 3), None),
    "hx 4 dimensions": ({}, torch.zeros(2, 3), torch.zeros(2, 1, 1, 5)),
    "input_size": ({}, torch.zeros(2, 9), None),
    "input_size, unbatched": ({}, torch.zeros(9), None),
    "hx hidden_size": ({}, torch.zeros(2, 3), torch.zeros(2, 6)),
    "hx batch": ({}, torch.zeros(2, 3), torch.zeros(4, 5)),
    "hx batch of one": ({}, torch.zeros(2, 3), torch.zeros(1, 5)),
    "hx unbatched, input not": ({}, torch.zeros(2, 3), torch.zeros(5)),
    "input unbatched, hx not": ({}, torch.zeros(3), torch.zeros(2, 5)),
    "dtype": ({}, torch.zeros(2, 3).double(), None),
    "dtype, integers": ({}, torch.zeros(2, 3, dtype=torch.int64), None),
    "hx dtype": ({}, torch.zeros(2, 3), torch.zeros(2, 5).double()),
    "hx device": ({}, torch.zeros(2, 3), torch.zeros(2, 5, device="meta")),
    "nonlinearity": ({"nonlinearity": "sin"}, torch.zeros(2, 3), None),
    "nonlinearity and input_size": ({"nonlinearity": "sin"}, torch.zeros(2, 9), None),
    "input is None": ({}, None, None),
    "hx is a tuple": ({}, torch.zeros(2, 3), (torch.zeros(2, 5), torch.zeros(2, 5))),
}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("name", CELL_CALLS)
def test_cell_call(name, backend):
    kwargs, input, hx = CELL_CALLS[name]
    theirs = torch.nn.RNNCell(3, 5, **kwargs)
    ours = rnnfast.RNNCell(3, 5, **kwargs, backend=backend)
    same_outcome(lambda: theirs(input, hx), lambda: ours(input, hx))


@pytest.mark.parametrize("build", [torch.nn.RNN, rnnfast.RNN])
def test_load_state_dict(build):
    """A state_dict that doesn't fit is refused with the names of what is missing or wrong."""
    with pytest.raises(RuntimeError, match=re.escape("size mismatch for weight_ih_l0")):
        build(3, 5).load_state_dict(torch.nn.RNN(4, 5).state_dict())
    with pytest.raises(RuntimeError, match=re.escape('Missing key(s) in state_dict: "weight_ih_l1"')):
        build(3, 5, 2).load_state_dict(torch.nn.RNN(3, 5).state_dict())
