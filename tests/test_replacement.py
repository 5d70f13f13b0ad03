"""`torch.nn.RNN = rnnfast.RNN`: how people speed up code that they don't own. One process a test."""

import subprocess
import sys
import textwrap

import pytest

SWAP = """
import copy, io, pickle, sys, warnings
import torch
import rnnfast
Theirs, TheirCell = torch.nn.RNN, torch.nn.RNNCell
torch.nn.RNN, torch.nn.RNNCell = rnnfast.RNN, rnnfast.RNNCell
from torch import nn

def raises(kind, text, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind and text in str(error), repr(error)
    else:
        raise AssertionError("no " + kind.__name__)

torch.manual_seed(0)
x = torch.randn(4, 2, 3)
"""

PROGRAMS = {
    "construction and results": """
        torch.manual_seed(1)
        ours = nn.RNN(3, 5, 2, "relu", bidirectional=True)
        torch.manual_seed(1)
        theirs = Theirs(3, 5, 2, "relu", bidirectional=True)
        assert type(ours) is rnnfast.RNN and repr(ours) == repr(theirs)
        torch.testing.assert_close(ours(x), theirs(x))
        cell = nn.RNNCell(3, 5)
        assert type(cell) is rnnfast.RNNCell and cell(x[0]).shape == (2, 5)
        """,
    "errors of the constructor": """
        raises(ValueError, "Unknown nonlinearity 'sin'", lambda: nn.RNN(3, 5, nonlinearity="sin"))
        raises(ValueError, "proj_size argument is only supported for LSTM", lambda: nn.RNN(3, 5, proj_size=2))
        raises(ValueError, "hidden_size must be greater", lambda: nn.RNN(3, 0))
        raises(TypeError, "bias should be of type bool", lambda: nn.RNN(3, 5, bias=1))
        raises(ValueError, "Unknown nonlinearity 'sin'",
               lambda: rnnfast.functional.rnn_step(x[0], x[0], x[0], x[0], nonlinearity="sin"))
        """,
    "errors of the call": """
        rnn, cell = nn.RNN(3, 5), nn.RNNCell(3, 5)
        raises(ValueError, "Expected input to be 2D or 3D, got 1D", lambda: rnn(x[0, 0]))
        raises(RuntimeError, "input.size(-1) must be equal to input_size", lambda: rnn(torch.zeros(4, 2, 9)))
        raises(RuntimeError, "Expected hidden size (1, 2, 5)", lambda: rnn(x, torch.zeros(1, 4, 5)))
        raises(RuntimeError, "hx should also be 3-D", lambda: rnn(x, torch.zeros(2, 5)))
        raises(ValueError, "does not match weight dtype", lambda: rnn(x.double()))
        raises(AttributeError, "hx is of type tuple", lambda: rnn(x, (x, x)))
        raises(ValueError, "Expected input to be 1D or 2D", lambda: cell(x))
        raises(RuntimeError, "Unknown nonlinearity: sin", lambda: nn.RNNCell(3, 5, nonlinearity="sin")(x[0]))
        raises(RuntimeError, "", lambda: cell(x[0], torch.zeros(4, 5)))
        """,
    "calls that torch computes": """
        rnn = nn.RNN(3, 5, 2, backend="aten")
        rnn(x)[0].sum().backward()
        """,
    "copies": """
        for ours, input in ((nn.RNN(3, 5, 2), x), (nn.RNNCell(3, 5), x[0])):
            buffer = io.BytesIO()
            torch.save(ours, buffer)
            buffer.seek(0)
            for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)),
                          torch.load(buffer, weights_only=False)):
                assert type(other) is type(ours)
                torch.testing.assert_close(other(input), ours(input))
        """,
    "modules of torch's class": """
        theirs, ours = Theirs(3, 5), nn.RNN(3, 5)
        for other in (copy.deepcopy(theirs), pickle.loads(pickle.dumps(theirs))):
            assert type(other) is Theirs
            torch.testing.assert_close(other(x), theirs(x))
        assert ours.load_state_dict(theirs.state_dict()) == ([], [])
        assert theirs.load_state_dict(ours.state_dict()) == ([], [])
        expected = theirs(x)
        assert type(rnnfast.convert(theirs)) is rnnfast.RNN
        torch.testing.assert_close(theirs(x), expected)
        assert type(rnnfast.revert(theirs)) is Theirs
        torch.testing.assert_close(theirs(x), expected)
        """,
    "subclasses": """
        class Mine(nn.RNN):
            def __init__(self, size):
                super().__init__(size, 5, batch_first=True)

            def forward(self, input, hx=None):
                return super().forward(input, hx)[0]

        mine = Mine(3)
        assert isinstance(mine, rnnfast.RNN)
        plain = Theirs(3, 5, batch_first=True)
        plain.load_state_dict(mine.state_dict())
        torch.testing.assert_close(mine(x), plain(x)[0])
        """,
    "graphs": """
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.RNN(3, 5))
        expected = model(x)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
        """,
    "training": """
        rnns = nn.RNN(3, 5, 2), Theirs(3, 5, 2)
        rnns[1].load_state_dict(rnns[0].state_dict())
        for rnn in rnns:
            optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                rnn(x)[0].square().sum().backward()
                optimizer.step()
        torch.testing.assert_close(rnns[0].state_dict(), rnns[1].state_dict())
        """,
    "where the class is defined, too": """
        torch.nn.modules.rnn.RNN = rnnfast.RNN
        raises(ValueError, "Unknown nonlinearity 'sin'", lambda: nn.RNN(3, 5, nonlinearity="sin"))
        raises(ValueError, "Expected input to be 2D or 3D, got 1D", lambda: nn.RNN(3, 5)(x[0, 0]))
        """,
}


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_swapped_in(name):
    program = SWAP + textwrap.dedent(PROGRAMS[name])
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
