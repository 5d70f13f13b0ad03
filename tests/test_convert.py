"""rnnfast.convert on whole models: the same Parameters, the same results, nothing else touched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast.testing import BACKENDS


class Translator(nn.Module):
    """An encoder of packed sentences, and a decoder that starts from its state and steps with a cell."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.encoder = nn.RNN(6, 8, num_layers=2, bidirectional=True, dropout=0.1)
        self.bridge = nn.Linear(16, 8)
        self.decoder = nn.RNN(6, 8, num_layers=2, batch_first=True, nonlinearity="relu")
        self.cells = nn.ModuleList([nn.RNNCell(6, 8), nn.RNNCell(8, 8, nonlinearity="relu")])
        self.head = nn.Linear(8, 20)

    def forward(self, source, lengths, target):
        packed = pack_padded_sequence(self.embed(source), lengths, enforce_sorted=False)
        output, h_n = self.encoder(packed)
        output, _ = pad_packed_sequence(output)
        state = self.bridge(torch.cat([h_n[-2], h_n[-1]], -1))
        decoded, _ = self.decoder(self.embed(target), torch.stack([state, state]))
        h = [state, state]
        steps = []
        for x in self.embed(target).unbind(1):
            for i, cell in enumerate(self.cells):
                x = h[i] = cell(x, h[i])
            steps.append(x)
        return self.head(decoded + torch.stack(steps, 1)) + output.sum()


class Shared(nn.Module):
    """One RNN under two names, and inside of a container as well."""

    def __init__(self):
        super().__init__()
        self.first = nn.RNN(5, 5)
        self.second = self.first
        self.stack = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(5, 5), nn.ModuleList([self.first])[0])})

    def forward(self, x):
        return self.stack["inner"](self.second(self.first(x)[0])[0])[0]


class Gated(nn.RNN):
    """A subclass that counts on what torch.nn.RNN is."""

    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        return output.sigmoid(), h_n


MODELS = {
    "translator": (
        Translator,
        (torch.randint(20, (7, 3)), torch.tensor([4, 7, 2]), torch.randint(20, (3, 5))),
    ),
    "shared": (Shared, (torch.randn(4, 2, 5),)),
    "alone": (lambda: nn.RNN(3, 5), (torch.randn(4, 2, 3),)),
}


@pytest.fixture(params=MODELS)
def model_and_args(request):
    torch.manual_seed(0)
    build, args = MODELS[request.param]
    return build().double().eval(), tuple(a.double() if a.is_floating_point() else a for a in args)


def outputs(result):
    return list(result) if isinstance(result, tuple) else [result]


def gradients(model, args):
    model.zero_grad()
    sum(out.sin().sum() for out in outputs(model(*args))).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def torch_rnns(model):
    return [m for m in model.modules() if type(m) in (nn.RNN, nn.RNNCell)]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_same_results_same_parameters(model_and_args, backend):
    model, args = model_and_args
    expected, expected_gradients = outputs(model(*args)), gradients(model, args)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    state = list(model.state_dict())
    converted = rnnfast.convert(model, backend)
    assert converted is model
    assert not torch_rnns(converted)
    assert [name for name, _ in converted.named_modules(remove_duplicate=False)] == names
    assert list(converted.state_dict()) == state
    for name, p in converted.named_parameters(remove_duplicate=False):
        assert p is parameters[name], name
    torch.testing.assert_close(outputs(converted(*args)), expected)
    torch.testing.assert_close(gradients(converted, args), expected_gradients)
    for module in converted.modules():
        if isinstance(module, (rnnfast.RNN, rnnfast.RNNCell)):
            assert module.backend == backend and not module.training


def test_attributes_survive():
    rnn = nn.RNN(3, 5, 2, "relu", False, True, 0.25, True)
    rnn.note = "kept"
    before = copy.deepcopy(rnn.train())
    converted = rnnfast.convert(rnn)
    assert converted is rnn and type(rnn) is rnnfast.RNN
    for name in ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout"):
        assert getattr(converted, name) == getattr(before, name)
    assert converted.bidirectional and converted.training and converted.note == "kept"
    assert repr(converted) == repr(before)


def test_hooks_survive():
    model = nn.Sequential(nn.RNN(3, 5))
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    rnnfast.convert(model)(torch.zeros(4, 2, 3))
    assert seen == [rnnfast.RNN]


def test_a_shared_module_stays_shared():
    model = rnnfast.convert(Shared())
    assert model.first is model.second is model.stack["inner"][1]


def test_twice_is_once_and_the_backend_can_be_changed_later():
    model = rnnfast.convert(Translator(), "eager")
    encoder = model.encoder
    assert rnnfast.convert(model) is model and model.encoder is encoder and encoder.backend == "eager"
    encoder.backend = "aten"
    assert rnnfast.explain(encoder, torch.zeros(4, 2, 6)).backend == "aten"


def test_optimizer_state_stays_valid():
    """Momentum that was gathered before goes on to work after, on the same parameters."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.RNN(3, 5)).double()]
    models.append(copy.deepcopy(models[0]))
    x = torch.randn(4, 2, 3).double()
    for converting, model in enumerate(models):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(6):
            if converting and step == 3:
                rnnfast.convert(model)
            optimizer.zero_grad()
            model(x)[0].square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())


def test_subclasses_and_other_recurrent_modules_are_left_alone():
    model = nn.ModuleList([Gated(3, 5), nn.LSTM(3, 5), nn.GRU(3, 5), nn.LSTMCell(3, 5), nn.Linear(3, 5)])
    before = list(model)
    assert list(rnnfast.convert(model)) == before


def test_a_parametrized_rnn_is_left_alone_until_it_is_plain_again():
    """torch gives it a class of its own, so it counts as a subclass; parametrize after converting."""
    model = nn.Sequential(nn.RNN(3, 5))
    nn.utils.parametrizations.spectral_norm(model[0], "weight_hh_l0")
    x = torch.randn(4, 2, 3)
    rnnfast.convert(model)
    assert not isinstance(model[0], rnnfast.RNN)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    expected = model(x)
    assert isinstance(rnnfast.convert(model)[0], rnnfast.RNN)
    torch.testing.assert_close(model(x), expected)


def test_a_pruned_model():
    model = nn.Sequential(nn.RNN(3, 5)).double()
    prune.l1_unstructured(model[0], "weight_hh_l0", amount=0.5)
    x = torch.randn(4, 2, 3).double()
    expected = model(x)
    torch.testing.assert_close(rnnfast.convert(model)(x), expected)
    prune.remove(model[0], "weight_hh_l0")
    torch.testing.assert_close(model(x), expected)


@pytest.mark.slow
def test_a_compiled_model():
    """Conversion makes torch.compile possible at all; before, torch.nn.RNN breaks the graph."""
    model = nn.Sequential(nn.Linear(3, 3), nn.RNN(3, 5))
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(4, 2, 3)
    expected = compiled(x)
    rnnfast.convert(compiled)
    assert isinstance(model[1], rnnfast.RNN)
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


def test_loading_a_checkpoint_from_before():
    before, after = Translator(), rnnfast.convert(Translator())
    assert after.load_state_dict(before.state_dict()) == ([], [])
    assert before.load_state_dict(after.state_dict()) == ([], [])
