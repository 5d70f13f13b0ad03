"""Train rate networks with Dale's law on two tasks of neuroscience: rnnfast.CTRNN beside a Python loop.

    python -m bench neuro                                # both tasks
    python -m bench neuro --tasks random-dots --epochs 60

The two networks have the same initial weights, trials and noise. The loop takes the first steps alone, enough
to compare losses and the median time of a step. The network on rnnfast trains on, and is tested: the part
correct by level, a psychometric function, and the level at which 80% are correct, beside those of an ideal
observer.

Exit status: 0; 1 where training failed or the losses do not agree; 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import rnnfast
from bench import command
from bench.lm.agreement import Agreement, compare
from bench.machine.environment import describe
from bench.neuro.model import LoopNetwork, RateNetwork
from bench.neuro.plot import plot
from bench.neuro.psychometric import THRESHOLD, Psychometric, fit, threshold_of
from bench.neuro.tasks import OUTPUTS, STEP, TASKS, Task, training_trials
from bench.neuro.train import Trainer, TrainingDiverged, part_correct
from bench.report.table import number, render

FAST, LOOP = "rnnfast.CTRNN", "Python loop"
TAU = 100.0  # ms, of all units
NOISE = 0.15  # standard deviation of the units' noise, before sqrt(2 alpha)


def make_parser() -> argparse.ArgumentParser:
    parser = command.parser("neuro", __doc__)
    count = command.positive(int)
    parser.add_argument("--quick", action="store_true", help="a small network for a few steps")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="NAME")
    parser.add_argument("--units", type=count, default=100, help="a fifth of them inhibitory (%(default)s)")
    parser.add_argument("--batch-size", type=count, default=64, help="trials in a minibatch (%(default)s)")
    parser.add_argument("--epochs", type=count, default=20, help="of rnnfast's network (%(default)s)")
    parser.add_argument("--loop-steps", type=count, default=40, help="of the loop's (%(default)s)")
    parser.add_argument("--minibatches", type=count, default=50, help="in an epoch (%(default)s)")
    parser.add_argument("--test-trials", type=count, default=1000, help="at each level (%(default)s)")
    parser.add_argument("--lr", type=command.positive(float), default=2e-3, help="of Adam (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, trials and noise (%(default)s)")
    parser.add_argument("--backend", default="auto", help="of rnnfast (%(default)s)")
    parser.add_argument("--threads", type=count, help="of torch (default: torch's own)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the files (%(default)s)")
    return parser


QUICK = {"units": 20, "batch_size": 8, "epochs": 2, "loop_steps": 20, "minibatches": 20, "test_trials": 50}


@dataclass(frozen=True)
class Result:
    """What came of a task. Thresholds are levels at which `THRESHOLD` is right."""

    task: Task
    trainers: list[Trainer]
    agreement: Agreement
    correct: dict[float, float]
    fitted: Psychometric
    backend: str
    minibatches: int  # in an epoch

    @property
    def ideal_threshold(self) -> float:
        return threshold_of(self.task.ideal, 0.0, self.task.test_levels[-1])

    @property
    def accuracy(self) -> float:
        """Over the levels of training, which are equally frequent there."""
        levels = self.task.training_levels
        return sum(self.correct[level] for level in levels) / len(levels)

    @property
    def ideal_accuracy(self) -> float:
        levels = self.task.training_levels
        return sum(map(self.task.ideal, levels)) / len(levels)

    def to_dict(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "agreement": asdict(self.agreement),
            "losses": {trainer.name: trainer.losses for trainer in self.trainers},
            "seconds": {trainer.name: trainer.seconds for trainer in self.trainers},
            "accuracy": self.accuracy,
            "ideal_accuracy": self.ideal_accuracy,
            "correct": {f"{level:g}": part for level, part in self.correct.items()},
            "psychometric": asdict(self.fitted),
            "threshold": self.fitted.threshold(),
            "ideal_threshold": self.ideal_threshold,
            "unit": self.task.unit,
        }


def make_networks(args: argparse.Namespace, task: Task) -> dict[str, RateNetwork]:
    """Both by name, with identical weights.

    Raises ValueError or RuntimeError, from rnnfast, for a backend that cannot be used.
    """
    found: dict[str, RateNetwork] = {}
    for name, kind in ((FAST, RateNetwork), (LOOP, LoopNetwork)):
        torch.manual_seed(args.seed)
        found[name] = kind(task.features, args.units, OUTPUTS, STEP / TAU, NOISE, args.backend)
    found[LOOP].load_state_dict(found[FAST].state_dict())
    return found


def run_task(args: argparse.Namespace, task: Task) -> Result:
    """Raises TrainingDiverged, and what `make_networks` does."""
    networks = make_networks(args, task)
    trainers = [
        Trainer(name, model, torch.optim.Adam(model.parameters(), lr=args.lr))
        for name, model in networks.items()
    ]
    generator = torch.Generator().manual_seed(args.seed)
    example = training_trials(task, args.batch_size, generator)
    backend = rnnfast.explain(networks[FAST].rnn, example.inputs).backend
    for epoch in (bar := tqdm(range(args.epochs), desc=task.name, unit="epoch", disable=None)):
        minibatches = [training_trials(task, args.batch_size, generator) for _ in range(args.minibatches)]
        trainers[0].epoch(minibatches, args.seed + epoch)
        if epoch == 0:
            trainers[1].epoch(minibatches[: args.loop_steps], args.seed)
        bar.set_postfix_str(f"loss {sum(trainers[0].losses[-10:]) / 10:.3f}")
    fast, loop = (torch.tensor(trainer.losses, dtype=torch.float64) for trainer in trainers)
    longest_sum = args.batch_size * len(example.inputs)
    agreement = compare(fast[: len(loop)], loop, torch.float32, longest_sum)
    correct = part_correct(networks[FAST], task, args.test_trials, args.seed + 1)
    return Result(
        task, trainers, agreement, correct, fit(correct, args.test_trials), backend, args.minibatches
    )


def report(result: Result) -> str:
    fast, loop = result.trainers
    agreement, unit = result.agreement, result.task.unit
    verdict = "within" if agreement.agrees else "BEYOND"
    count = result.minibatches
    times = [count * trainer.seconds_per_step for trainer in (fast, loop)]
    levels = result.task.test_levels
    table = render(
        [unit, *(f"{level:g}" for level in levels)],
        [
            ["network, % correct", *(f"{100 * result.correct[level]:.1f}" for level in levels)],
            ["ideal observer", *(f"{100 * result.task.ideal(level):.1f}" for level in levels)],
        ],
    )
    return "\n".join([
        f"{result.task.name}, backend {result.backend}",
        f"  an epoch of {count} steps: {fast.name} {number(times[0])} s, {loop.name} {number(times[1])} s,"
        f" {number(times[1] / times[0])} times as long",
        f"  losses of the first {agreement.early_steps} steps differ by {agreement.early_difference:.1e}"
        f" at most, {verdict} what rounding explains ({agreement.tolerance:.1e} at the last);"
        f" of {agreement.steps}: {agreement.difference:.1e}",
        f"  correct on the levels of training: {result.accuracy:.1%}, of an ideal observer"
        f" {result.ideal_accuracy:.1%}",
        f"  {THRESHOLD:.0%} correct at {number(result.fitted.threshold())} ({unit}), an ideal observer at"
        f" {number(result.ideal_threshold)}",
        *(f"  {line}" for line in table.splitlines()),
    ])  # fmt: skip


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings; what the command line says goes before what --quick says."""
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    if args.units < 5:
        parser.error("argument --units: must be 5 or more, as a fifth of them are inhibitory")
    if args.loop_steps > args.minibatches:
        parser.error(f"argument --loop-steps: must be at most --minibatches, {args.minibatches}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args = parse_arguments(parser, argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        command.make_folders(args.out)
        make_networks(args, TASKS[args.tasks[0]])
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    results = []
    try:
        for name in args.tasks:
            results.append(run_task(args, TASKS[name]))
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{args.units} units, {args.batch_size} trials in a minibatch,"
        f" {args.minibatches} minibatches in an epoch, {torch.get_num_threads()} thread(s)"
    )
    for result in results:
        print(f"\n{report(result)}")
    command.write_json(args.out / "neuro.json", {
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "environment": describe() | {"threads": torch.get_num_threads()},
        "tasks": {name: result.to_dict() for name, result in zip(args.tasks, results, strict=True)},
    })  # fmt: skip
    try:
        plot(args.out / "neuro.png", [(r.task, r.trainers, r.correct, r.fitted) for r in results])
        print(f"\npicture: {args.out / 'neuro.png'}")
    except ImportError:
        print("\nno picture: matplotlib is not installed")
    if not all(result.agreement.agrees for result in results):
        print("error: the losses do not agree; is --lr far too large, or a kernel wrong?", file=sys.stderr)
        return 1
    return 0
