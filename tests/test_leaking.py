"""LeakyRNN, CTRNN and the resets of RNN as modules: results, layouts, alpha, noise, copies, errors."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import dispatch, reference, testing
from tests import cells

MODULES = {"elman": rnnfast.RNN, "leaky": rnnfast.LeakyRNN, "ctrnn": rnnfast.CTRNN}
LEAKING = {cell: module for cell, module in MODULES.items() if cell != "elman"}
each_module = pytest.mark.parametrize("cell", MODULES)
each_leaking = pytest.mark.parametrize("cell", LEAKING)
each_backend = pytest.mark.parametrize("backend", ["auto", *cells.solvers("ctrnn", "softplus", resets=True)])
UNITS = torch.linspace(0.2, 1, 5, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def of(cell, *args, alpha=0.3, **options):
    options = options if cell == "elman" else {"alpha": alpha, **options}
    return MODULES[cell](*args, dtype=torch.float64, **options)


def normal(*size):
    return torch.randn(size, dtype=torch.float64)


def in_loops(rnn, cell, x, hx=None, resets=None, noise=None):
    """Output, h_n and the states of the last layer, by the reference; noise is [L * D, T, B, H]."""
    directions = 2 if rnn.bidirectional else 1
    per, last = 4 if rnn.bias else 2, []
    weights = [getattr(rnn, name) for name in rnn._flat_weights_names]
    for layer in range(rnn.num_layers):
        outputs, states = [], []
        for d in range(directions):
            i = layer * directions + d
            mine = [*weights[i * per : (i + 1) * per], None, None][:4]
            h0 = x.new_zeros(x.shape[1], rnn.hidden_size) if hx is None else hx[i]
            alpha = getattr(rnn, "alpha", 1.0)
            added = 0.0 if noise is None else noise[i]
            given = (x, h0, *mine, rnn.nonlinearity, d == 1, cell, alpha, added, resets)
            outputs.append(reference.rnn_sequence(*given)[0])
            every, h_n = reference.all_states(*given)
            states.append(every)
            last.append(h_n)
        x = torch.cat(outputs, -1)
    return x, torch.stack(last), torch.cat(states, -1)


def gradients(rnn, results, x):
    loss = sum(result.sin().sum() for result in results)
    return torch.autograd.grad(loss, [x, *rnn.parameters()])


STACKS = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "num_layers": 3}]


@each_module
@each_backend
@pytest.mark.parametrize("stack", STACKS, ids=str)
@pytest.mark.parametrize("alpha", ["number", "units", "learned", "learned units"])
def test_results_and_gradients(alpha, stack, backend, cell):
    options = {"learn_alpha": True} if "learned" in alpha and cell != "elman" else {}
    units = UNITS * 0.9 if "units" in alpha else 0.3
    rnn = of(cell, 3, 5, alpha=units, backend=backend, **options, **stack)
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    x, hx, resets = normal(6, 2, 3).requires_grad_(), normal(states, 2, 5), torch.rand(6, 2) < 0.3
    expected = in_loops(rnn, cell, x, hx, resets)
    if cell == "ctrnn":
        actual = rnn(x, hx, resets=resets, return_states=True)
    else:
        actual, expected = rnn(x, hx, resets=resets), expected[:2]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(rnn, actual, x), gradients(rnn, expected, x))


@each_backend
@pytest.mark.parametrize(("cell", "states"), [*((cell, False) for cell in MODULES), ("ctrnn", True)])
def test_layouts(cell, states, backend):
    """batch_first, without a batch, packed, in any order: the same as time-major."""
    options = {"return_states": True} if states else {}
    rnn = of(cell, 3, 5, num_layers=2, bidirectional=True, backend=backend)
    turned = of(cell, 3, 5, num_layers=2, bidirectional=True, batch_first=True, backend=backend)
    turned.load_state_dict(rnn.state_dict())
    x, resets = normal(6, 3, 3), torch.rand(6, 3) < 0.3
    results = rnn(x, resets=resets, **options)
    output, h_n, *v = turned(x.transpose(0, 1), resets=resets.T, **options)
    torch.testing.assert_close((output.transpose(0, 1), h_n, *(t.transpose(0, 1) for t in v)), results)
    alone = rnn(x[:, 1], resets=resets[:, 1], **options)
    torch.testing.assert_close(tuple(alone), tuple(t[:, 1] for t in results))
    for module, rows in ((rnn, x[:, 1:2]), (turned, x[:, 1:2].transpose(0, 1)), (rnn, x[:, 1])):
        without = module(rows, **options)  # what native code may read as it is
        expected = rnn(x, **options)
        torch.testing.assert_close(without[0].reshape(6, 10), expected[0][:, 1])
        torch.testing.assert_close(without[1].reshape(4, 5), expected[1][:, 1])
    lengths = [4, 6, 1]
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, h_n, *v = rnn(packed, **options)
    assert isinstance(output, PackedSequence) and all(isinstance(t, PackedSequence) for t in v)
    for i, length in enumerate(lengths):
        expected, last, *every = rnn(x[:length, i], **options)
        for rows, right in zip((output, *v), (expected, *every), strict=True):
            torch.testing.assert_close(pad_packed_sequence(rows)[0][:length, i], right)
        torch.testing.assert_close(h_n[:, i], last)


def test_alpha_of_1_is_rnn():
    """The number 1, which is the default: the very kernel, and the states of a continuous-time network."""
    rnn, leaky, ctrnn = (MODULES[cell](3, 5, 2) for cell in MODULES)
    leaky.load_state_dict(rnn.state_dict())
    ctrnn.load_state_dict(rnn.state_dict())
    x = torch.randn(6, 2, 3)
    assert leaky._network == rnn._network
    for backend in testing.BACKENDS:
        rnn.backend = leaky.backend = backend
        assert all(map(torch.equal, rnn(x), leaky(x))), backend
    output, h_n, states = ctrnn(x, return_states=True)
    torch.testing.assert_close(output, states.tanh())
    assert torch.equal(h_n[-1], states[-1])


@each_leaking
@each_backend
def test_noise(backend, cell):
    """Repeats with the seed whatever computes it, is what is documented, and is there when it should be."""
    rnn = of(cell, 3, 5, 2, bidirectional=True, alpha=UNITS, noise_std=0.5, backend=backend)
    x = normal(6, 2, 3).requires_grad_()
    torch.manual_seed(7)
    actual = rnn(x)
    torch.manual_seed(7)
    xi = torch.randn(4, 12, 5, dtype=torch.float64)
    scale = 0.5 if cell == "leaky" else (2 * UNITS).sqrt() * 0.5
    expected = in_loops(rnn, cell, x, noise=(xi * scale).view(4, 6, 2, 5))[:2]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(rnn, actual, x), gradients(rnn, expected, x))
    torch.manual_seed(7)
    torch.testing.assert_close(rnn(x.transpose(0, 1).contiguous().transpose(0, 1)), actual)
    rnn.eval()
    torch.testing.assert_close(rnn(x), in_loops(rnn, cell, x)[:2])
    rnn.noise_in_eval = True
    torch.manual_seed(7)
    torch.testing.assert_close(rnn(x), actual)
    rnn.noise_std = 0
    torch.testing.assert_close(rnn(x), in_loops(rnn, cell, x)[:2])


@pytest.mark.threads
@each_leaking
def test_noise_on_any_number_of_threads(cell):
    rnn, x, results = of(cell, 3, 70, noise_std=0.5), normal(20, 4, 3), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(7)
            results.append(rnn(x))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results)


def test_long_run_noise_of_a_ctrnn_is_what_it_says():
    rnn = of("ctrnn", 1, 1, nonlinearity="identity", alpha=0.2, noise_std=0.7)
    for parameter in rnn.parameters():
        torch.nn.init.zeros_(parameter)
    states = rnn(torch.zeros(400, 500, 1, dtype=torch.float64))[0][50:]
    assert states.std().item() == pytest.approx(0.7 / (1 - 0.2 / 2) ** 0.5, rel=0.01)


@each_leaking
def test_dropout_cuts_the_stack(cell):
    rnn, x = of(cell, 3, 5, 3, dropout=0.4, alpha=UNITS), normal(6, 2, 3)
    torch.manual_seed(7)
    output, h_n, *_ = rnn(x, resets=torch.rand(6, 2) < 0.3)
    torch.manual_seed(7)
    resets, rows, last = torch.rand(6, 2) < 0.3, x, []
    for layer in range(3):
        rows = torch.dropout(rows, 0.4, True) if layer else rows
        weights = [getattr(rnn, name) for name in rnn._all_weights[layer]]
        rows, final = rnnfast.functional.rnn_sequence(
            rows, torch.zeros_like(h_n[0]), *weights, alpha=UNITS, cell=cell, resets=resets
        )
        last.append(final)
    torch.testing.assert_close((output, h_n), (rows, torch.stack(last)))


# ---- alpha ------------------------------------------------------------------------------------------


@each_leaking
@pytest.mark.parametrize("alpha", [0.3, UNITS * 0.9], ids=["number", "units"])
def test_a_learned_alpha_stays_inside(alpha, cell):
    rnn = of(cell, 3, 5, alpha=alpha, learn_alpha=True)
    torch.testing.assert_close(rnn.alpha, torch.as_tensor(alpha, dtype=torch.float64))
    assert "alpha_logit" in dict(rnn.named_parameters())
    optimizer = torch.optim.SGD(rnn.parameters(), lr=100.0)
    before = rnn.alpha.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        rnn(normal(5, 2, 3))[0].square().mean().backward()
        optimizer.step()
    assert ((rnn.alpha > 0) & (rnn.alpha <= 1)).all() and not torch.equal(rnn.alpha, before)
    rnn.reset_parameters()
    torch.testing.assert_close(rnn.alpha.detach(), before)
    with pytest.raises(AttributeError, match="learned"):
        rnn.alpha = 0.5


@each_leaking
def test_alpha_set_later(cell):
    rnn, x = of(cell, 3, 5), normal(4, 2, 3)
    for alpha in (0.7, UNITS, 1, 0.2, torch.tensor(0.25)):
        rnn.alpha = alpha
        torch.testing.assert_close(rnn(x), in_loops(rnn, cell, x)[:2])
        assert "unit_alpha" in rnn.state_dict() if alpha is UNITS else isinstance(rnn.alpha, float)
    rnn.nonlinearity = "sigmoid"
    torch.testing.assert_close(rnn(x), in_loops(rnn, cell, x)[:2])


@each_leaking
@pytest.mark.parametrize("kind", [{}, {"alpha": UNITS}, {"alpha": UNITS * 0.9, "learn_alpha": True}], ids=str)
def test_copies_dtypes_and_devices(kind, cell):
    rnn, x = of(cell, 3, 5, 2, nonlinearity="softplus", **kind), normal(4, 2, 3)
    right = rnn(x)
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    others = [copy.copy(rnn), copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))]
    for other in [*others, torch.load(file, weights_only=False)]:
        torch.testing.assert_close(other(x), right)
        assert repr(other) == repr(rnn) and other.state_dict().keys() == rnn.state_dict().keys()
    assert all(t.dtype is torch.float32 for t in copy.deepcopy(rnn).float().state_dict().values())
    rough = copy.deepcopy(rnn).bfloat16()(x.bfloat16())
    torch.testing.assert_close(rough[0].double(), right[0], atol=0.05, rtol=0.05)
    with torch.device("meta"):
        meta = of(cell, 3, 5, 2, nonlinearity="softplus", **kind)
    assert all(t.is_meta for t in meta.state_dict().values())
    meta.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(torch.as_tensor(meta.alpha), torch.as_tensor(rnn.alpha))
    meta.load_state_dict(rnn.state_dict())
    torch.testing.assert_close(meta(x), right)
    rnn.flatten_parameters()


def test_the_same_weights_as_rnn_from_the_same_seed():
    states = []
    for cell in MODULES:
        torch.manual_seed(0)
        states.append(of(cell, 3, 5, 2).state_dict())
    torch.testing.assert_close(states[1], states[0])
    torch.testing.assert_close(states[2], states[0])


def test_repr():
    assert (
        repr(rnnfast.LeakyRNN(3, 5, 2, alpha=0.5))
        == "LeakyRNN(3, 5, num_layers=2, nonlinearity=tanh, alpha=0.5)"
    )
    rnn = rnnfast.CTRNN(3, 5, alpha=UNITS / 2, learn_alpha=True, noise_std=0.1, backend="eager")
    assert "alpha=[5], learn_alpha=True, noise_std=0.1" in repr(rnn) and "backend=eager" in repr(rnn)


@each_leaking
def test_explain_convert_revert_script(cell):
    rnn = of(cell, 3, 5)
    explanation = rnnfast.explain(rnn, normal(4, 2, 3))
    assert explanation.problem.cell == cell and cell in explanation.others["aten"]
    assert explanation.backend == dispatch.choose(explanation.problem)
    model = torch.nn.Sequential(rnn, rnnfast.RNN(3, 5))
    assert type(rnnfast.convert(model)[0]) is MODULES[cell]
    with pytest.raises(RuntimeError, match="no counterpart of '0'"):
        rnnfast.revert(model)
    assert type(model[0]) is MODULES[cell] and type(model[1]) is rnnfast.RNN
    with pytest.raises(RuntimeError, match="no counterpart"):
        rnn.revert()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script"):
        torch.jit.script(rnn)
    with pytest.raises(RuntimeError, match=f"backend 'aten' can't run this problem: .*{cell}"):
        of(cell, 3, 5, backend="aten")(normal(4, 2, 3))
