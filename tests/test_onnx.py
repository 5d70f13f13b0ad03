"""ONNX: the exported model runs in ONNX Runtime with the same result, for any length and batch size."""

import pytest
import torch
from torch.export import Dim

import rnnfast
from rnnfast.functional import rnn_sequence

pytest.importorskip("onnx", reason="needs onnx: pip install --group test")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install --group test")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install --group test")

DYNAMIC = {0: Dim("T", min=1, max=4096), 1: Dim("B", min=1, max=1024)}


def export(module, args, path, dynamic_shapes=None):
    program = torch.onnx.export(
        module.eval(), args, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False
    )
    program.save(path)
    operators = [node.op_type for node in program.model.graph]
    return onnxruntime.InferenceSession(str(path)), operators


def compare(session, module, *args, **tolerance):
    names = [input.name for input in session.get_inputs()]
    actual = session.run(None, {name: arg.numpy() for name, arg in zip(names, args, strict=True)})
    expected = module(*args)
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    expected = [e.detach() for e in expected]
    torch.testing.assert_close([torch.from_numpy(a) for a in actual], expected, **tolerance)


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "stack",
    [
        {},
        {"nonlinearity": "relu", "bias": False},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
        {"batch_first": True},
    ],
    ids=str,
)
def test_rnn(stack, tmp_path):
    """Not a decomposition: one RNN operator of ONNX for each layer and direction."""
    torch.manual_seed(0)
    rnn = rnnfast.RNN(3, 5, **stack)
    session, operators = export(rnn, (torch.randn(4, 2, 3),), tmp_path / "rnn.onnx", (DYNAMIC,))
    assert operators.count("RNN") == len(rnn.all_weights)
    for steps, batch in [(4, 2), (1, 1), (9, 30)]:
        compare(session, rnn, torch.randn(steps, batch, 3))


@pytest.mark.slow
def test_initial_state_and_unbatched_input(tmp_path):
    torch.manual_seed(0)
    rnn = rnnfast.RNN(3, 5)
    args = torch.randn(4, 2, 3), torch.randn(1, 2, 5)
    compare(export(rnn, args, tmp_path / "hx.onnx")[0], rnn, *args)
    x = torch.randn(4, 3)
    compare(export(rnn, (x,), tmp_path / "unbatched.onnx")[0], rnn, x)


def test_cell(tmp_path):
    torch.manual_seed(0)
    cell = rnnfast.RNNCell(3, 5)
    args = torch.randn(2, 3), torch.randn(2, 5)
    compare(export(cell, args, tmp_path / "cell.onnx")[0], cell, *args)


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_unrolled_as_torch_s_are(dtype, tmp_path):
    """ONNX Runtime has the RNN operator in float32 alone."""
    torch.manual_seed(0)
    rnn = rnnfast.RNN(3, 5, num_layers=2, bidirectional=True, dtype=dtype)
    session, operators = export(rnn, (torch.randn(4, 2, 3, dtype=dtype),), tmp_path / "rnn.onnx")
    assert "RNN" not in operators
    # States are at most 1, and rounded after each of the 4 steps of 2 layers, their sums twice before.
    tolerance = 12 * torch.finfo(dtype).eps
    compare(session, rnn, torch.randn(4, 2, 3, dtype=dtype), rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "stack", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str
)
def test_exporter_that_traces(stack, tmp_path):
    """`dynamo=False` sees torch's operator, and makes one RNN operator a layer of it."""
    torch.manual_seed(0)
    rnn = rnnfast.RNN(3, 5, **stack).eval()
    path = str(tmp_path / "rnn.onnx")
    axes = {"x": {0: "0", 1: "1"}}
    torch.onnx.export(rnn, (torch.randn(4, 2, 3),), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    for sizes in [(4, 2, 3), (9, 30, 3)]:
        compare(onnxruntime.InferenceSession(path), rnn, torch.randn(sizes))


@pytest.mark.slow
def test_packed_rows_have_no_counterpart(tmp_path):
    class Packed(torch.nn.Module):
        def forward(self, x, h0, weight_ih, weight_hh, batch_sizes):
            return rnn_sequence(x, h0, weight_ih, weight_hh, batch_sizes=batch_sizes)[0]

    sizes = (6, 3), (2, 5), (5, 3), (5, 5)
    args = (*(torch.zeros(size) for size in sizes), torch.tensor([2, 2, 1, 1]))
    with pytest.raises(Exception, match=r"No ONNX function found for .*rnnfast.rnn"):
        export(Packed(), args, tmp_path / "packed.onnx")
