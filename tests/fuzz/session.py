"""A run of the fuzzer: workers that go through seeds, and are replaced where they crash or hang."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .child import Report, Worker, alone, ended, limit_of
from .problem import draw
from .shrink import shrink

SEEDS = 10**9  # of one run
PART = 20_000  # seeds for a worker before a new one takes its place


@dataclass
class Session:
    seed: int
    processes: int = 1
    watchdog: float = 30.0
    shrinking: bool = True
    problems: int = 0
    restarts: int = 0
    seconds: float = 0.0
    found: dict[str, list[int]] = field(default_factory=dict)  # seeds by signature

    def run(self, first: int, problems: int | None, seconds: float) -> None:
        """`problems` problems from number `first` on or, if that is None, as many as there is time for."""
        begun = time.monotonic()
        following = self.seed * SEEDS + first
        last = following + problems if problems is not None else (self.seed + 1) * SEEDS
        waiting: list[range] = []
        workers: list[Worker] = []
        while True:
            over = problems is None and time.monotonic() - begun > seconds
            while len(workers) < self.processes and not over:
                if waiting:
                    part = waiting.pop()
                elif following < last:
                    part = range(following, min(last, following + PART))
                    following = part.stop
                else:
                    break
                workers.append(Worker(part))
            if not workers:
                break
            time.sleep(0.05)
            for worker in list(workers):
                self._look_at(worker, workers, waiting, over)
        self.seconds = time.monotonic() - begun

    def _look_at(self, worker: Worker, workers: list[Worker], waiting: list[range], over: bool) -> None:
        status = worker.finished()
        at, done, since = worker.place()
        hangs = status is None and since > limit_of(draw(at), self.watchdog)
        stack = ""
        if status is None and (hangs or over):
            stack = worker.kill()
        for seed, report in worker.reports():
            self._note(seed, report)
        if status is None and not hangs and not over:
            return
        workers.remove(worker)
        stack = stack or worker.child.stack()
        worker.close()
        self.problems += done
        if status == 0 or (over and status is None and not hangs):
            return
        self.restarts += 1
        self.problems += 1
        waiting.append(range(at + 1, worker.seeds.stop))
        report = alone(draw(at), self.watchdog)
        if report.kind not in ("crash", "hang"):
            how = "no answer" if hangs else ended(status or 0)
            alone_it = f"the last of them alone: {report.text or 'well'}"
            text = f"{how} after the seeds {worker.seeds.start} to {at}; {alone_it}"
            report = Report("crash", text, f"crash not repeated alone {draw(at).target}", stack)
        self._note(at, report)

    def _note(self, seed: int, report: Report) -> None:
        """Prints the first finding of a signature, in its smallest form."""
        seeds = self.found.setdefault(report.signature, [])
        seeds.append(seed)
        if len(seeds) > 1:
            return
        problem = draw(seed)
        print(f"{report.kind}, seed {seed}: {report.text}\n  {problem.text()}", flush=True)
        if report.kind in ("crash", "hang", "internal"):
            print(report.trace, flush=True)
        if self.shrinking:
            small, least = shrink(problem, report, lambda p: alone(p, self.watchdog))
            print(f"  smallest form: {small.text()}\n  {least.kind}: {least.text}", flush=True)

    def summary(self) -> str:
        rate = self.problems / max(self.seconds, 1e-9)
        lines = [
            f"{self.problems} problems, {rate:.0f} a second, {self.processes} processes,"
            f" {self.restarts} restarts;"
            f" {sum(map(len, self.found.values()))} findings of {len(self.found)} kinds"
        ]
        for signature, seeds in sorted(self.found.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(seeds)} x {signature.splitlines()[0]}: seed {seeds[0]}")
        return "\n".join(lines)
