"""`python -m bench neuro`: tasks, networks, psychometric functions, and the command from end to end."""

import json
import math
import sys

import pytest
import torch

from bench.neuro import model, neuro, psychometric, tasks, train
from bench.neuro.tasks import TASKS
from rnnfast.testing import check, tolerance

BOTH = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def drawn(task, level, count, seed=0):
    return task.trials(torch.full((count,), level), torch.Generator().manual_seed(seed))


@BOTH
def test_trials_have_their_periods(task):
    trials = drawn(task, task.training_levels[-1], 200)
    steps = {"random dots": 110, "delayed comparison": 130}[task.name]
    assert trials.inputs.shape == (steps, 200, task.features) and trials.decision == steps - 5
    assert (trials.inputs[: trials.decision, :, 0] == 1).all() and (
        trials.inputs[trials.decision :] == 0
    ).all()
    assert (trials.targets[: trials.decision] == 0).all()
    assert (trials.targets[trials.decision :] == trials.answers).all()
    assert set(trials.answers.tolist()) == {1, 2}


def test_the_evidence_of_random_dots():
    task = TASKS["random-dots"]
    trials = drawn(task, 51.2, 4000)
    assert (trials.inputs[:5, :, 1:] == 0).all()
    shown = trials.inputs[5:105, trials.answers == 2, 1:]
    noise = tasks.SIGMA / math.sqrt(tasks.STEP)
    error = 5 * noise / math.sqrt(shown[..., 0].numel())
    assert shown[..., 0].mean().item() == pytest.approx(0.5 - 0.256, abs=error)
    assert shown[..., 1].mean().item() == pytest.approx(0.5 + 0.256, abs=error)
    assert shown.std(0).mean().item() == pytest.approx(noise, rel=0.02)


def test_the_pairs_of_the_delayed_comparison(monkeypatch):
    monkeypatch.setattr(tasks, "SIGMA", 0.0)
    task = TASKS["delayed-comparison"]
    trials = drawn(task, 8.0, 500)
    frequencies = (trials.inputs[[30, 105], :, 1] - 0.5) * 48 + 10
    pairs = {tuple(round(f) for f in pair) for pair in frequencies.T.tolist()}
    published = [(18, 10), (22, 14), (26, 18), (30, 22), (34, 26)]
    assert pairs == {*published, *((b, a) for a, b in published)}
    assert ((frequencies[0] > frequencies[1]) == (trials.answers == 1)).all()
    shown = trials.inputs[:, :, 1] != 0
    assert shown.sum(0).eq(50).all() and shown[25:50].all() and shown[100:125].all()


@BOTH
def test_the_ideal_observer_is_one_that_weighs_all_evidence(task):
    """It decides by the sum of the first stimulus, or channel, less that of the second."""
    count = 4000
    for level in task.test_levels[1:4]:
        trials = drawn(task, level, count)
        if task.name == "random dots":
            evidence = (trials.inputs[..., 1] - trials.inputs[..., 2]).sum(0)
        else:
            evidence = trials.inputs[25:50, :, 1].sum(0) - trials.inputs[100:125, :, 1].sum(0)
        right = ((evidence > 0) == (trials.answers == 1)).double().mean().item()
        ideal = task.ideal(level)
        assert right == pytest.approx(ideal, abs=5 * math.sqrt(ideal * (1 - ideal) / count))


def networks(units=15):
    found = []
    for kind in (model.RateNetwork, model.LoopNetwork):
        torch.manual_seed(0)
        found.append(kind(3, units, 3, alpha=0.2, noise_std=0.15))
    return found


def test_weights_obey_dales_law_after_training():
    network, _ = networks()
    free = network.rnn.parametrizations.weight_hh_l0.original
    with torch.no_grad():
        free.normal_()
    weight = network.rnn.weight_hh_l0
    assert network.excitatory == 12
    assert (weight[:, :12] >= 0).all() and (weight[:, 12:] <= 0).all() and (weight.diagonal() == 0).all()
    assert (weight != 0).sum() == 15 * 14


