"""Every Triton kernel, forward and backward, against the reference in float64."""

import pytest
import torch

import rnnfast
from rnnfast import dispatch
from rnnfast.backends.base import Problem
from rnnfast.backends.triton import INTERPRETED
from rnnfast.functional import rnn_sequence, rnn_step
from rnnfast.layer import Recurrence, Sequences
from rnnfast.testing import LENGTHS, NAMES, NONLINEARITIES, SHAPES, check, expected, make
from tests.compare import compare_sequence, make_without_hn
from tests.stacks import compare as compare_stack
from tests.stacks import make as make_stack

assert INTERPRETED, "set TRITON_INTERPRET=1: " + __doc__

from rnnfast.kernels import activation, launch, resident, step, step_backward, stepwise, table  # noqa: E402

DTYPES = [torch.float32, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
# The interpreter takes milliseconds for every tile: of the large layers only a few steps.
SMALL = [shape for shape in SHAPES if shape[3] <= 65]
LARGE = [(3, 9, 5, 100), (2, 4, 28, 200), (2, 17, 30, 257)]
each_nonlinearity = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
each_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.fixture(params=["resident", "stepwise"])
def way(request, monkeypatch):
    """Both ways through the recurrence, whatever the size of the layer; returns the kernels that ran."""
    if request.param == "stepwise":
        monkeypatch.setattr(table, "RESIDENT", {})
    ran = []
    run = launch.Launch.run
    monkeypatch.setattr(launch.Launch, "run", lambda self, **k: ran.append(self.name) or run(self, **k))
    yield request.param
    assert {f"{request.param}_forward", f"{request.param}_backward"} <= set(ran), ran


@pytest.mark.parametrize("shape", SMALL, ids=str)
@each_dtype
@each_nonlinearity
@each_direction
def test_dense(shape, dtype, nonlinearity, reverse):
    compare_sequence(make(shape, dtype, nonlinearity), nonlinearity, reverse, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("shape", LARGE, ids=str)
@each_dtype
def test_large_layers(shape, dtype):
    compare_sequence(make(shape, dtype, "tanh"), "tanh", False, "triton")


@each_dtype
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@each_direction
def test_packed(lengths, dtype, reverse, way):
    case = make((0, 0, 5, 19), dtype, "tanh", lengths=lengths)
    compare_sequence(case, "tanh", reverse, "triton")


@pytest.mark.parametrize("lengths", [None, [5, 5, 2, 1]], ids=["dense", "packed"])
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 4, 3, 4, 18), (2, 1, 1, 2, 3, 5)], ids=str)
@each_dtype
def test_stack(shape, dtype, h0, lengths, way):
    """Below the module: layers and directions as the base class of backends puts them together."""
    compare_stack(make_stack(shape, dtype, lengths, h0), "triton")


@pytest.mark.slow
@each_nonlinearity
@each_direction
def test_more_sequences_than_a_tile(nonlinearity, reverse, way):
    """Programs with all, some and none of their sequences still running."""
    lengths = [7] * 3 + [5] * 20 + [2] * 12
    case = make((0, 0, 3, 33), torch.float32, nonlinearity, lengths=lengths)
    compare_sequence(case, nonlinearity, reverse, "triton")
    compare_sequence(make((3, 35, 3, 33), torch.float32, nonlinearity), nonlinearity, reverse, "triton")


@pytest.mark.sample(14)
@pytest.mark.parametrize("shape", SMALL + LARGE, ids=str)
@each_dtype
@each_nonlinearity
def test_step(shape, dtype, nonlinearity):
    case = make((1, *shape[1:]), dtype, nonlinearity)
    out, _, grads = expected(make_without_hn(case), nonlinearity)
    leaves = case.leaves()
    x, *rest = case.args
    actual = rnn_step(x[0], *rest, nonlinearity, backend="triton")
    check("output", actual, out[0], case.tolerance())
    for name, a, e in zip(NAMES, torch.autograd.grad(actual, leaves, case.grad_out[0]), grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())


