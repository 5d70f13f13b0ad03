"""Problems in child processes, which may crash or hang.

The parent imports torch and computes nothing, so that its forks begin as clean as a new process and quicker;
rnnfast is imported in the children alone.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import re
import selectors
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from .problem import SLOW_CAPTURES, Problem, draw

WATCHDOG = 30.0  # seconds for one problem
SLOW_WATCHDOG = 240.0  # for one that is compiled
# How stacks begin that Python or a sanitizer writes.
BEGINNING = re.compile("runtime error: |ERROR: |Fatal Python error|^Current thread|^Thread 0x")
EXTENSION = "RNNFAST_FUZZ_EXTENSION"  # names another build of rnnfast._cpu


class Report(NamedTuple):
    """What became of a problem."""

    kind: str  # "" stands for nothing to report
    text: str
    signature: str
    trace: str = ""


def inspect(p: Problem) -> Report:
    """In a child: examines a problem."""
    if os.environ.get(EXTENSION):
        from tests import sanitize

        sanitize.use(os.environ[EXTENSION])
    from .judge import examine, signature

    try:
        finding = examine(p)
    except Exception as error:
        return Report(
            "internal", f"{type(error).__name__}: {error}", "internal", traceback.format_exc(limit=-6)
        )
    if finding is None:
        return Report("", "", "")
    return Report(finding.kind, finding.text[:1000], signature(p, finding), finding.trace)


def limit_of(p: Problem, watchdog: float) -> float:
    return max(watchdog, SLOW_WATCHDOG) if p.capture in SLOW_CAPTURES else watchdog


def ended(status: int) -> str:
    """How a child ended, in words."""
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


class Child(NamedTuple):
    process: int
    reading: int  # the descriptor from which its reports are read
    stacks: IO[bytes]  # what Python was doing when it crashed, or was asked

    def stack(self) -> str:
        self.stacks.seek(0)
        lines = self.stacks.read().decode(errors="replace").splitlines()
        first = next((i for i, line in enumerate(lines) if BEGINNING.search(line)), len(lines))
        return "\n".join(lines[first : first + 12])

    def ask_and_kill(self) -> str:
        """Ends it, and says where it was."""
        os.kill(self.process, signal.SIGUSR1)
        time.sleep(0.5)
        os.kill(self.process, signal.SIGKILL)
        return self.stack()


def _fork(body: Callable[[int], None]) -> Child:
    """A child that runs body(descriptor to write to)."""
    reading, writing = os.pipe()
    stacks = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.dup2(stacks.fileno(), 2)  # where sanitizers write, too
            faulthandler.enable(stacks)
            faulthandler.register(signal.SIGUSR1, stacks)
            body(writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return Child(child, reading, stacks)


def alone(p: Problem, watchdog: float = WATCHDOG, inspect: Callable[[Problem], Report] = inspect) -> Report:
    """The report of one problem in a child of its own."""

    def body(writing: int) -> None:
        os.write(writing, json.dumps(inspect(p)).encode())

    child = _fork(body)
    limit = time.monotonic() + limit_of(p, watchdog)
    parts, stack, hangs = [], "", False
    with selectors.DefaultSelector() as selector:
        selector.register(child.reading, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, limit - time.monotonic())):
                stack, hangs = child.ask_and_kill(), True
                break
            part = os.read(child.reading, 65536)
            if not part:
                break
            parts.append(part)
    os.close(child.reading)
    status = os.waitpid(child.process, 0)[1]
    stack = stack or child.stack()
    child.stacks.close()
    if hangs:
        return Report("hang", f"no answer after {limit_of(p, watchdog):.0f} s", f"{p.target} hang", stack)
    if status != 0 or not parts:
        unusual = sorted(dict(p.wrong).values())
        return Report(
            "crash", ended(status), f"{p.target} {p.capture} crash {ended(status)} {unusual}", stack
        )
    return Report(*json.loads(b"".join(parts)))


class Worker:
    """A child that goes through seeds until it is told to stop, and says in shared memory where it is."""

    PLACE = struct.Struct("qqd")  # the seed, how many problems are done, when this one was begun

    def __init__(self, seeds: range, inspect: Callable[[Problem], Report] = inspect) -> None:
        self.seeds = seeds
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._write(seeds.start, 0)

        def body(writing: int) -> None:
            for done, seed in enumerate(seeds):
                self._write(seed, done)
                report = inspect(draw(seed))
                if report.kind:
                    os.write(writing, (json.dumps([seed, *report]) + "\n").encode())
            self._write(seeds.stop, len(seeds))

        self.child = _fork(body)
        os.set_blocking(self.child.reading, False)
        self.unread = b""

    def _write(self, seed: int, done: int) -> None:
        self.memory[: self.PLACE.size] = self.PLACE.pack(seed, done, time.monotonic())

    def place(self) -> tuple[int, int, float]:
        """The seed it is at, how many it has done, and for how many seconds it has been at this one."""
        written = b""
        while written != (again := self.memory[: self.PLACE.size]):  # until it stands still
            written = again
        seed, done, begun = self.PLACE.unpack(written)
        return seed, done, time.monotonic() - begun

    def reports(self) -> Iterator[tuple[int, Report]]:
        """Those that have come in since."""
        while True:
            try:
                part = os.read(self.child.reading, 65536)
            except BlockingIOError:
                part = b""
            if not part:
                break
            self.unread += part
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            seed, *report = json.loads(line)
            yield seed, Report(*report)

    def finished(self) -> int | None:
        """The status with which it has ended, or None while it runs."""
        child, status = os.waitpid(self.child.process, os.WNOHANG)
        return status if child else None

    def kill(self) -> str:
        """Ends it, and says where it was."""
        stack = self.child.ask_and_kill()
        os.waitpid(self.child.process, 0)
        return stack

    def close(self) -> None:
        os.close(self.child.reading)
        self.child.stacks.close()
        self.memory.close()