def test_the_networks_are_the_same():
    """Outputs and gradients, with the same noise."""
    fast, loop = networks()
    trials = drawn(TASKS["random-dots"], 12.8, 6)
    found = []
    for network in (fast, loop):
        torch.manual_seed(3)
        logits = network(trials.inputs)
        train.trial_loss(logits, trials).backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        found.append((logits, gradients))
    (logits, gradients), (expected, wanted) = found
    check("logits", logits, expected, tolerance(torch.float32, 15 + 3))
    assert gradients.keys() == wanted.keys() and len(gradients) == 6
    for name, gradient in gradients.items():
        check(name, gradient, wanted[name], tolerance(torch.float32, trials.inputs[..., 0].numel()))


def test_the_noise_is_drawn_anew_and_counts():
    fast, _ = networks()
    fast.eval()
    inputs = torch.zeros(50, 4, 3)
    torch.manual_seed(0)
    first, second = fast.rates(inputs), fast.rates(inputs)
    assert (first - second).abs().max() > 0.01


def test_the_loss_weighs_both_periods_alike():
    trials = drawn(TASKS["random-dots"], 12.8, 6)
    logits = torch.zeros(110, 6, 3)
    assert train.trial_loss(logits, trials).item() == pytest.approx(2 * math.log(3))
    right = 50 * torch.nn.functional.one_hot(trials.targets, 3).float()
    assert train.choices(right, trials).equal(trials.answers)
    assert train.trial_loss(right, trials).item() == pytest.approx(0, abs=1e-6)
    right[trials.decision :] = 0
    assert train.trial_loss(right, trials).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(("scale", "slope", "lapse"), [(6.0, 1.3, 0.0), (2.0, 2.5, 0.05)])
def test_a_psychometric_function_is_found_again(scale, slope, lapse):
    true = psychometric.Psychometric(scale, slope, lapse)
    levels = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    found = psychometric.fit({level: true(level) for level in levels}, count=1000)
    assert found.scale == pytest.approx(scale, rel=0.02) and found.slope == pytest.approx(slope, rel=0.02)
    assert found.lapse == pytest.approx(lapse, abs=2e-3)
    assert true(true.threshold()) == pytest.approx(psychometric.THRESHOLD)
    assert psychometric.threshold_of(true, 0.0, 32.0) == pytest.approx(true.threshold())
    assert true(0.0) == 0.5


def test_a_threshold_that_is_not_reached():
    assert psychometric.Psychometric(1.0, 1.0, 0.1).threshold(0.95) == math.inf
    flat = psychometric.fit({1.0: 0.5, 2.0: 0.5, 4.0: 0.5}, count=100)
    assert flat(4.0) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert neuro.main(["--quick", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "neuro.json").read_text())
    for name, task in TASKS.items():
        found = result["tasks"][name]
        assert task.name in output and found["agreement"]["agrees"]
        assert [len(found["losses"][who]) for who in (neuro.FAST, neuro.LOOP)] == [40, 20]
        assert found["losses"][neuro.FAST][-1] < found["losses"][neuro.FAST][0]
        assert list(found["correct"]) == [f"{level:g}" for level in task.test_levels]
    assert str(tmp_path) not in json.dumps(result)
    assert (tmp_path / "neuro.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_losses_that_do_not_agree_fail_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    class Wrong(model.RateNetwork):
        def rates(self, inputs):
            return 1.001 * super().rates(inputs)

    monkeypatch.setattr(neuro, "RateNetwork", Wrong)
    assert neuro.main(["--quick", "--tasks", "random-dots", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "BEYOND" in captured.out and "do not agree" in captured.err
    assert "no picture: matplotlib is not installed" in captured.out


def test_training_that_diverges_fails_the_run(tmp_path, capsys):
    arguments = ["--quick", "--tasks", "random-dots", "--lr", "1e30", "--out", str(tmp_path)]
    assert neuro.main(arguments) == 1
    assert "the loss is no longer finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--units", "4"], "argument --units: must be 5 or more"),
        (["--loop-steps", "60"], "argument --loop-steps: must be at most --minibatches, 50"),
        (["--tasks", "chess"], "invalid choice: 'chess'"),
        (["--backend", "abacus"], "abacus"),
        (["--lr", "nan"], "argument --lr: must be above 0"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        neuro.main([*arguments, "--out", str(tmp_path)])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
