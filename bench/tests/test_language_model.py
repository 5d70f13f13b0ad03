"""The parts of the language model: text, minibatches, models, baselines, perplexity, agreement of losses."""

import math
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from bench.lm import agreement, batches, models, sample, text
from bench.lm.evaluate import log_probabilities, perplexity
from bench.lm.ngram import NGram
from bench.lm.train import Budget, Trainer, TrainingDiverged, train
from rnnfast import reference

VOCABULARY = 7


def random_tokens(count, seed=0, size=VOCABULARY):
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))


def recurrent_model(rnn=nn.RNN, kind="one-hot", hidden=5, dtype=torch.float64):
    torch.manual_seed(0)
    features = VOCABULARY if kind == "one-hot" else 3
    encode = models.input_layer(kind, VOCABULARY, 3, dtype)
    return models.RecurrentModel(encode, rnn(features, hidden, dtype=dtype), hidden, VOCABULARY, dtype)


def window_model(window=3, kind="one-hot"):
    torch.manual_seed(0)
    encode = models.input_layer(kind, VOCABULARY, 3, torch.float64)
    return models.WindowModel(encode, window, 5, VOCABULARY, torch.float64)


# Perplexity


def test_perplexity_of_a_perfect_prediction_is_one():
    assert perplexity(torch.zeros(10)) == 1


def test_perplexity_of_a_uniform_prediction_is_the_vocabulary_size():
    assert perplexity(torch.full((10,), 1 / 28, dtype=torch.float64).log()) == pytest.approx(28, rel=1e-14)


def test_perplexity_is_infinite_where_one_probability_is_zero():
    assert perplexity(torch.tensor([0.5, 0.0, 1.0]).log()) == math.inf


@pytest.mark.parametrize("make", [recurrent_model, window_model])
def test_held_out_tokens_are_read_as_one_sequence_whatever_the_piece(make):
    model, tokens = make(), random_tokens(40)
    logits, _ = model(tokens[:-1, None])
    expected = torch.log_softmax(logits[:, 0], -1).gather(1, tokens[1:, None])[:, 0]
    for piece in (1, 7, 39, 1000):
        torch.testing.assert_close(log_probabilities(model, tokens, piece), expected, rtol=1e-13, atol=1e-13)


# Text and vocabulary


def test_letters_only_keeps_lower_case_letters_and_single_spaces():
    assert text.letters_only("The Time-Machine, 1895:\n\n  It's É") == "the time machine it s "


def test_default_text_repeats_no_paragraph():
    paragraphs = text.python_prose().split("\n")
    assert len(paragraphs) == len(set(paragraphs))
    assert sum(map(len, paragraphs)) > 100_000


def test_held_out_text_is_the_end_and_never_trained_on():
    content = "".join(chr(ord("a") + index) for index in range(20))
    corpus = text.Corpus.from_text(content, held_out=0.25)
    assert corpus.vocabulary.decode(corpus.training) == content[:15]
    assert (len(corpus.training), len(corpus.held_out)) == (15, 5)
    shortened = text.Corpus.from_text(content, max_tokens=4, held_out=0.25)
    assert shortened.vocabulary.decode(shortened.training) == content[:4]
    assert len(shortened.held_out) == 5


def test_vocabulary_is_of_the_training_part_with_one_place_for_the_unknown():
    corpus = text.Corpus.from_text("aabab" * 4 + "xy", held_out=2 / 22)
    assert corpus.vocabulary.characters == [text.UNKNOWN, "a", "b"]
    assert corpus.held_out.tolist() == [0, 0]
    assert corpus.vocabulary.decode(corpus.vocabulary.encode("abba")) == "abba"


def test_d2l_vocabulary_has_28_entries():
    assert len(text.Vocabulary(text.letters_only(text.python_prose()))) == 28


def test_text_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(text.TextError, match="not UTF-8"):
        text.read_text(tmp_path / "latin1.txt")
    with pytest.raises(text.TextError, match="No such file"):
        text.read_text(tmp_path / "missing.txt")
    with pytest.raises(text.TextError, match="too short"):
        text.Corpus.from_text("ab")


# Minibatches. The token at position n is n, so that a token says where it came from.


@pytest.mark.parametrize("partition", [batches.sequential, batches.random])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_partitions_cover_each_token_at_most_once_and_labels_are_inputs_shifted_by_one(partition, offset):
    tokens = torch.arange(103)
    epoch = list(partition(tokens, batch_size=3, num_steps=5, offset=offset))
    seen = torch.cat([batch.inputs.flatten() for batch in epoch])
    assert len(seen.unique()) == len(seen) == 3 * 5 * 6
    assert seen.min() >= offset
    for batch in epoch:
        assert batch.inputs.shape == batch.labels.shape == (5, 3)
        assert torch.equal(batch.labels, batch.inputs + 1)
        assert torch.equal(batch.inputs.diff(dim=0), torch.ones(4, 3, dtype=torch.int64))


