"""One run through all its faults, and what became of it."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.fault_campaign.damage import damage
from benchmarks.fault_campaign.faults import ENDS, TOLD, Fault, Strike, aim, strike
from benchmarks.fault_campaign.job import HungError, Job, Start
from benchmarks.fault_campaign.verdict import ACROSS_WORLDS, EXACT, Difference, compare
from sidrec.config import Recipe, save

TO_THE_END = 300.0  # seconds that a job may take without news
GRACE = 30.0  # seconds between SIGTERM and SIGKILL, as torchrun and schedulers have it
TO_BE_GONE = 20.0  # seconds for what is left of a job after torchrun's end
DAMAGED = 0.3
RESTARTS = (0, 0, 2)


@dataclass(frozen=True)
class Reference:
    """A run that nobody struck. steps: of the whole run. seconds: from its start to its first step.

    across: what a run may differ from it by whose ranks changed.
    """

    run: Path
    steps: int
    seconds: float
    across: Difference = ACROSS_WORLDS


class FailedError(RuntimeError):
    """A job that failed without having been struck."""


@dataclass
class Outcome:
    """What became of a run. complaints: empty where it ended as one that nobody struck. jobs: commands it took.

    differs: by what, from the uninterrupted run; None where it did not end.
    """

    name: str
    worlds: tuple[int, ...]
    strikes: list[Strike] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    differs: Difference | None = None
    seconds: float = 0.0
    jobs: int = 0


class Victim:
    """A run of `recipe` that is struck by `faults`, each start on a number of ranks drawn from `worlds`.

    deadline: in seconds of the monotonic clock; no fault is dealt after it. damaged: share of starts by hand before
    which something is damaged. restarts: what torchrun's --max-restarts is drawn from, job by job.
    """

    def __init__(
        self,
        recipe: Recipe,
        worlds: tuple[int, ...],
        faults: Sequence[Fault],
        reference: Reference,
        seed: int,
        deadline: float,
        damaged: float = DAMAGED,
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
        """Starts the run until it ends. Whatever it does wrong is a complaint of the outcome."""
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
        """Starts the run once and strikes it; whether it reached its end."""
        self.outcome.jobs += 1
        world = self._draw.choice(self.outcome.worlds)
        mark = f"{self._recipe.name}-{self.outcome.jobs}-{self._draw.random()}"
        job = Job(self._path, world, self._draw.choice(self._restarts), self.log, mark)
        before, self._last = self._last, None
        try:
            self._strike(job, world)
            status = job.end(TO_THE_END)
            self._note_leaving(job)
            if left := job.left_over(TO_BE_GONE):
                self.outcome.complaints.append(f"processes left over: {'; '.join(left)}")
        finally:
            if before and job.starts:
                self._linked.append((before, job.starts[0]))
            if job.processes():
                job.kill()
        if status and self._last is None:
            raise FailedError(f"a job on {world} ranks ended with status {status}, and nobody had struck it")
        return status == 0

    def _note_leaving(self, job: Job) -> None:
        """How long the job took to end after its last strike, if that was the end of it."""
        if self._last is not None:
            self._last.gone = round(time.monotonic() - job.began, 2)
            if self._last.kind in TOLD and self._last.gone > GRACE:
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
            # Ranks may still say that they start when nobody is left to start them again.
            if dealt.kind in ENDS or not job.wait_for(lambda: job.start is not None, TO_THE_END):
                break
            dealt.restarted, self._last = True, None
            self._linked.append((dealt, job.starts[-1]))


def make_reference(recipe: Recipe, world: int) -> Reference:
    """Runs a recipe that nobody strikes. Raises FailedError."""
    recipe = replace(recipe, name=f"reference-{world}")
    path = recipe.run.parent / f"{recipe.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(recipe, path)
    job = Job(path, world, 0, path.with_suffix(".log"), recipe.name)
    try:
        status = job.end(TO_THE_END)
        job.left_over(TO_BE_GONE)
    finally:
        if job.processes():
            job.kill()
    if status or not job.start or job.start.seconds is None:
        raise FailedError(
            f"the uninterrupted run on {world} ranks ended with status {status}, see {path.with_suffix('.log')}"
        )
    return Reference(recipe.run, job.start.step, job.start.seconds)
