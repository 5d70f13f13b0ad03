"""What other parts of torch do with modules: pruning, parametrizations, tying, threads, tools."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune
from torch.profiler import profile
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import rnnfast
from rnnfast.testing import BACKENDS
from tests.pairs import assert_same, pair

each_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def normal(*size):
    return torch.randn(size, dtype=torch.float64)


@each_backend
def test_pruning(backend):
    theirs, ours = pair(3, 5, num_layers=2, backend=backend)
    for module in (theirs, ours):
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
        prune.l1_unstructured(module, "weight_ih_l1", amount=3)
    assert_same(theirs, ours, normal(4, 2, 3))
    for module in (theirs, ours):
        prune.remove(module, "weight_hh_l0")
    assert (ours.weight_hh_l0 == 0).sum() >= 12
    assert_same(theirs, ours, normal(4, 2, 3))


@each_backend
@pytest.mark.parametrize("name", ["spectral_norm", "orthogonal", "weight_norm"])
def test_parametrizations(name, backend):
    """The weight that a parametrization computes is used, and its gradient reaches what it computes from."""
    ours = rnnfast.RNN(3, 5, backend=backend).double()
    getattr(parametrizations, name)(ours, "weight_hh_l0")
    plain = rnnfast.RNN(3, 5, backend=backend).double().eval()
    ours.eval()
    weight = ours.weight_hh_l0
    values = {name: p for name, p in ours.named_parameters() if "parametrizations" not in name}
    x = normal(4, 2, 3)
    expected, _ = torch.func.functional_call(plain, {**values, "weight_hh_l0": weight}, (x,))
    output, _ = ours(x)
    torch.testing.assert_close(output, expected)
    sources = list(ours.parametrizations.weight_hh_l0.parameters())
    actual = torch.autograd.grad(output.sin().sum(), sources)
    torch.testing.assert_close(actual, torch.autograd.grad(expected.sin().sum(), sources))
    parametrize.remove_parametrizations(ours, "weight_hh_l0")
    torch.testing.assert_close(ours(x)[0], output)


@each_backend
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weight_norm_by_hooks(backend):
    theirs, ours = pair(3, 5, backend=backend)
    for module in (theirs, ours):
        torch.nn.utils.weight_norm(module, "weight_hh_l0")
    x = normal(4, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@each_backend
def test_tied_weights(backend):
    """One parameter in two layers collects both gradients."""
    theirs, ours = pair(5, 5, num_layers=2, backend=backend)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_ih_l0
        assert len(list(module.parameters())) == 6
    assert_same(theirs, ours, normal(4, 2, 5))


@each_backend
def test_replaced_weights_are_used(backend):
    theirs, ours = pair(3, 5, backend=backend)
    x = normal(4, 2, 3)
    before, _ = ours(x)
    for module in (theirs, ours):
        module.weight_hh_l0 = torch.nn.Parameter(torch.eye(5).double())
        module.bias_ih_l0.data = torch.ones(5).double()
    assert not torch.equal(ours(x)[0], before)
    torch.testing.assert_close(ours(x), theirs(x))


def test_flatten_parameters_and_other_methods_of_the_base_class():
    theirs, ours = pair(3, 5, num_layers=2, bidirectional=True)
    ours.flatten_parameters()
    names = [[n for n, _ in module.named_parameters()] for module in (theirs, ours)]
    assert names[0] == names[1]
    for layer, other in zip(ours.all_weights, theirs.all_weights, strict=True):
        torch.testing.assert_close(list(layer), list(other))
    torch.manual_seed(3)
    theirs.reset_parameters()
    torch.manual_seed(3)
    ours.reset_parameters()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@each_backend
def test_meta_device_and_deferred_initialisation(backend):
    with torch.device("meta"):
        model = torch.nn.Sequential(rnnfast.RNN(3, 5, num_layers=2, backend=backend))
    assert all(p.is_meta for p in model.parameters())
    if backend != "cpu":
        output, h_n = model(torch.empty(4, 2, 3, device="meta"))
        assert output.is_meta and output.shape == (4, 2, 5) and h_n.shape == (2, 2, 5)
    model.to_empty(device="cpu")
    torch.manual_seed(1)
    model[0].reset_parameters()
    torch.manual_seed(1)
    theirs = torch.nn.RNN(3, 5, num_layers=2)
    theirs.reset_parameters()  # the second draw, as torch draws when it constructs
    torch.manual_seed(1)
    theirs.reset_parameters()
    torch.testing.assert_close(model[0].state_dict(), theirs.state_dict(), rtol=0, atol=0)
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(model(x), theirs(x))


@each_backend
def test_state_dict_assigned(backend):
    theirs, ours = pair(3, 5, backend=backend)
    state = {name: 2 * value for name, value in theirs.state_dict().items()}
    for module in (theirs, ours):
        module.load_state_dict(state, assign=True)
    x = normal(4, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@each_backend
def test_optimizers_and_averaging(backend):
    """Ten steps of training side by side, with clipping, weight decay and a moving average of the weights."""
    modules = pair(3, 5, num_layers=2, backend=backend)
    x, target = normal(6, 4, 3), normal(6, 4, 5)
    averages = []
    for module in modules:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        average = torch.optim.swa_utils.AveragedModel(module)
        for _ in range(10):
            optimizer.zero_grad()
            (module(x)[0] - target).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
            average.update_parameters(module)
        averages.append(average(x))
    torch.testing.assert_close(averages[1], averages[0])


@each_backend
def test_share_memory(backend):
    ours = rnnfast.RNN(3, 5, backend=backend).share_memory()
    assert all(p.is_shared() for p in ours.parameters())
    assert ours(torch.zeros(4, 2, 3))[0].shape == (4, 2, 5)


@pytest.mark.threads
@each_backend
@pytest.mark.parametrize("threads", [1, 2])
def test_eight_python_threads_on_one_module(threads, backend):
    """Every thread gets exactly what it would get alone."""
    ours = rnnfast.RNN(13, 40, num_layers=2, bidirectional=True, backend=backend)
    inputs = [torch.randn(20, 1 + i % 5, 13) for i in range(32)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            expected = [ours(x) for x in inputs]

        def run(x):
            with torch.no_grad():
                return ours(x)

        # Each Python thread has a thread count of its own, and the bits of torch's products depend on it.
        with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            for actual, alone in zip(pool.map(run, inputs), expected, strict=True):
                torch.testing.assert_close(actual, alone, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


class Encoded(Dataset):
    """Each item goes through the module, in whatever process it is fetched."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 8

    def __getitem__(self, i):
        with torch.no_grad():
            return self.module(torch.full((4, 13), float(i)))[0]