def test_sequential_partitioning_is_contiguous_over_minibatches():
    epoch = list(batches.sequential(torch.arange(103), batch_size=3, num_steps=5))
    assert [batch.fresh for batch in epoch] == [True] + [False] * 5
    for before, after in pairwise(epoch):
        assert torch.equal(after.inputs[0], before.labels[-1])


def test_random_partitioning_starts_afresh_in_another_order():
    epoch = list(batches.random(torch.arange(103), 3, 5, generator=torch.Generator().manual_seed(0)))
    assert all(batch.fresh for batch in epoch)
    starts = torch.cat([batch.inputs[0] for batch in epoch])
    assert not torch.equal(starts, starts.sort().values)


@pytest.mark.parametrize("partition", batches.PARTITIONS)
def test_the_shortest_text_gives_a_minibatch_whatever_the_offset(partition):
    tokens = torch.arange(batches.tokens_needed(4, 6))
    for offset in range(6):
        assert len(list(getattr(batches, partition)(tokens, 4, 6, offset))) >= 1
    assert len(list(getattr(batches, partition)(tokens[:-1], 4, 6, 5))) == 0
    with pytest.raises(ValueError, match="no minibatch"):
        next(batches.epochs(tokens[:-1], 4, 6, partition, torch.Generator()))


def test_shares_of_a_minibatch_make_up_the_whole():
    whole = next(batches.sequential(torch.arange(103), batch_size=4, num_steps=5))
    parts = [next(batches.share(iter([whole]), rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.inputs for part in parts], 1), whole.inputs)
    assert torch.equal(torch.cat([part.labels for part in parts], 1), whole.labels)


# Models


@pytest.mark.parametrize("kind", models.INPUTS)
def test_output_layer_is_hidden_state_times_weight_plus_bias(kind):
    model, tokens = recurrent_model(kind=kind), random_tokens(24).view(8, 3)
    logits, state = model(tokens)
    hidden, last = model.rnn(model.encode(tokens))
    weight_hq, bias_q = model.output.weight.t(), model.output.bias  # [H, V], [V]
    torch.testing.assert_close(logits, hidden @ weight_hq + bias_q, rtol=1e-14, atol=1e-14)
    assert logits.shape == (8, 3, VOCABULARY) and torch.equal(state, last)


def test_one_hot_vectors_are_unit_vectors_and_no_parameters():
    encode = models.input_layer("one-hot", VOCABULARY, 3)
    tokens = random_tokens(6).view(2, 3)
    assert torch.equal(encode(tokens), torch.nn.functional.one_hot(tokens, VOCABULARY).float())
    assert not list(encode.parameters()) and not encode.state_dict()


@pytest.mark.parametrize("kind", models.INPUTS)
def test_window_model_depends_on_the_window_alone(kind):
    model, tokens = window_model(window=3, kind=kind), random_tokens(12).view(12, 1)
    logits, _ = model(tokens)
    changed = tokens.clone()
    changed[5] = (changed[5] + 1) % VOCABULARY
    differs = (model(changed)[0] != logits).any(-1).flatten()
    assert differs.nonzero().flatten().tolist() == [5, 6, 7]


