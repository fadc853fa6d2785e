"""The order and pace of a study's runs: some at a time, with progress and the time left, within a time limit."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from sidrec.study.jobs import Run

REMINDER = 300.0  # seconds without news after which progress is logged

log = logging.getLogger(__name__)

Kind = tuple[str, str]
"""Data set and variant: runs of a kind are taken to last equally long."""


@dataclass
class Durations:
    """Seconds of runs by kind, measured in this process or, before that, taken from recorded results."""

    recorded: Mapping[Kind, Sequence[float]] = field(default_factory=dict)
    measured: dict[Kind, list[float]] = field(default_factory=dict)

    def add(self, run: Run, seconds: float) -> None:
        self.measured.setdefault(_kind(run), []).append(seconds)

    def expected(self, run: Run) -> float | None:
        """Mean of the run's kind, else of its data set, else of all; None while nothing is known."""
        for found in (self.measured, self.recorded):
            if values := found.get(_kind(run)):
                return float(np.mean(values))
        known = [(kind, values) for found in (self.measured, self.recorded) for kind, values in found.items()]
        of_dataset = [np.mean(values) for kind, values in known if kind[0] == run.dataset]
        of_all = [np.mean(values) for _, values in known]
        return float(np.mean(of_dataset or of_all)) if of_all else None


@dataclass(frozen=True)
class _Begun:
    run: Run
    since: float


class Schedule:
    """Does runs, up to `jobs` at a time, in their order."""

    def __init__(
        self,
        runs: Sequence[Run],
        jobs: int,
        durations: Durations,
        stop: Callable[[], None],
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stop: ends the work of `do` in other threads. deadline: of `clock`; no run starts that would end later."""
        self.waiting = list(runs)
        self.jobs, self.durations, self.deadline = jobs, durations, deadline
        self._stop, self._clock = stop, clock
        self._totals = {
            name: sum(run.dataset == name for run in runs) for name in dict.fromkeys(r.dataset for r in runs)
        }
        self._done: Counter[str] = Counter()
        self._running: dict[Future[bool], _Begun] = {}
        self.failed: list[tuple[Run, str]] = []
        self.late: list[Run] = []
        """Runs that would have ended after the deadline."""

    def work(self, do: Callable[[Run], bool], failures: tuple[type[Exception], ...]) -> None:
        """Calls `do` for each run, in threads.

        do: does a run and records it; returns False if another process had done it. failures: exceptions of a failed
        run, with a message; any other ends all.
        """
        pool = ThreadPoolExecutor(self.jobs)
        try:
            while self._start(pool, do) or self._running:
                ended, _ = wait(self._running, REMINDER, FIRST_COMPLETED)
                for future in ended:
                    self._end(future, failures)
                if not ended:
                    log.info("running: %s; %s", ", ".join(str(b.run) for b in self._running.values()), self._progress())
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, do: Callable[[Run], bool]) -> bool:
        """Starts runs while there are free jobs. Returns whether it started any."""
        before = len(self._running)
        while self.waiting and len(self._running) < self.jobs:
            run = self.waiting.pop(0)
            if self._is_late(run):
                self.late.append(run)
            else:
                self._running[pool.submit(do, run)] = _Begun(run, self._clock())
        return len(self._running) > before

    def _is_late(self, run: Run) -> bool:
        """Whether a run would end after the deadline. After one that would, none of a later number starts."""
        if self.deadline is None:
            return False
        later = any(run.number > late.number for late in self.late)
        return later or self._clock() + (self.durations.expected(run) or 0.0) > self.deadline

    def _end(self, future: "Future[bool]", failures: tuple[type[Exception], ...]) -> None:
        begun = self._running.pop(future)
        seconds = self._clock() - begun.since
        self._done[begun.run.dataset] += 1
        try:
            if future.result():
                self.durations.add(begun.run, seconds)
                log.info("%s finished after %s; %s", begun.run, duration_text(seconds), self._progress())
        except failures as error:
            self.failed.append((begun.run, str(error)))
            log.error("%s failed: %s", begun.run, error)

    def _progress(self) -> str:
        """Runs done of all, by data set, and the time left."""
        done = f"{sum(self._done.values())}/{sum(self._totals.values())}"
        parts = [f"{name} {self._done[name]}/{total}" for name, total in self._totals.items()]
        by_dataset = f" ({', '.join(parts)})" if len(parts) > 1 else ""
        left = self.seconds_left()
        return f"{done} runs{by_dataset}, ETA {'unknown' if left is None else duration_text(left)}"

    def seconds_left(self) -> float | None:
        """Expected seconds until the last run ends, as if work were shared evenly; None while nothing is known."""
        now = self._clock()
        of_running = [(begun.run, now - begun.since) for begun in self._running.values()]
        found = [
            (self.durations.expected(run), spent) for run, spent in [*of_running, *((r, 0.0) for r in self.waiting)]
        ]
        if any(seconds is None for seconds, _ in found):
            return None
        left = [max(0.0, (expected or 0.0) - seconds) for expected, seconds in found]
        return max(sum(left) / self.jobs, *left, 0.0) if left else 0.0


def _kind(run: Run) -> Kind:
    return run.dataset, run.variant


def duration_text(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
