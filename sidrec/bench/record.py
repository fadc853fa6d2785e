"""What the rounds have found so far of each plan, and the result made of it.

Shapes: S timed steps, W ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidrec.bench.rating import Rating
from sidrec.bench.result import PHASES, PlanMeasurement, Timing
from sidrec.bench.trial import Visit


@dataclass
class Record:
    """One plan. layout: the plan file's content. failed: why it is measured no longer.

    rounds: median step of each. slowest: phase -> milliseconds of every step so far, each the slowest rank's.
    cpu: per rank, milliseconds of CPU time of every whole step so far. losses: mean over ranks of the first visit's
    steps. lookups_W: one value per rank and visit.
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

    def add(self, visits: Sequence[Visit]) -> None:
        """Books a visit. visits: of every rank, in their order."""
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
        """What is known now."""
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
        )


def _timing(milliseconds: list[float]) -> Timing:
    p10, p50, p90 = np.quantile(milliseconds, [0.1, 0.5, 0.9]).tolist()
    return Timing(p10, p50, p90)