def test_step_takes_strides():
    """The kernels themselves, without the copies that the layers above make."""
    batch, inputs, hidden = 5, 7, 21
    case = make((1, batch, inputs, hidden), torch.float32)
    out, _, grads = expected(make_without_hn(case), "tanh")
    x, h, w_ih, w_hh, b_ih, b_hh = case.args
    strided = [
        torch.cat([x[0], x[0]], 1)[:, :inputs],
        h.t().contiguous().t(),
        w_ih.repeat_interleave(2, 0)[::2],
        w_hh.t().contiguous().t(),
    ]
    assert not any(t.is_contiguous() for t in strided)
    actual, grad = torch.empty(batch, hidden), case.grad_out[0]
    step.step_forward(*strided, b_ih, b_hh, actual, "tanh", table.TF32).run()
    check("output", actual, out[0], case.tolerance())
    x, h, w_ih, w_hh = strided
    dx, dh = torch.empty(batch, inputs), torch.empty(batch, hidden)
    step_backward.step_backward_input(grad, actual, w_ih, w_hh, dx, dh, "tanh", table.TF32).run()
    dw_ih, dw_hh, db = torch.empty(hidden, inputs), torch.empty(hidden, hidden), torch.empty(hidden)
    step_backward.step_backward_weight(grad, actual, x, h, dw_ih, dw_hh, db, "tanh", table.TF32).run()
    for name, a, e in zip(NAMES, [dx[None], dh, dw_ih, dw_hh, db, db], grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())


@pytest.mark.parametrize("needed", range(6), ids=NAMES)
@pytest.mark.parametrize("kind", ["step", "sequence"])
def test_one_gradient_needed(needed, kind):
    case = make((1, 3, 5, 18), torch.float32)
    grads = expected(make_without_hn(case), "tanh")[2]
    for i, leaf in enumerate(case.leaves()):
        leaf.requires_grad_(i == needed)
    if kind == "step":
        x, *rest = case.args
        rnn_step(x[0], *rest, backend="triton").backward(case.grad_out[0])
    else:
        rnn_sequence(*case.args, backend="triton")[0].backward(case.grad_out)
    for i, name in enumerate(NAMES):
        assert (case.inputs[name].grad is not None) == (i == needed), name
    check(NAMES[needed], case.inputs[NAMES[needed]].grad, grads[needed], case.tolerance())


@pytest.mark.parametrize("used", ["output", "h_n"])
@each_direction
@pytest.mark.parametrize("lengths", [None, [5, 3, 3, 1]], ids=["dense", "packed"])
def test_one_output_used(used, reverse, lengths, way):
    case = make((4, 3, 5, 18), torch.float32, lengths=lengths)
    (case.grad_hn if used == "output" else case.grad_out).zero_()
    grads = expected(case, "tanh", reverse)[2]
    leaves = case.leaves()
    results = rnn_sequence(*case.args, reverse=reverse, batch_sizes=case.batch_sizes, backend="triton")
    which, grad = (0, case.grad_out) if used == "output" else (1, case.grad_hn)
    for name, a, e in zip(NAMES, torch.autograd.grad(results[which], leaves, grad), grads, strict=True):
        check(f"gradient of {name}", a, e, case.tolerance())


def test_nan_and_infinity_stay_in_their_sequence(way):
    """As with torch: NaN reaches every later state of its own sequence, and no other."""
    case = make((3, 4, 5, 18), torch.float32)
    case.inputs["x"][1, 2, 0] = torch.nan
    case.inputs["x"][0, 3, 0] = torch.inf
    leaves = case.leaves()
    ours, _ = rnn_sequence(*case.args, backend="triton")
    theirs, _ = rnn_sequence(*case.args, backend="eager")
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert ours[1:, 2].isnan().all() and not ours[:, [0, 1, 3]].isnan().any()
    torch.autograd.grad(ours.sum(), leaves)
    for nonlinearity in NONLINEARITIES:
        step_out = rnn_step(case.inputs["x"][1], *case.args[1:], nonlinearity, backend="triton")
        assert torch.equal(step_out.isnan().any(1), torch.tensor([False, False, True, False]))


@pytest.mark.slow
def test_uninitialised_memory_is_never_read(way):
    """Deterministic mode fills new memory with NaN, which would show in any result that it reached."""
    torch.use_deterministic_algorithms(True)
    try:
        for lengths in (None, [5, 3, 3, 1]):
            for reverse in (False, True):
                case = make((5, 3, 5, 35), torch.float32, lengths=lengths)
                compare_sequence(case, "tanh", reverse, "triton")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("form", ["tanh", "tanh_exp"])
