"""A run through all its faults, and its comparison with an uninterrupted run."""

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidrec.config import Recipe, save
from sidrec.train.ledger_check import ROW, STEP, TRAINED, check_ledger, ledger_files, read_ledger
from tests.soak.faults.faults import JOB_ENDING_KINDS, SIGTERM_KINDS, Fault, Strike, aim, damage, strike
from tests.soak.faults.job import HungError, Job, Start

SPEED = "samples_per_second"  # of this start, not of the run


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of a loss in metrics.jsonl and of a number in metrics.json; infinite where they have
    other keys, or what is no number differs."""

    losses: float
    metrics: float


EXACT = Difference(0.0, 0.0)
ACROSS_WORLDS = Difference(1e-6, 1e-4)
"""Least tolerance where ranks have changed: they sum in another order. An AUC changes in steps, of 5e-5 if two rows of
the smallest slice change places."""
TOLERANCE_FACTOR = 2
"""Tolerance for a run whose ranks changed, over the difference of uninterrupted runs on these numbers of ranks."""


@dataclass(frozen=True)
class Verdict:
    """complaints: deviations from the uninterrupted run. found: the differences."""

    complaints: tuple[str, ...]
    found: Difference


def across_worlds(runs: Sequence[Path]) -> Difference:
    """Tolerance for runs whose ranks changed, from uninterrupted runs on different numbers of ranks."""
    pairs = list(combinations(runs, 2))
    losses = max((difference(_log(one), _log(other)) for one, other in pairs), default=0.0)
    metrics = max((difference(_metrics(one), _metrics(other)) for one, other in pairs), default=0.0)
    return Difference(
        max(ACROSS_WORLDS.losses, TOLERANCE_FACTOR * losses), max(ACROSS_WORLDS.metrics, TOLERANCE_FACTOR * metrics)
    )


def compare(reference: Path, run: Path, allowed: Difference) -> Verdict:
    """Two run directories: metrics, the log of training, and the ledger, whose rows must be equal in any case."""
    found = Difference(difference(_log(reference), _log(run)), difference(_metrics(reference), _metrics(run)))
    complaints = [
        f"{name} differs from the uninterrupted run's by {by:.3g}"
        for name, by, most in (
            ("metrics.json", found.metrics, allowed.metrics),
            ("metrics.jsonl", found.losses, allowed.losses),
        )
        if by > most
    ]
    complaints += [f"ledger: {epoch}" for epoch in check_ledger(run) if not epoch.exact]
    if not np.array_equal(_ledger(reference), _ledger(run)):
        complaints.append("ledger: other rows in some step than the uninterrupted run's")
    complaints += [f"left behind: {path.relative_to(run)}" for path in sorted(run.rglob("*.partial*"))]
    return Verdict(tuple(complaints), found)


def difference(one: Any, other: Any) -> float:
    """Largest difference of the numbers in two JSON values; infinite where they differ in anything else."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((difference(*both) for both in zip(one, other, strict=True)), default=0.0)
    if one == other:
        return 0.0
    if isinstance(one, float) and isinstance(other, float) and math.isfinite(one) and math.isfinite(other):
        return abs(one - other)
    return math.inf


def _metrics(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())


def _log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != SPEED} for line in lines]


def _ledger(run: Path) -> np.ndarray:
    """int64 [rows, 3]: step, row, whether it was trained on. Sorted: which rank had a row depends on their number."""
    table = pa.concat_tables([read_ledger(path) for path in ledger_files(run / "ledger")])
    columns = [table[name].to_numpy().astype(np.int64) for name in (STEP, ROW, TRAINED)]
    return np.stack(columns, axis=1)[np.lexsort(columns[::-1])]


# A run through all its faults.

