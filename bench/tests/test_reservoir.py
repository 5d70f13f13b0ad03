"""`python -m bench reservoir`: series, readout, closed loop, scores, and the command from end to end."""

import json
import math
import sys

import pytest
import torch

from bench.reservoir import check, esn, forecast, peer, reservoir, scores
from bench.reservoir.series import SERIES, lorenz, mackey_glass

SETTINGS = esn.Settings(
    units=30, alpha=0.4, radius=0.9, input_scaling=0.4, bias_scaling=0.3, penalty=1e-6, input_connectivity=1.0
)


def fitted(features=3, dtype=torch.float64, seed=0):
    """A network of 30 units that was fitted to a Lorenz series, its readout and its states."""
    weights = esn.draw(SETTINGS, features, seed)
    series = lorenz(400, transient=100)[:, :features]
    series = (series - series.mean(0)) / series.std(0)
    network = esn.EchoStateNetwork(weights, dtype)
    states = network.states(series[:-1])
    return weights, network, network.fit(states[50:], series[51:], SETTINGS.penalty), states


@pytest.mark.parametrize("make", [mackey_glass, lorenz])
def test_series_converge_with_the_length_of_a_step(make):
    """Half a step, a sixteenth of the error; a quarter for the delayed value between two steps."""
    coarse, fine, finest = (make(20, substeps=n, transient=0) for n in (10, 20, 80))
    ratio = ((coarse - finest).abs().max() / (fine - finest).abs().max()).item()
    assert ratio > (3.5 if make is mackey_glass else 14)
    assert finest.shape == (20, 1 if make is mackey_glass else 3)


def test_mackey_glass_rests_at_its_fixed_point():
    """0.2 x / (1 + x^10) = 0.1 x at x = 1."""
    assert (mackey_glass(50, start=1.0, transient=0) - 1).abs().max() < 1e-12


def test_lorenz_rests_at_its_fixed_point():
    c = math.sqrt(8.0 / 3.0 * 27.0)
    rest = lorenz(5, transient=0, start=(c, c, 27.0))
    assert (rest - torch.tensor([c, c, 27.0], dtype=torch.float64)).abs().max() < 1e-12


def test_drawn_weights_are_as_asked_for():
    weights = esn.draw(SETTINGS, 2, seed=1)
    assert torch.linalg.eigvals(weights.w).abs().max().item() == pytest.approx(0.9)
    assert 0 < (weights.w != 0).double().mean() < 0.2
    assert (weights.w_in.abs() == 0.4).all() and (weights.bias.abs() == 0.3).all()


def test_ridge_is_the_minimum():
    """At a minimum the gradient of what is minimised is zero."""
    states, targets = torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    readout = esn.ridge(states, targets, penalty=0.7)
    w_out = readout.w_out.clone().requires_grad_()
    b_out = readout.b_out.clone().requires_grad_()
    loss = (esn.Readout(w_out, b_out)(states) - targets).square().sum() + 0.7 * w_out.square().sum()
    for gradient in torch.autograd.grad(loss, (w_out, b_out)):
        assert gradient.abs().max() < 1e-11


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_states_and_the_closed_loop_are_what_they_are_defined_as(dtype, features):
    weights, network, readout, states = fitted(features, dtype)
    inputs = torch.randn(20, features, dtype=torch.float64)
    check.check_states("rnnfast", network.states(inputs), check.true_states(weights, inputs), dtype, features)
    check.check_free_run("rnnfast", network, weights, readout, states[[60, 200]], dtype)
    assert network.free_run(states[[60, 200]], 1).equal(network.predict(states[[60, 200]])[None])


def test_a_closed_loop_that_forgets_the_constant_is_found(monkeypatch):
    def forgetful(weights, readout):
        return esn.replace(weights, w=weights.w + weights.w_in @ readout.w_out)

    monkeypatch.setattr(esn, "closed", forgetful)
    weights, network, readout, states = fitted()
    with pytest.raises(AssertionError, match="free run"):
        check.check_free_run("rnnfast", network, weights, readout, states[[60]], torch.float64)