@pytest.mark.threads
@each_backend
def test_data_loader_workers_forked_after_a_parallel_region(backend):
    dataset = Encoded(rnnfast.RNN(13, 64, backend=backend))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        dataset.module(torch.randn(50, 64, 13))[0].sum().backward()
        loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
        batches = list(loader)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(torch.cat(batches), torch.stack([dataset[i] for i in range(8)]))


@each_backend
@pytest.mark.parametrize("requires_grad", [True, False])
def test_flop_counter_agrees_with_torch_s_count(requires_grad, backend):
    theirs, ours = pair(3, 5, num_layers=2, bidirectional=True, backend=backend)
    cell, our_cell = pair(3, 5, cell=True, backend=backend)
    for reference, module, sizes in (
        (theirs, ours, ((6, 4, 3), (4, 4, 5))),
        (cell, our_cell, ((4, 3), (4, 5))),
    ):
        input, hx = (normal(*size).requires_grad_(requires_grad) for size in sizes)
        counts = []
        for m in (reference, module):
            with FlopCounterMode(display=False) as forward:
                result = m(input, hx)
            loss = sum(part.sum() for part in (result if isinstance(result, tuple) else (result,)))
            with FlopCounterMode(display=False) as backward:
                loss.backward()
            counts.append((forward.get_total_flops(), backward.get_total_flops()))
        assert counts[0] == counts[1] and counts[0][0] > 0


def test_profiler_shows_our_operators():
    rnn, cell = rnnfast.RNN(3, 5, backend="eager"), rnnfast.RNNCell(3, 5, backend="eager")
    with profile() as recorded:
        rnn(torch.zeros(4, 2, 3))[0].sum().backward()
        cell(torch.zeros(2, 3)).sum().backward()
    names = {event.key for event in recorded.key_averages()}
    assert {"rnnfast::rnn", "rnnfast::rnn_backward"} <= names


@each_backend
def test_deterministic_algorithms(backend):
    ours = rnnfast.RNN(13, 40, num_layers=2, bidirectional=True, backend=backend)
    x = torch.randn(20, 5, 13)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(3):
            output, h_n = ours(x)
            runs.append(
                [output, h_n, *torch.autograd.grad(output.sum() + h_n.sum(), list(ours.parameters()))]
            )
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=0, atol=0)


@each_backend
def test_copies_are_independent(backend):
    ours = rnnfast.RNN(3, 5, backend=backend).double()
    other = copy.deepcopy(ours)
    assert other.backend == backend
    x = normal(4, 2, 3)
    expected = ours(x)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    torch.testing.assert_close(ours(x), expected)
    assert (other(x)[0] == 0).all()


def test_a_module_pickled_before_it_had_a_backend():
    """convert and unpickling leave modules that never ran __init__; the class knows what to do."""
    ours = rnnfast.RNN(3, 5)
    del ours.__dict__["backend"]
    assert ours.backend == "auto" and ours(torch.zeros(4, 2, 3))[0].shape == (4, 2, 5)
