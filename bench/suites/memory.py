"""Peak memory of training, one process a contender: `python -m bench memory NAME` prints bytes.

What is counted is what a training step adds to a process that already holds the library, the inputs and the
parameters: the highest resident size during three steps minus the resident size before the first. A tiny
case runs first, so that thread pools and code do not count. Measured twice: with the allocator as it comes
("resident"), which keeps freed blocks of some sizes and so varies from run to run, and with glibc told to
return large blocks at once ("live"), which is what the implementation really needs. Linux only, as it needs
a peak that can be reset.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Optional

import torch

from bench import command
from bench.cases.case import Case
from bench.cases.inputs import make_inputs
from bench.cases.suites import MEMORY
from bench.peers import PEERS

RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def unavailable() -> Optional[str]:
    return (
        None
        if Path("/proc/self/clear_refs").exists()
        else "the system has no resettable peak of resident memory"
    )


def of(name: str, threads: int, variables: dict[str, str]) -> dict:
    """{"live": bytes, "resident": bytes} or {"reason": ...}, each measured in a new process."""
    found: dict = {"case": MEMORY.key}
    for kind, allocator in (("live", RETURN_AT_ONCE), ("resident", {})):
        command = [sys.executable, "-m", "bench", "memory", name, "--threads", str(threads)]
        done = subprocess.run(command, env={**variables, **allocator}, capture_output=True, text=True)
        if done.returncode != 0:
            return {"reason": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        found[kind] = int(done.stdout.split()[-1])
    return found


def main(arguments: list[str]) -> int:
    p = command.parser("memory", __doc__)
    p.add_argument("name", choices=PEERS, metavar="NAME", help=f"the contender, of {', '.join(PEERS)}")
    p.add_argument("--threads", type=int, default=MEMORY.threads)
    options = p.parse_args(arguments)
    peer, threads = PEERS[options.name], options.threads
    why = unavailable() or (peer.excluded(MEMORY) or ("", None))[1]
    if why is not None:
        print(f"memory: {why}", file=sys.stderr)
        return 1
    torch.set_num_threads(threads)
    tiny = Case(2, 2, 8, 8, training=True, threads=threads)
    peer.prepare(tiny, make_inputs(tiny)).call()
    prepared = peer.prepare(MEMORY, make_inputs(MEMORY))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at the present size
    for _ in range(3):
        prepared.call()
    print(_status("VmHWM") - before)
    return 0


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, f"no {field} in /proc/{os.getpid()}/status"
    return int(match[1]) * 1024
