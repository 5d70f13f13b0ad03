"""Echo state networks on chaotic series with rnnfast.LeakyRNN, beside reservoirpy with the same weights.

    python -m bench reservoir                    # both series, 500 units; a minute
    python -m bench reservoir --series lorenz --units 1000

Every network is checked first: its states against the reference in float64, the first steps of its free run
against feeding each output back by hand. Then it forecasts the test part of the series, one step and free
running. On rnnfast the free runs from all starts are one call (bench/reservoir/esn.py says how, and when that
is exact). Figures: NRMSE of one step; of free runs NRMSE at step 84 (Jaeger and Haas 2004) and, for Lorenz,
the median valid prediction time in Lyapunov times (Pathak et al. 2018). Last, both are timed on the states of
a long series.

Exit status: 0; 1 where states or free runs are wrong; 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import command
from bench.cases.timing import alternate, single_calls
from bench.machine.environment import describe
from bench.report.table import number, render
from bench.reservoir import peer
from bench.reservoir.check import check_free_run, check_states, true_states
from bench.reservoir.esn import draw
from bench.reservoir.forecast import MARK, Forecast, Problem, contenders, dtype_of, forecast, problem
from bench.reservoir.plot import plot
from bench.reservoir.series import SERIES
from bench.reservoir.speed import DENSE, SPARSE, Speed, measure
from bench.suites.progress import progress

STAGES = ("states", "fit", "free run")


def make_parser() -> argparse.ArgumentParser:
    parser = command.parser("reservoir", __doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small networks and short series, for a few seconds"
    )
    parser.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES), metavar="NAME")
    parser.add_argument("--units", type=command.positive(int), help="of the networks that forecast (500)")
    parser.add_argument("--steps", type=command.positive(int), help="of the timed series (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (%(default)s)")
    parser.add_argument("--threads", type=command.positive(int), help="of torch (default: torch's own)")
    parser.add_argument("--no-reservoirpy", action="store_true", help="leave it out although it is installed")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the files (%(default)s)")
    return parser


def forecasts(
    found: Problem, seed: int, with_peer: bool, rounds: int
) -> tuple[dict[str, Forecast], dict[str, dict[str, float]]]:
    """What every contender forecasts, and its seconds by stage.

    Raises AssertionError where a contender's states or free run are wrong.
    """
    weights = draw(found.settings, found.samples.shape[1], seed)
    networks = contenders(weights, with_peer)
    truth = true_states(weights, found.inputs)
    results: dict[str, Forecast] = {}
    states = {}
    for name, network in networks.items():
        states[name] = network.states(found.inputs)
        check_states(name, states[name], truth, dtype_of(network), found.samples.shape[1])
        readout = found.fit(network, states[name])
        check_free_run(name, network, weights, readout, states[name][found.starts], dtype_of(network))
        results[name] = forecast(found, network, states[name])

    horizon = found.series.horizon
    stages = {
        "states": lambda n: networks[n].states(found.inputs),
        "fit": lambda n: found.fit(networks[n], states[n]),
        "free run": lambda n: networks[n].free_run(states[n][found.starts], horizon),
    }
    seconds: dict[str, dict[str, float]] = {name: {} for name in networks}
    for stage, call in stages.items():
        times = alternate({n: (lambda n=n, call=call: call(n)) for n in networks}, single_calls(rounds))
        for name, time in times.items():
            seconds[name][stage] = time.median
    return results, seconds


def forecast_table(found: Problem, results: dict[str, Forecast], seconds: dict[str, dict[str, float]]) -> str:
    rows = []
    for name, result in results.items():
        times = [seconds[name][stage] * 1e3 for stage in STAGES]
        rows.append([
            name, f"{result.one_step:.2e}", f"{result.at_mark:.2e}", number(result.valid_time),
            *(f"{time:,.1f}" for time in times), f"{sum(times):,.0f}",
        ])  # fmt: skip
    header = [
        found.series.name, "NRMSE, 1 step", f"NRMSE, {MARK} steps", "valid, Lyapunov times",
        *(f"{stage}, ms" for stage in STAGES), "all, ms",
    ]  # fmt: skip
    return render(header, rows)


def speed_table(speeds: Sequence[Speed]) -> str:
    rows = []
    for speed in speeds:
        for name, measured in speed.seconds.items():
            ours = name.startswith("rnnfast")
            ratios = [number(speed.ratio(name, other)) if ours else "-" for other in (DENSE, SPARSE)]
            each = measured.median / speed.steps * 1e6
            rows.append(
                [f"{name}, {speed.units} units", f"{measured.median * 1e3:,.1f}", f"{each:.2f}", *ratios]
            )
    steps = speeds[0].steps
    return render(
        [f"{steps:,} steps of one series", "ms", "us a step", "times reservoirpy's dense", "sparse"], rows
    )


def run(args: argparse.Namespace, with_peer: bool) -> int:
    units = args.units or (60 if args.quick else 500)
    steps = args.steps or (300 if args.quick else 10_000)
    training, testing, starts = (600, 1000, 3) if args.quick else (4000, 4000, 50)
    rounds = 1 if args.quick else 5
    problems, found, seconds, speeds = [], {}, {}, []
    jobs = [*args.series, *((30, 40) if args.quick else (200, 500))]
    for job in progress(jobs, "reservoir", label=str):
        if isinstance(job, str):
            one = problem(SERIES[job], units, training, testing, starts)
            found[job], seconds[job] = forecasts(one, args.seed, with_peer, rounds)
            problems.append(one)
        else:
            speeds.append(measure(job, steps, rounds, with_peer, args.seed))

    sizes = f"{units} units, {training} samples to train on, {starts} free runs"
    print(f"{sizes}; {torch.get_num_threads()} thread(s)")
    for one in problems:
        name = one.series.name
        print(f"\n{forecast_table(one, found[name], seconds[name])}")
    print(f"\n{speed_table(speeds)}")
    settings = {"units": units, "training": training, "testing": testing, "starts": starts, "seed": args.seed}
    versions = {"reservoirpy": peer.library_version()} if with_peer else {}
    command.write_json(args.out / "reservoir.json", {
        "settings": settings,
        "environment": describe() | versions | {"threads": torch.get_num_threads()},
        "forecasts": found,
        "seconds": seconds,
        "speeds": speeds,
    })  # fmt: skip
    try:
        plot(args.out / "reservoir.png", problems, found, speeds)
        print(f"\npicture: {args.out / 'reservoir.png'}")
    except ImportError:
        print("\nno picture: matplotlib is not installed")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        command.make_folders(args.out)
    except ValueError as error:
        parser.error(str(error))
    with_peer = not args.no_reservoirpy
    if with_peer:
        try:
            peer.library()
        except peer.Unavailable as error:
            with_peer = False
            print(error)
    try:
        with torch.no_grad():
            return run(args, with_peer)
    except AssertionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
