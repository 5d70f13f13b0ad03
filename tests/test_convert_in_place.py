"""rnnfast.convert and revert change the class of the module objects, so whoever holds one sees it."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import rnnfast

PAIRS = [(nn.RNN, rnnfast.RNN, (4, 2, 3)), (nn.RNNCell, rnnfast.RNNCell, (2, 3))]


class Holder(nn.Module):
    """Holds one RNN with dropout in all the ways that torch's registration of modules doesn't see."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 5, 2, dropout=0.5)
        self.listed = [self.rnn]
        self.by_key = {self.rnn: "rnn"}
        self.run = self.rnn.forward
        self.weak = weakref.ref(self.rnn)

    def forward(self, x):
        return [call(x)[0] for call in (self.rnn, self.listed[0], self.run, self.weak())]


def test_every_way_of_holding_a_module_sees_the_same_one():
    model = Holder()
    before = copy.deepcopy(model.rnn)
    rnnfast.convert(model)
    assert type(model.rnn) is rnnfast.RNN
    assert model.listed[0] is model.rnn is model.weak() and model.by_key[model.rnn] == "rnn"
    x = torch.randn(4, 2, 3)
    model.eval()
    for output in model(x):  # no dropout, in any of them
        torch.testing.assert_close(output, before.eval()(x)[0])
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_(), before.weight_hh_l0.zero_()
    model.double(), before.double()
    for output in model(x.double()):
        torch.testing.assert_close(output, before(x.double())[0])


def test_a_forward_replaced_on_the_object_stays_in_front():
    rnn = nn.RNN(3, 5, 2, dropout=0.5)
    original = rnn.forward
    rnn.forward = lambda input, hx=None: tuple(2 * part for part in original(input, hx))
    x = torch.randn(4, 2, 3)
    expected = rnn.eval()(x)
    assert rnnfast.convert(rnn) is rnn
    torch.testing.assert_close(rnn(x), expected)
    assert not torch.equal(rnn.train()(x)[0], expected[0])
    assert torch.equal(rnn.eval()(x)[0], rnn(x)[0])
    del rnn.forward
    torch.testing.assert_close(rnn(x)[0] * 2, expected[0])


@pytest.mark.parametrize("theirs, ours, size", PAIRS)
def test_revert(theirs, ours, size):
    """There and back: one object all the time, with torch's class, attributes and results at the end."""
    model = nn.Sequential(theirs(3, 5))
    rnn, attributes = model[0], set(vars(model[0]))
    parameters = list(model.parameters())
    x = torch.randn(size)
    expected = model(x)
    for _ in range(2):
        assert rnnfast.convert(model, "eager") is model and type(rnn) is ours and rnn.backend == "eager"
        torch.testing.assert_close(model(x), expected)
        assert rnnfast.revert(model) is model and type(rnn) is theirs
        assert set(vars(rnn)) == attributes and model[0] is rnn
        torch.testing.assert_close(model(x), expected)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert rnnfast.revert(rnn) is rnn
    alone = ours(3, 5, backend="eager")
    assert rnnfast.revert(alone) is alone and type(alone) is theirs and set(vars(alone)) == attributes


def test_revert_leaves_subclasses_alone():
    class Own(rnnfast.RNN):
        pass

    model = nn.ModuleList([Own(3, 5), rnnfast.RNN(3, 5), nn.Linear(3, 5)])
    rnnfast.revert(model)
    assert [type(module) for module in model] == [Own, nn.RNN, nn.Linear]


@pytest.mark.parametrize("direction", ["convert", "revert"])
def test_copies_afterwards(direction):
    build = nn.RNN if direction == "convert" else rnnfast.RNN
    model = getattr(rnnfast, direction)(nn.Sequential(build(3, 5, 2, bidirectional=True)))
    x = torch.randn(4, 2, 3)
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(other[0]) is type(model[0])
        torch.testing.assert_close(other(x), expected)
        other.double()
        torch.testing.assert_close(other(x.double())[0], expected[0].double())
        other[0].flatten_parameters()
        assert [w is v for w, v in zip(other[0]._flat_weights, other.parameters(), strict=True)] == [
            True
        ] * 16


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("theirs, ours, size", PAIRS)
def test_scripting_changes_the_same_objects(theirs, ours, size):
    """torch.jit.script compiles torch's class in our place; nobody is left with a module of his own."""
    model = nn.Sequential(ours(3, 5, backend="eager"))
    held, x = model[0], torch.randn(size)
    expected = model(x)
    scripted = torch.jit.script(model)
    assert model[0] is held and type(held) is theirs
    torch.testing.assert_close([scripted(x), model(x)], [expected, expected])
    assert rnnfast.convert(model)[0] is held and type(held) is ours
    torch.testing.assert_close(model(x), expected)


def test_scripting_a_subclass_is_refused():
    """What it overrides would be lost without a word."""

    class Doubled(rnnfast.RNN):
        def forward(self, input, hx=None):
            output, h_n = super().forward(input, hx)
            return 2 * output, h_n

    parametrized = rnnfast.RNN(3, 5)
    nn.utils.parametrizations.spectral_norm(parametrized, "weight_hh_l0")
    for module in (Doubled(3, 5), parametrized):
        with pytest.raises(RuntimeError, match=rf"without what {type(module).__name__} adds to it"):
            torch.jit.script(nn.Sequential(module))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_under_distributed_data_parallel_and_an_optimizer(tmp_path):
    """Converted in the middle of the training, after both have taken hold of the parameters."""
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        models = [nn.Sequential(nn.RNN(3, 5, 2)).double()]
        models.append(copy.deepcopy(models[0]))
        x = torch.randn(4, 2, 3).double()
        for converting, model in enumerate(models):
            wrapped = nn.parallel.DistributedDataParallel(model)
            optimizer = torch.optim.Adam(wrapped.parameters(), lr=0.1)
            for step in range(4):
                if converting and step == 2:
                    assert rnnfast.convert(wrapped) is wrapped and type(model[0]) is rnnfast.RNN
                optimizer.zero_grad()
                wrapped(x)[0].square().sum().backward()
                optimizer.step()
        torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())
    finally:
        distributed.destroy_process_group()


def test_a_module_that_nobody_holds_any_more_is_freed():
    model = rnnfast.convert(nn.Sequential(nn.RNN(3, 5)))
    seen = weakref.ref(model[0])
    del model
    gc.collect()
    assert seen() is None


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_quantised_after_revert():
    """quantize_dynamic asks for torch's very class."""
    quantization = pytest.importorskip("torch.ao.quantization")
    model = rnnfast.revert(rnnfast.convert(nn.Sequential(nn.RNNCell(3, 5))))
    quantised = quantization.quantize_dynamic(model, {nn.RNNCell})
    assert "quantized" in type(quantised[0]).__module__
    torch.testing.assert_close(quantised(torch.ones(2, 3)), model(torch.ones(2, 3)), atol=0.05, rtol=0.05)


def test_a_cell_is_one_of_torch_s_cells_and_a_layer_one_of_its_base():
    assert isinstance(rnnfast.RNNCell(3, 5), nn.RNNCell)
    assert isinstance(rnnfast.RNN(3, 5), nn.RNNBase)
