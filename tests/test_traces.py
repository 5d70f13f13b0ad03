"""`torch.jit.trace` and, with backend="aten", `torch.export` record torch's operators, so need no rnnfast."""

import io
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import rnnfast
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.testing import BACKENDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated", "ignore::torch.jit.TracerWarning"),
]
each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])

WITHOUT_RNNFAST = """
import sys
sys.modules["rnnfast"] = None  # importing it raises
import torch
if sys.argv[1].endswith(".pt2"):
    module = torch.export.load(sys.argv[1]).module()
else:
    module = torch.jit.load(sys.argv[1])
args, expected = torch.load(sys.argv[2])
torch.testing.assert_close(module(*args), expected)
"""


def assert_runs_without_rnnfast(path, folder, args, expected):
    torch.save((args, expected), folder / "values.pt")
    command = [sys.executable, "-c", WITHOUT_RNNFAST, str(path), str(folder / "values.pt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class Padded(nn.Module):
    """Padded sequences in and out, packed for the RNN."""

    def __init__(self, **kwargs):
        super().__init__()
        self.rnn = rnnfast.RNN(3, 5, **kwargs)

    def forward(self, x, lengths):
        output, h_n = self.rnn(pack_padded_sequence(x, lengths))
        return pad_packed_sequence(output)[0], h_n


class Both(nn.Module):
    """A stack and a cell that goes on from its state."""

    def __init__(self, backend):
        super().__init__()
        self.rnn = rnnfast.RNN(3, 5, 2, bidirectional=True, backend=backend)
        self.cell = rnnfast.RNNCell(3, 5, backend=backend)

    def forward(self, x):
        output, h_n = self.rnn(x)
        return output, self.cell(x[-1], h_n[-1])


@pytest.mark.sample(2)
@each_backend
def test_a_trace_is_loaded_without_rnnfast(backend, tmp_path):
    model = Both(backend).eval()
    traced = torch.jit.trace(model, torch.randn(4, 2, 3))
    assert "rnnfast::" not in str(traced.inlined_graph)
    x = torch.randn(7, 3, 3)
    expected = tuple(part.detach() for part in model(x))
    for name, module in (("traced", traced), ("frozen", torch.jit.freeze(traced))):
        assert "rnnfast::" not in str(module.inlined_graph)
        module.save(str(tmp_path / f"{name}.pt"))
        assert_runs_without_rnnfast(tmp_path / f"{name}.pt", tmp_path, (x,), expected)


@each_backend
@pytest.mark.parametrize("kwargs", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "deep"])
def test_a_trace_of_packed_sequences_takes_other_batches(kwargs, backend):
    model = Padded(**kwargs, backend=backend).eval()
    traced = torch.jit.trace(model, (torch.randn(6, 4, 3), torch.tensor([6, 5, 3, 1])))
    for lengths in ([6, 5, 4, 4, 2, 1], [2], [3, 3]):
        x = torch.randn(lengths[0], len(lengths), 3)
        torch.testing.assert_close(traced(x, torch.tensor(lengths)), model(x, torch.tensor(lengths)))


def test_a_trace_refuses_what_torch_refuses():
    """The problems that a trace is called with are checked by torch's operator, dtypes and devices too."""
    theirs, ours = nn.RNN(3, 5), rnnfast.RNN(3, 5)
    args = torch.randn(5, 4, 3), torch.randn(1, 4, 5)
    traced = [torch.jit.trace(rnn, args) for rnn in (theirs, ours)]
    x, h = args
    for wrong in ((torch.randn(5, 8, 3), h), (x.half(), h.half()), (x.double(), h), (x[..., :2], h)):
        errors = []
        for trace in traced:
            with pytest.raises(RuntimeError) as caught:
                trace(*wrong)
            errors.append(str(caught.value).splitlines()[-1])
        assert errors[0] == errors[1]


@pytest.mark.parametrize("reverse", [False, True])
def test_functions_are_traced_as_torch_s_operators(reverse):
    weights = [torch.randn(size) for size in ((5, 3), (5, 5), (5,), (5,))]

    def packed(x, h, batch_sizes):
        return rnn_sequence(x, h, *weights, batch_sizes=batch_sizes, reverse=reverse)

    def dense(x, h):
        return rnn_sequence(x, h, *weights, reverse=reverse)

    def step(x, h):
        return rnn_step(x, h, *weights)

    def problem(*lengths):
        rows, batch_sizes = pack_sequence([torch.randn(n, 3) for n in lengths])[:2]
        return rows, torch.randn(len(lengths), 5), batch_sizes

    for function, example, other in (
        (packed, problem(4, 2, 1), problem(6, 6, 3, 2, 1)),
        (dense, (torch.randn(4, 2, 3), torch.randn(2, 5)), (torch.randn(6, 3, 3), torch.randn(3, 5))),
        (step, (torch.randn(2, 3), torch.randn(2, 5)), (torch.randn(4, 3), torch.randn(4, 5))),
    ):
        traced = torch.jit.trace(function, example)
        assert "rnnfast::" not in str(traced.inlined_graph)
        torch.testing.assert_close(traced(*other), function(*other))


def test_a_trace_of_pruned_and_replaced_weights():
    rnn = rnnfast.RNN(3, 5)
    prune.l1_unstructured(rnn, "weight_hh_l0", amount=0.5)
    rnn.bias_ih_l0 = nn.Parameter(torch.ones(5))
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(torch.jit.trace(rnn, x)(x), rnn(x))


@pytest.mark.sample(1)
@pytest.mark.parametrize("strict", [True, False])
def test_export_of_the_aten_backend_is_loaded_without_rnnfast(strict, tmp_path):
    """As torch's own export, for one number of steps."""
    model = Both("aten").eval()
    x = torch.randn(4, 2, 3)
    program = torch.export.export(model, (x,), strict=strict)
    assert "rnnfast" not in str(program.graph)
    torch.export.save(program, str(tmp_path / "model.pt2"))
    expected = tuple(part.detach() for part in model(x))
    assert_runs_without_rnnfast(tmp_path / "model.pt2", tmp_path, (x,), expected)


@pytest.mark.thorough
def test_export_of_other_backends_needs_rnnfast_where_it_is_loaded(tmp_path):
    file = io.BytesIO()
    torch.export.save(torch.export.export(rnnfast.RNN(3, 5), (torch.randn(4, 2, 3),)), file)
    (tmp_path / "model.pt2").write_bytes(file.getvalue())
    load = "import torch, sys; torch.export.load(sys.argv[1])"
    for code, loaded in ((load, False), (f"import rnnfast; {load}", True)):
        command = [sys.executable, "-c", code, str(tmp_path / "model.pt2")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (result.returncode == 0) == loaded, result.stderr