def test_wrong_states_are_found():
    weights, network, _, _ = fitted()
    inputs = torch.randn(20, 3, dtype=torch.float64)
    truth = check.true_states(weights, inputs)
    with pytest.raises(AssertionError, match="states"):
        check.check_states("rnnfast", network.states(inputs) * 1.000001, truth, torch.float64, 3)


def test_scores():
    truth = torch.randn(50, 3, dtype=torch.float64)
    assert scores.nrmse(truth, truth) == 0
    assert scores.nrmse(truth.mean(0).expand(50, 3), truth) == pytest.approx(1)
    truths, variance = torch.zeros(6, 3, 1), torch.ones(1)
    forecasts = torch.zeros(6, 3, 1)
    forecasts[2, 0], forecasts[4, 1] = 0.5, math.nan
    assert scores.valid_steps(forecasts, truths, variance).tolist() == [2, 4, 6]
    assert scores.error_curve(forecasts[:4], truths[:4], variance).tolist() == pytest.approx(
        [0, 0, 0.5 / math.sqrt(3), 0]
    )


def test_free_runs_are_compared_with_what_follows():
    found = forecast.problem(SERIES["lorenz"], units=10, training=400, testing=1000, starts=3)
    assert found.truths.shape == (900, 3, 3)
    for i, start in enumerate(found.starts.tolist()):
        assert found.truths[:, i].equal(found.samples[start + 1 : start + 901])
    assert found.starts[0] == 400 and found.starts[-1] + 900 < len(found.samples)


def test_reservoirpy_computes_the_same():
    pytest.importorskip("reservoirpy")
    weights, network, readout, states = fitted()
    inputs = lorenz(60)
    for sparse in (False, True):
        theirs = peer.ReservoirpyNetwork(weights, sparse)
        check.check_states("reservoirpy", theirs.states(inputs), network.states(inputs), torch.float64, 3)
        check.check_states("again", theirs.states(inputs), network.states(inputs), torch.float64, 3)
    fit = theirs.fit(states[50:], readout(states[50:]), 0.0)
    check.check_free_run("reservoirpy", theirs, weights, fit, states[[60, 70]], torch.float64)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert reservoir.main(["--quick", "--units", "40", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "reservoir.json").read_text())
    for name in SERIES:
        assert name in output
        for found in result["forecasts"][name].values():
            assert 0 < found["one_step"] < 0.1 and len(found["curve"]) == SERIES[name].horizon
    assert result["forecasts"]["lorenz"]["rnnfast float64"]["valid_time"] > 0.2
    assert [speed["units"] for speed in result["speeds"]] == [30, 40]
    assert str(tmp_path) not in json.dumps(result)
    assert (tmp_path / "reservoir.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_without_reservoirpy_and_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "reservoirpy", None)
    arguments = ["--quick", "--units", "40", "--series", "lorenz", "--out", str(tmp_path)]
    assert reservoir.main(arguments) == 0
    output = capsys.readouterr().out
    assert "pip install reservoirpy" in output and "no picture: matplotlib is not installed" in output
    result = json.loads((tmp_path / "reservoir.json").read_text())
    assert list(result["forecasts"]["lorenz"]) == ["rnnfast float64", "rnnfast float32"]


@pytest.mark.slow
def test_a_wrong_kernel_fails_the_run(tmp_path, capsys, monkeypatch):
    class Wrong(esn.rnnfast.LeakyRNN):
        def forward(self, input, hx=None):
            output, h_n = super().forward(input, hx)
            return 1.001 * output, h_n

    monkeypatch.setattr(esn.rnnfast, "LeakyRNN", Wrong)
    arguments = ["--quick", "--series", "lorenz", "--no-reservoirpy", "--out", str(tmp_path)]
    assert reservoir.main(arguments) == 1
    assert "error: rnnfast float64: states" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--units", "0"], "argument --units: must be above 0"),
        (["--series", "pendulum"], "invalid choice: 'pendulum'"),
        (["--threads", "-1"], "argument --threads: must be above 0"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        reservoir.main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
