"""The rounds of a bench, and what they measured of each plan.

In a round every plan is visited once. The order rotates from round to round, so that a slow minute of the machine
affects all plans equally.

Shapes: S timed steps, W ranks.
"""

import gc
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

from sidrec.bench.candidate_plans import Rating
from sidrec.bench.result import PHASES, PlanMeasurement, Timing
from sidrec.bench.trial import StepCounts, Trial, Visit
from sidrec.parallel.process_group import Ranks, gather_objects, run_on_all_ranks

LONGEST = 400
"""Characters kept of an error raised inside TorchRec."""
HOPELESS = 5.0
"""A plan is dropped if all its steps of the first round take longer than this many times the fastest plan's median."""
DROPPED = f"dropped after the first round if no step took less than {HOPELESS:.0f} times the fastest plan's median"
KEPT = "measured in all rounds"


class Rounds:
    """Visits every plan once a round.

    trial: makes the model of a plan, by its name. records: by name; the same on every rank; plans that failed are
    skipped. keep: whether models stay in memory between rounds, or are rebuilt for every visit. save: called on every
    rank after each visit. keep_all: whether plans that take far longer than the fastest are measured in all rounds.
    """

    def __init__(
        self,
        trial: Callable[[str], Trial],
        records: Mapping[str, "Record"],
        steps: StepCounts,
        keep: bool,
        save: Callable[[], object],
        ranks: Ranks,
        keep_all: bool = False,
    ) -> None:
        self._trial = trial
        self._records = records
        self._steps = steps
        self._keep = keep
        self._save = save
        self._ranks = ranks
        self._keep_all = keep_all
        self._trials: dict[str, Trial] = {}

    def run(self, rounds: int) -> None:
        """All rounds. After the first, plans with other losses than most are failed, and hopeless plans are dropped."""
        started, visits = time.monotonic(), 0
        for number in range(rounds):
            names = self._measured_further()
            turn = number % max(1, len(names))
            for index, name in enumerate(names[turn:] + names[:turn]):
                self._measure(self._records[name])
                self._save()
                visits += 1
                left = len(names) * (rounds - number) - index - 1
                self._print(f"round {number + 1}/{rounds}", name, (time.monotonic() - started) / visits * left)
            if number == 0:
                self._fail_other_losses()
                if rounds > 1 and not self._keep_all:
                    self._drop_hopeless()

    def _measured_further(self) -> list[str]:
        return [name for name, record in self._records.items() if record.failed is None and record.dropped is None]

    def _measure(self, record: "Record") -> None:
        """A visit on all ranks. If it raises on any rank, this plan fails on all ranks; the others go on."""
        try:
            visit = run_on_all_ranks(self._ranks, lambda: self._visit(record.name))
        except Exception as error:
            if os.environ.get("SIDREC_TRACEBACK") == "1":
                traceback.print_exc()
            record.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"
            self._trials.pop(record.name, None)
            return
        finally:
            gc.collect()
        record.add(gather_objects(self._ranks, visit))

    def _visit(self, name: str) -> Visit:
        trial = self._trials.get(name) or self._trial(name)
        if self._keep:
            self._trials[name] = trial
        return trial.visit(self._steps)

    def _fail_other_losses(self) -> None:
        mismatches = loss_mismatches({name: self._records[name].losses for name in self._measured_further()})
        for name, message in mismatches.items():
            self._records[name].failed = message
            self._trials.pop(name, None)
        self._save()

    def _drop_hopeless(self) -> None:
        """All ranks drop the same plans: their records hold the slowest rank's times."""
        steps = {name: self._records[name].slowest["step"] for name in self._measured_further()}
        for name, message in hopeless(steps).items():
            self._records[name].dropped = message
            self._trials.pop(name, None)
            if self._ranks.first:
                print(f"{name} dropped {message}; --keep-all measures it in all rounds", flush=True)
        self._save()

    def _print(self, where: str, name: str, seconds_left: float) -> None:
        if self._ranks.first:
            record = self._records[name]
            outcome = f"step {record.rounds[-1]:.2f} ms" if record.failed is None else f"failed: {record.failed}"
            print(f"{where}  {name}  {outcome}  ETA {timedelta(seconds=round(seconds_left))}", flush=True)


