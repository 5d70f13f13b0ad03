"""States over a long series: one call, and reservoirpy's loop over the steps with W dense and sparse."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.cases.timing import Measurement, alternate, single_calls
from bench.reservoir.check import Network, check_states, true_states
from bench.reservoir.esn import EchoStateNetwork, Settings, draw
from bench.reservoir.forecast import dtype_of
from bench.reservoir.peer import ReservoirpyNetwork

DENSE, SPARSE = "reservoirpy, dense W", "reservoirpy, sparse W"
CHECKED = 1000  # steps whose states are compared with the reference's


@dataclass(frozen=True)
class Speed:
    """Seconds of every contender for `steps` steps of one series at `units` units."""

    units: int
    steps: int
    seconds: dict[str, Measurement]

    def ratio(self, name: str, peer: str = DENSE) -> float | None:
        """How many times as long `peer` takes, or None where it took no part."""
        times = self.seconds
        return times[peer].median / times[name].median if peer in times else None


def measure(units: int, steps: int, rounds: int, with_peer: bool, seed: int = 0) -> Speed:
    """Checks all, then times them in turns.

    A tenth of the elements of W are not zero, reservoirpy's default.

    Raises AssertionError where a contender's states are wrong.
    """
    weights = draw(Settings(units, 0.3, 0.9, 1.0, 0.2, 0.0), 1, seed)
    inputs = torch.randn(steps, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    networks: dict[str, Network] = {
        f"rnnfast {str(dtype).removeprefix('torch.')}": EchoStateNetwork(weights, dtype)
        for dtype in (torch.float32, torch.float64)
    }
    if with_peer:
        networks[DENSE] = ReservoirpyNetwork(weights)
        networks[SPARSE] = ReservoirpyNetwork(weights, sparse=True)
    truth = true_states(weights, inputs[:CHECKED])
    for name, network in networks.items():
        states = network.states(inputs)[:CHECKED]
        check_states(name, states, truth, dtype_of(network), features=1)
    calls = {name: (lambda network=network: network.states(inputs)) for name, network in networks.items()}
    return Speed(units, steps, alternate(calls, single_calls(rounds)))
