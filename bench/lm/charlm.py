"""Train a character-level language model with rnnfast.RNN beside torch.nn.RNN: what each learns, how fast.

    python -m bench charlm                                     # a text that every Python carries, 100 s
    python -m bench charlm --d2l --text timemachine.txt        # as in the d2l course
    torchrun --nproc-per-node=2 -m bench charlm --steps 200    # every minibatch shared by two processes

Exit status: 0; 1 where training failed or the two loss curves do not agree; 2 for input that cannot be
used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import rnnfast
from bench import command
from bench.lm import batches, models, processes, text
from bench.lm.agreement import EARLY_STEPS, compare
from bench.lm.arguments import make_parser, parse_arguments
from bench.lm.evaluate import log_probabilities, perplexity
from bench.lm.ngram import NGram
from bench.lm.plot import plot
from bench.lm.report import Row, describe, environment, table
from bench.lm.sample import generate
from bench.lm.train import Budget, Trainer, TrainingDiverged, train

FAST, REFERENCE, WINDOW = "rnnfast.RNN", "torch.nn.RNN", "window, no hidden state"
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
NGRAM_ORDERS = (3, 5)
BAR = "training {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


def load_corpus(args: argparse.Namespace) -> text.Corpus:
    """The prepared text; TextError where it is not enough for a minibatch."""
    content = text.python_prose() if args.text is None else text.read_text(args.text)
    if args.letters_only:
        content = text.letters_only(content)
    corpus = text.Corpus.from_text(content, args.max_tokens)
    needed = batches.tokens_needed(args.batch_size, args.num_steps)
    if len(corpus.training) < needed:
        raise text.TextError(
            f"the text is too short: {len(corpus.training)} characters to train on, but a minibatch of "
            f"{args.batch_size} sequences of {args.num_steps} steps takes {needed}"
        )
    return corpus


def make_models(args: argparse.Namespace, vocabulary_size: int) -> dict[str, nn.Module]:
    """The networks by name; the recurrent ones start from identical weights.

    Raises ValueError or RuntimeError, from rnnfast, for a backend that cannot be used.
    """
    dtype = getattr(torch, args.dtype)
    features = vocabulary_size if args.input == "one-hot" else args.embedding

    def encode() -> nn.Module:
        return models.input_layer(args.input, vocabulary_size, args.embedding, dtype)

    def recurrent(rnn: nn.Module) -> nn.Module:
        return models.RecurrentModel(encode(), rnn, args.hidden, vocabulary_size, dtype)

    torch.manual_seed(args.seed)
    found = {FAST: recurrent(rnnfast.RNN(features, args.hidden, dtype=dtype, backend=args.backend))}
    if not args.no_torch:
        found[REFERENCE] = recurrent(nn.RNN(features, args.hidden, dtype=dtype))
        found[REFERENCE].load_state_dict(found[FAST].state_dict())
    found[WINDOW] = models.WindowModel(encode(), args.window, args.hidden, vocabulary_size, dtype)
    return found


def find_backend(args: argparse.Namespace, model: nn.Module) -> str:
    """The backend that trains the recurrent layer of `model`.

    Raises ValueError or RuntimeError, from rnnfast, where the one asked for does not run this.
    """
    rnn = model.get_submodule("rnn")
    assert isinstance(rnn, rnnfast.RNN)
    width = args.batch_size // processes.world_size()
    input = torch.zeros(args.num_steps, width, rnn.input_size, dtype=getattr(torch, args.dtype))
    return rnnfast.explain(rnn, input).backend


def train_networks(
    args: argparse.Namespace, corpus: text.Corpus, networks: dict[str, nn.Module], budget: Budget
) -> list[Trainer]:
    """Train all networks on the same minibatches, with a progress bar on the first process."""
    optimizer = OPTIMIZERS[args.optimizer]
    trainers = [
        Trainer(name, model, optimizer(model.parameters(), lr=args.lr), args.clip)
        for name, model in networks.items()
    ]

    def held_out_perplexity(model: nn.Module) -> float:
        if processes.rank() > 0:
            return 0.0  # the first process alone evaluates, and reports
        return perplexity(log_probabilities(model, corpus.held_out))

    generator = torch.Generator().manual_seed(args.seed)
    pieces = batches.epochs(corpus.training, args.batch_size, args.num_steps, args.partition, generator)
    with tqdm(total=1.0, disable=processes.rank() > 0, bar_format=BAR) as bar:

        def progress(used: float, reached: float) -> None:
            bar.set_postfix_str(f"perplexity {reached:.2f}", refresh=False)
            bar.update(used - bar.n)

        train(
            trainers, batches.share(pieces, processes.rank(), processes.world_size()), budget,
            held_out_perplexity, decay=args.decay == "linear", progress=progress,
        )  # fmt: skip
    return trainers


def network_rows(args: argparse.Namespace, corpus: text.Corpus, trainers: list[Trainer]) -> list[Row]:
    """What the table says of the networks; training perplexity is that of the last epoch's minibatches."""
    tokens = len(trainers[0].losses) * args.batch_size * args.num_steps
    speeds = {trainer.name: tokens / trainer.seconds for trainer in trainers}
    ratios = {name: speeds[name] / speeds[REFERENCE] for name in (FAST, REFERENCE) if REFERENCE in speeds}
    last_epoch = batches.batches_per_epoch(len(corpus.training), args.batch_size, args.num_steps)
    return [
        Row(
            model=trainer.name,
            parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
            training_perplexity=perplexity(-trainer.losses[-last_epoch:]),
            held_out_perplexity=trainer.held_out_perplexity,
            tokens_per_second=speeds[trainer.name],
            ratio_to_torch=ratios.get(trainer.name),
        )
        for trainer in trainers
    ]