def hopeless(steps: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Plans that one round shows to be far from the fastest -> a message. steps: plan -> milliseconds of each step.

    The plan's fastest step counts, so that a slow minute of the machine does not drop it.
    """
    medians = {name: float(np.median(each)) for name, each in steps.items()}
    best = min(medians, key=lambda name: medians[name], default="")
    return {
        name: (
            f"after 1 round: its fastest step took {min(each):,.4g} ms, {min(each) / medians[best]:.1f} times "
            f"the median of {best}"
        )
        for name, each in steps.items()
        if min(each) > HOPELESS * medians[best]
    }


TOLERANCE = 1e-3
"""Largest relative difference between two plans' losses of a step. Another order of summation changes it by 1e-6."""


def loss_mismatches(losses: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Plans that compute something else than most plans -> a message that names the first differing step.

    losses: plan -> [S] mean loss over all ranks. The reference is the plan that most plans agree with, or the first of
    several such.
    """
    if not losses:
        return {}
    agreeing = {
        name: sum(_first_difference(own, other) is None for other in losses.values()) for name, own in losses.items()
    }
    reference = max(losses, key=lambda name: agreeing[name])
    messages = {}
    for name, own in losses.items():
        step = _first_difference(losses[reference], own)
        if step is not None:
            expected, got = losses[reference][step], own[step]
            messages[name] = f"step {step + 1}: expected the loss of {reference}, {expected:.6f}, got {got:.6f}"
    return messages


def _first_difference(losses: Sequence[float], others: Sequence[float]) -> int | None:
    for step, (one, other) in enumerate(zip(losses, others, strict=True)):
        if not abs(one - other) <= TOLERANCE * max(abs(one), abs(other)):  # true for NaN too
            return step
    return None


# What was measured of a plan.


@dataclass
class Record:
    """Measurements of one plan so far. layout: the plan file's content. failed: why it is not measured any longer.

    aliases: other names of the same plan. dropped: why it is measured in the first round only.
    rounds: median step of each round. slowest: phase -> milliseconds of the slowest rank in every timed step.
    cpu: for each rank, CPU milliseconds of every whole step. losses: of the first visit's steps, mean over ranks.
    lookups_W: for each visit, ids looked up on each rank.
    """

    name: str
    layout: dict[str, Any]
    failed: str | None
    rating: Rating | None
    rounds: list[float] = field(default_factory=list)
    slowest: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    losses: list[float] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    memory_W: list[int] = field(default_factory=list)
    lookups_W: list[list[float]] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    dropped: str | None = None

    def add(self, visits: Sequence[Visit]) -> None:
        """Adds a visit. visits: [W] of every rank."""
        for phase in PHASES:
            slowest_S = np.max([visit.milliseconds[phase] for visit in visits], axis=0)
            self.slowest[phase] += slowest_S.tolist()
            if phase == "step":
                self.rounds.append(float(np.median(slowest_S)))
        if not self.losses:
            self.losses = np.mean([visit.losses for visit in visits], axis=0).tolist()
        self.cpu = [before + visit.cpu for before, visit in zip(self.cpu or [[]] * len(visits), visits, strict=True)]
        self.memory_W = [visit.memory for visit in visits]
        self.lookups_W.append([visit.ids for visit in visits])

    def measurement(self) -> PlanMeasurement:
        """The result so far."""
        return PlanMeasurement(
            name=self.name,
            plan=self.layout,
            failed=self.failed,
            rounds=self.rounds,
            timings={phase: _timing(spent) for phase, spent in self.slowest.items() if spent},
            memory=self.memory_W,
            lookups=np.mean(self.lookups_W, axis=0).tolist() if self.lookups_W else [],
            default=self.rating.default if self.rating else None,
            calibrated=self.rating.calibrated if self.rating else None,
            cpu=[float(np.median(spent)) for spent in self.cpu],
            work=self.rating.work if self.rating else {},
            aliases=self.aliases,
            dropped=self.dropped,
        )


def _timing(milliseconds: list[float]) -> Timing:
    p10, p50, p90 = np.quantile(milliseconds, [0.1, 0.5, 0.9]).tolist()
    return Timing(p10, p50, p90)