def test_window_model_is_its_equation():
    model, tokens = window_model(window=2), random_tokens(4).view(4, 1)
    before = torch.tensor([0, *tokens[:-1, 0].tolist()])
    side_by_side = torch.cat([model.encode(before), model.encode(tokens[:, 0])], 1)
    hidden = torch.tanh(side_by_side @ model.hidden.weight.t() + model.hidden.bias)
    expected = hidden @ model.output.weight.t() + model.output.bias
    torch.testing.assert_close(model(tokens)[0][:, 0], expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("make", [recurrent_model, window_model])
def test_reading_in_pieces_is_reading_at_once(make):
    model, tokens = make(), random_tokens(20).view(10, 2)
    whole, _ = model(tokens)
    first, state = model(tokens[:4])
    second, _ = model(tokens[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-13, atol=1e-13)


def test_parameter_count_does_not_depend_on_the_number_of_steps():
    model = recurrent_model()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 5 * (VOCABULARY + 5 + 2) + VOCABULARY * (5 + 1)
    for steps in (1, 50):
        assert model(random_tokens(steps).view(steps, 1))[0].shape[0] == steps


# n-grams


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngram_probabilities_sum_to_one_after_any_context(order):
    model = NGram(order, VOCABULARY)
    model.fit(random_tokens(200, size=VOCABULARY - 1).tolist())
    for context in ([], [0], [1, 2], [3, 3, 3], [VOCABULARY - 1, 0], [0, 1, VOCABULARY - 1]):
        chances = [model.probability(token, context) for token in range(VOCABULARY)]
        assert math.fsum(chances) == pytest.approx(1, abs=1e-14)
        assert min(chances) > 0


def test_ngram_is_witten_bell():
    model = NGram(2, 3)
    model.fit([0, 1, 0, 1, 0, 2])  # 0 is followed by 1, 1, 2
    unigram = [(count + 3 / 3) / (6 + 3) for count in (3, 2, 1)]
    assert model.probability(1, [0]) == pytest.approx((2 + 2 * unigram[1]) / (3 + 2), abs=1e-15)
    assert model.probability(0, [2]) == pytest.approx(unigram[0], abs=1e-15)  # nothing ever followed 2
    assert model.num_parameters == 3 + 2 + 1


def test_ngram_scores_every_token_but_the_first():
    model, tokens = NGram(3, VOCABULARY), random_tokens(30).tolist()
    model.fit(tokens)
    found = model.log_probabilities(tokens)
    assert len(found) == len(log_probabilities(recurrent_model(), torch.tensor(tokens))) == 29
    for position, value in enumerate(found, start=1):
        assert math.exp(value) == pytest.approx(model.probability(tokens[position], tokens[:position]))


# Sampling


def test_greedy_text_follows_the_largest_logit_and_sampling_follows_the_seed():
    vocabulary = text.Vocabulary("abcdef")
    model = recurrent_model()
    greedy = sample.generate(model, vocabulary, "abc", 5)
    tokens = vocabulary.encode(greedy)
    logits, _ = model(tokens[:-1, None])
    logits[..., 0] = -torch.inf
    assert greedy.startswith("abc") and torch.equal(logits[2:, 0].argmax(-1), tokens[3:])
    drawn = [
        sample.generate(model, vocabulary, "a", 50, 1.0, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert text.UNKNOWN not in drawn[0] + drawn[2]


# Training and agreement


class ReferenceRNN(nn.RNN):
    """The same layer by other roundings: one product of [x, h] with [W_ih, W_hh] a step."""

    def forward(self, input, hx=None):
        h0 = input.new_zeros(input.shape[1], self.hidden_size) if hx is None else hx[0]
        output, h_n = reference.rnn_sequence(input, h0, *self.parameters())
        return output, h_n[None]


def losses_of(networks, steps=30, partition="sequential", lr=0.5):
    trainers = [
        Trainer(str(index), model, torch.optim.SGD(model.parameters(), lr=lr), clip=1.0)
        for index, model in enumerate(networks)
    ]
    pieces = batches.epochs(random_tokens(500), 4, 6, partition, torch.Generator().manual_seed(0))
    train(trainers, pieces, Budget(time.perf_counter(), steps=steps), lambda model: 1.0, turn=8)
    return [trainer.losses for trainer in trainers]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("partition", batches.PARTITIONS)
def test_losses_of_two_implementations_agree_to_rounding(dtype, partition):
    networks = [recurrent_model(rnn, dtype=dtype) for rnn in (nn.RNN, ReferenceRNN)]
    found = agreement.compare(*losses_of(networks, partition=partition), dtype, longest_sum=24)
    assert found.agrees and found.steps == 30 and found.early_steps == agreement.EARLY_STEPS
    assert 0 < found.difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_a_gradient_one_percent_wrong_does_not_agree(wrong):
    networks = [recurrent_model(dtype=torch.float32) for _ in range(2)]
    getattr(networks[1].rnn, wrong).register_hook(lambda gradient: 1.01 * gradient)
    assert not agreement.compare(*losses_of(networks), torch.float32, longest_sum=24).agrees


def test_losses_that_are_nan_do_not_agree():
    losses = torch.ones(5, dtype=torch.float64)
    assert agreement.compare(losses, losses, torch.float32, 24).agrees
    assert not agreement.compare(losses * torch.nan, losses, torch.float32, 24).agrees


def test_state_is_carried_over_and_cut_off_from_its_history():
    model = recurrent_model()
    trainer = Trainer("", model, torch.optim.SGD(model.parameters(), lr=0.0), clip=1.0)
    first, second = list(batches.sequential(random_tokens(60), 2, 10))[:2]
    trainer.run([first, second])
    _, state = model(first.inputs)
    logits, _ = model(second.inputs, state.detach())
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), second.labels.flatten())
    torch.testing.assert_close(trainer.losses[1], expected.detach(), rtol=1e-14, atol=0)
    assert not trainer._state.requires_grad


def test_all_models_take_the_same_number_of_steps_and_marks():
    networks = [recurrent_model(), window_model()]
    assert [len(losses) for losses in losses_of(networks, steps=21)] == [21, 21]


def test_a_training_perplexity_that_is_not_finite_ends_training():
    model = recurrent_model()
    with torch.no_grad():
        model.output.bias[0] = torch.nan
    with pytest.raises(TrainingDiverged, match="training perplexity is no longer finite"):
        losses_of([model])


def test_weights_that_are_not_finite_end_training_although_every_loss_was():
    model = recurrent_model()
    trainer = Trainer("", model, torch.optim.SGD(model.parameters(), lr=math.inf), clip=1.0)
    trainer.run([next(batches.sequential(random_tokens(60), 2, 10))])
    with pytest.raises(TrainingDiverged, match="held-out perplexity is not finite"):
        trainer.evaluate(lambda network: perplexity(log_probabilities(network, random_tokens(20))))