JOB_TIMEOUT = 300.0  # seconds that a job may take without news
GRACE = 30.0  # seconds between SIGTERM and SIGKILL, as torchrun and schedulers have it
LEFTOVER_TIMEOUT = 20.0  # seconds for what is left of a job after torchrun's end
DAMAGE_SHARE = 0.3
RESTARTS = (0, 0, 2)


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run. steps: of the whole run. seconds: from its start to its first step.

    across: tolerance for a run whose ranks changed.
    """

    run: Path
    steps: int
    seconds: float
    across: Difference = ACROSS_WORLDS


class FailedError(RuntimeError):
    """A job that failed without a fault."""


@dataclass
class Outcome:
    """The result of a run. complaints: empty if it ended as the uninterrupted one. jobs: commands that it took.

    differs: from the uninterrupted run; None if it did not end.
    """

    name: str
    worlds: tuple[int, ...]
    strikes: list[Strike] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    differs: Difference | None = None
    seconds: float = 0.0
    jobs: int = 0


class KilledRun:
    """A run of `recipe` that is killed by `faults`; each start draws its number of ranks from `worlds`.

    deadline: in seconds of the monotonic clock; no fault is dealt after it. damaged: share of starts by hand before
    which files are damaged. restarts: each job draws torchrun's --max-restarts from these.
    """

    def __init__(
        self,
        recipe: Recipe,
        worlds: tuple[int, ...],
        faults: Sequence[Fault],
        reference: Reference,
        seed: int,
        deadline: float,
        damaged: float = DAMAGE_SHARE,
        restarts: Sequence[int] = RESTARTS,
    ) -> None:
        self._recipe, self._reference, self._deadline = recipe, reference, deadline
        self._faults, self._damaged, self._restarts = list(faults), damaged, restarts
        self._draw = random.Random(seed)
        self._path = recipe.run.parent / f"{recipe.name}.yaml"
        self.log = recipe.run.parent / f"{recipe.name}.log"
        self._linked: list[tuple[Strike, Start]] = []
        self._last: Strike | None = None  # the last one of the job before
        self.outcome = Outcome(recipe.name, worlds)

    def run(self) -> Outcome:
        """Starts the run until it ends. Each deviation is a complaint of the outcome."""
        began = time.monotonic()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save(self._recipe, self._path)
        try:
            while not self._ended():
                if self._draw.random() < self._damaged and self.outcome.strikes:
                    self.outcome.strikes[-1].damage = damage(self._recipe.run, self._draw)
            allowed = self._reference.across if len(self.outcome.worlds) > 1 else EXACT
            verdict = compare(self._reference.run, self._recipe.run, allowed)
            self.outcome.complaints += verdict.complaints
            self.outcome.differs = verdict.found
        except (HungError, FailedError, OSError, ValueError) as error:
            self.outcome.complaints.append(f"{type(error).__name__}: {error}")
        self.outcome.seconds = round(time.monotonic() - began, 2)
        for dealt, start in self._linked:
            dealt.resumed, dealt.seconds = start.position, start.seconds
        return self.outcome

    def _ended(self) -> bool:
        """Starts the run once and deals faults. Returns whether it reached its end."""
        self.outcome.jobs += 1
        world = self._draw.choice(self.outcome.worlds)
        mark = f"{self._recipe.name}-{self.outcome.jobs}-{self._draw.random()}"
        job = Job(self._path, world, self._draw.choice(self._restarts), self.log, mark)
        before, self._last = self._last, None
        try:
            self._strike(job, world)
            status = job.end(JOB_TIMEOUT)
            self._note_leaving(job)
            if left := job.left_over(LEFTOVER_TIMEOUT):
                self.outcome.complaints.append(f"processes left over: {'; '.join(left)}")
        finally:
            if before and job.starts:
                self._linked.append((before, job.starts[0]))
            if job.processes():
                job.kill()
        if status and self._last is None:
            raise FailedError(f"a job on {world} ranks ended with status {status}, without a fault")
        return status == 0

    def _note_leaving(self, job: Job) -> None:
        """Records the time from the last fault to the end of the job, if that fault ended it."""
        if self._last is not None:
            self._last.gone = round(time.monotonic() - job.began, 2)
            if self._last.kind in SIGTERM_KINDS and self._last.gone > GRACE:
                self.outcome.complaints.append(f"{self._last.kind}: not gone within {GRACE:.0f} s")

    def _strike(self, job: Job, world: int) -> None:
        """Deals faults until the job ends or there are no more."""
        while self._faults and time.monotonic() < self._deadline:
            if not aim(job, self._faults[0], self._recipe.run, self._reference.steps):
                break
            dealt = strike(job, self._faults[0], self._recipe.run, world, self._reference.steps, self._draw)
            del self._faults[0]
            if dealt is None:
                continue
            self._last = dealt
            self.outcome.strikes.append(dealt)
            # Ranks may still log their start after torchrun, which would restart them, has ended.
            if dealt.kind in JOB_ENDING_KINDS or not job.wait_for(lambda: job.start is not None, JOB_TIMEOUT):
                break
            dealt.restarted, self._last = True, None
            self._linked.append((dealt, job.starts[-1]))


def make_reference(recipe: Recipe, world: int) -> Reference:
    """Runs a recipe without faults. Raises FailedError."""
    recipe = replace(recipe, name=f"reference-{world}")
    path = recipe.run.parent / f"{recipe.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(recipe, path)
    job = Job(path, world, 0, path.with_suffix(".log"), recipe.name)
    try:
        status = job.end(JOB_TIMEOUT)
        job.left_over(LEFTOVER_TIMEOUT)
    finally:
        if job.processes():
            job.kill()
    if status or not job.start or job.start.seconds is None:
        raise FailedError(
            f"the uninterrupted run on {world} ranks ended with status {status}, see {path.with_suffix('.log')}"
        )
    return Reference(recipe.run, job.start.step, job.start.seconds)