def count_ngrams(corpus: text.Corpus) -> list[Row]:
    """The rows of the n-gram baselines, tested on the tokens that the networks are tested on."""
    rows = []
    training, held_out = corpus.training.tolist(), corpus.held_out.tolist()
    for order in NGRAM_ORDERS:
        began = time.perf_counter()
        model = NGram(order, len(corpus.vocabulary))
        model.fit(training)
        seconds = time.perf_counter() - began
        found = perplexity(torch.tensor(model.log_probabilities(held_out), dtype=torch.float64))
        speed = len(training) / seconds
        rows.append(Row(f"{order}-gram counts", model.num_parameters, None, found, speed, None))
    return rows


def write_samples(args: argparse.Namespace, corpus: text.Corpus, model: nn.Module) -> dict[str, str]:
    """Greedy and sampled text."""
    vocabulary, generator = corpus.vocabulary, torch.Generator().manual_seed(args.seed)
    return {
        "greedy": generate(model, vocabulary, args.prefix, length=200),
        "sampled": generate(model, vocabulary, args.prefix, length=400, temperature=0.8, generator=generator),
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that bear on the figures; of the text its name alone, as its folder says nothing."""
    found = {name: value for name, value in vars(args).items() if name not in ("out", "json")}
    return found | {"text": "pydoc_data.topics" if args.text is None else args.text.name}


def run(
    args: argparse.Namespace, corpus: text.Corpus, networks: dict[str, nn.Module], backend: str, start: float
) -> int:
    """Train, evaluate, report; the exit status."""
    epoch = batches.batches_per_epoch(len(corpus.training), args.batch_size, args.num_steps)
    limits = [args.steps, args.epochs and args.epochs * epoch]
    steps = min((limit for limit in limits if limit is not None), default=None)
    baselines = count_ngrams(corpus)
    trainers = train_networks(args, corpus, networks, Budget(start, steps, args.seconds))
    if processes.rank() > 0:
        return 0

    rows = network_rows(args, corpus, trainers)
    print(
        f"{len(corpus.training):,} characters to train on, {len(corpus.held_out):,} held out, "
        f"{len(corpus.vocabulary)} in the vocabulary; {len(trainers[0].losses):,} steps of "
        f"{args.batch_size} x {args.num_steps} characters; {processes.world_size()} process(es), "
        f"{torch.get_num_threads()} thread(s), {args.dtype}, rnnfast backend {backend}\n"
    )
    print(table(rows + baselines), end="\n\n")
    agreement = None
    if not args.no_torch:
        fast, reference = trainers[:2]
        longest_sum = max(args.batch_size * args.num_steps, args.hidden + len(corpus.vocabulary))
        agreement = compare(fast.losses, reference.losses, getattr(torch, args.dtype), longest_sum)
        print(describe(agreement, *rows[:2]), end="\n\n")
    samples = write_samples(args, corpus, trainers[0].model)
    for kind, sample in samples.items():
        print(f"{kind}: {sample}\n")

    picture = args.out / "charlm.png"
    try:
        plot(picture, {trainer.name: trainer.marks for trainer in trainers}, baselines[-1])
        print(f"picture: {picture}")
    except ImportError:
        print("no picture: matplotlib is not installed")
    if args.json is not None:
        result = {
            "settings": settings(args),
            "environment": environment() | {"processes": processes.world_size(), "backend": backend},
            "steps": len(trainers[0].losses),
            "models": rows + baselines,
            "agreement": agreement,
            "samples": samples,
            "losses": {trainer.name: trainer.losses[:EARLY_STEPS].tolist() for trainer in trainers},
            "curves": {
                trainer.name: [mark for mark in trainer.marks if mark.held_out_perplexity is not None]
                for trainer in trainers
            },
        }
        command.write_json(args.json, result)
    if agreement is not None and not agreement.agrees:
        print(
            "error: the loss curves do not agree; is --lr far too large, or a kernel wrong?", file=sys.stderr
        )
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    start = time.perf_counter()
    parser = make_parser(__doc__)
    args = parse_arguments(parser, argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with processes.joined():
        if args.batch_size % processes.world_size():
            parser.error(
                f"--batch-size {args.batch_size} is no multiple of {processes.world_size()} processes"
            )
        try:
            command.make_folders(args.out, *([args.json.parent] if args.json else []))
            corpus = load_corpus(args)
            networks = make_models(args, len(corpus.vocabulary))
            backend = find_backend(args, networks[FAST])
        except (ValueError, RuntimeError) as error:
            parser.error(str(error))
        try:
            return run(args, corpus, networks, backend, start)
        except TrainingDiverged as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
