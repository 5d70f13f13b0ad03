"""The command line of `python -m bench charlm`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import command
from bench.lm import batches, models

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"hidden": 64, "batch_size": 16, "max_tokens": 20_000, "steps": 60},
    "d2l": {
        "letters_only": True, "max_tokens": 10_000, "input": "one-hot", "partition": "sequential",
        "hidden": 256, "num_steps": 35, "batch_size": 32, "epochs": 500,
        "optimizer": "sgd", "lr": 1.0, "decay": "none", "clip": 1.0, "prefix": "time traveller",
    },
}  # fmt: skip


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = command.parser("charlm", description)
    count, real = command.positive(int), command.positive(float)
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--quick", action="store_true", help="a small model for a few seconds")
    preset.add_argument(
        "--d2l", action="store_true", help="the settings of the d2l course; its text comes by --text"
    )

    data = parser.add_argument_group("text")
    data.add_argument("--text", type=Path, help="UTF-8 file (default: the prose of pydoc_data.topics)")
    data.add_argument("--letters-only", action="store_true", help="lower case, letters and spaces only")
    data.add_argument("--max-tokens", type=count, help="train on the first so many characters only")
    data.add_argument("--partition", choices=batches.PARTITIONS, default="sequential")
    data.add_argument("--num-steps", type=count, default=35, help="length of a sequence (%(default)s)")
    data.add_argument("--batch-size", type=count, default=32, help="sequences in a minibatch (%(default)s)")

    model = parser.add_argument_group("model")
    model.add_argument("--hidden", type=count, default=256, help="hidden units (%(default)s)")
    model.add_argument("--input", choices=models.INPUTS, default="embedding")
    model.add_argument("--embedding", type=count, default=64, help="features of an embedding (%(default)s)")
    model.add_argument("--window", type=count, default=8, help="characters the baseline sees (%(default)s)")
    model.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    model.add_argument("--backend", default="auto", help="of rnnfast.RNN (%(default)s)")
    model.add_argument("--no-torch", action="store_true", help="leave torch.nn.RNN out")

    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=count, help="minibatches to train on")
    training.add_argument("--epochs", type=count, help="the same in passes over the text")
    training.add_argument("--seconds", type=real, help="for the whole run (100, if no other limit is given)")
    training.add_argument("--optimizer", choices=("sgd", "adam"), default="adam")
    training.add_argument("--lr", type=real, default=5e-3, help="learning rate (%(default)s)")
    training.add_argument("--decay", choices=("linear", "none"), default="linear", help="of the rate")
    training.add_argument("--clip", type=real, default=1.0, help="largest norm of the gradient (%(default)s)")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--threads", type=count, help="default: torch's")

    output = parser.add_argument_group("output")
    output.add_argument("--prefix", default="The ", help="what the samples begin with (%(default)r)")
    output.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (%(default)s)")
    output.add_argument("--json", type=Path, help="file for everything that was found")
    return parser


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings; what the command line says goes before what a preset says."""
    chosen = parser.parse_args(argv)
    for name, settings in PRESETS.items():
        if getattr(chosen, name):
            parser.set_defaults(**settings)
    args = parser.parse_args(argv)
    if not args.prefix:
        parser.error("argument --prefix: must not be empty")
    if args.steps is args.epochs is args.seconds is None:
        args.seconds = 100.0
    return args