def test_tanh(form):
    """Over its whole range, the ends and the neighbourhood of zero included."""
    import triton
    import triton.language as tl

    @triton.jit
    def apply(x, y, n, FORM: tl.constexpr):
        at = tl.program_id(0) * 1024 + tl.arange(0, 1024)
        value = tl.load(x + at, mask=at < n)
        tl.store(y + at, activation.activate(value, FORM), mask=at < n)

    apply.fn.__globals__["activation"] = activation
    small = torch.logspace(-30, 2, 6000, base=10)
    x = torch.cat([small, -small, torch.linspace(-10, 10, 4000), torch.tensor([0.0, torch.inf, -torch.inf])])
    y = torch.empty_like(x)
    apply[(-(-len(x) // 1024),)](x, y, len(x), form)
    exact = torch.tanh(x.double())
    error = (y.double() - exact).abs()
    if form == "tanh":
        assert (error <= 3 * torch.finfo(torch.float32).eps * exact.abs()).all()
    else:
        assert error.max() < 4e-7
    assert (y.abs() <= 1).all()
    apply[(1,)](torch.full((4,), torch.nan), y, 4, form)
    assert y[:4].isnan().all()


def test_module():
    """Two layers, both directions, through the module, with packed and padded input."""
    torch.manual_seed(0)
    ours = rnnfast.RNN(6, 20, num_layers=2, bidirectional=True, batch_first=True, backend="triton")
    exact = torch.nn.RNN(6, 20, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64)
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 6)
    lengths = torch.tensor([4, 7, 2])
    for arrange in (
        lambda x: x,
        lambda x: torch.nn.utils.rnn.pack_padded_sequence(x, lengths, True, False),
    ):
        out, h_n = ours(arrange(x))
        wanted, wanted_hn = exact(arrange(x.double()))
        data, wanted_data = (out, wanted) if isinstance(out, torch.Tensor) else (out.data, wanted.data)
        check("output", data, wanted_data, 1e-5)
        check("h_n", h_n, wanted_hn, 1e-5)
        ours.zero_grad()
        exact.zero_grad()
        data.square().sum().backward()
        wanted_data.square().sum().backward()
        for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
            check(f"gradient of {name}", p.grad, q.grad, 1e-5)
    cell = rnnfast.RNNCell(6, 20, backend="triton")
    check("cell", cell(x[0]), torch.nn.RNNCell.forward(cell, x[0]).double(), 1e-6)


@pytest.mark.slow
def test_compiled_and_transformed():
    """What goes round the kernels (transforms) and what sees only the operators (graphs) still works."""
    case = make((3, 2, 4, 18), torch.float32)
    layer = torch.compile(
        lambda *args: rnn_sequence(*args, backend="triton")[0], fullgraph=True, backend="aot_eager"
    )
    out, _, _ = expected(case, "tanh")
    check("compiled", layer(*case.leaves()), out, case.tolerance())
    jacobian = torch.func.jacrev(lambda x: rnn_sequence(x, *case.args[1:], backend="triton")[1])
    assert jacobian(case.args[0].detach()).shape == (2, 18, 3, 2, 4)


def test_empty_batch():
    layer = rnnfast.RNN(3, 4, backend="triton")
    out, h_n = layer(torch.zeros(5, 0, 3, requires_grad=True))
    assert out.shape == (5, 0, 4) and h_n.shape == (1, 0, 4)
    out.sum().backward()
    assert all((p.grad == 0).all() for p in layer.parameters())
    cell = rnnfast.RNNCell(3, 4, backend="triton")
    cell(torch.zeros(0, 3)).sum().backward()
    assert all((p.grad == 0).all() for p in cell.parameters())


@pytest.mark.parametrize(
    ("dtype", "device", "reason"),
    [
        ("bfloat16", "cpu", "multiplies bfloat16 wrongly"),
        ("float64", "cpu", "is not one of float32, bfloat16, float16"),
        ("float32", "cuda", "takes tensors on cpu, these are on cuda"),
    ],
)
def test_refusals(dtype, device, reason):
    problem = Problem("sequence", device, dtype, 3, 4, 2, 5)
    assert reason in dispatch.why_not("triton", problem)
    if device == "cpu":
        with pytest.raises(RuntimeError, match=reason):
            rnnfast.RNN(3, 4, backend="triton", dtype=getattr(torch, dtype))(
                torch.zeros(5, 2, 3, dtype=getattr(torch, dtype))
            )


def test_a_failing_launch_names_kernel_and_sizes():
    state = torch.zeros(2, 20)
    recurrence = Recurrence("tanh", Sequences(1, 2, None, None, False))
    broken = stepwise.stepwise_forward(*[state] * 5, None, None, recurrence, "no such precision")
    with pytest.raises(RuntimeError, match=r"stepwise_forward \(first=0, count=2, B=2, H=20\)"):
        broken.run()


def test_config_says_interpreted():
    assert "interpreted" in rnnfast.show_config()


def test_tiles_do_not_depend_on_the_batch():
    """So that a sequence is computed alike in any batch."""
    rows = {}
    for batch in (1, 17, 300):
        state = torch.empty(batch, 64, device="meta")
        weight = torch.empty(64, 64, device="meta")
        recurrence = Recurrence("tanh", Sequences(1, batch, None, None, False))
        made = resident.resident_forward(state, state, weight, state, state, None, recurrence, "tf32")
        rows[batch] = (made.constants, made.warps)
    assert rows[1] == rows[17] == rows[300]
