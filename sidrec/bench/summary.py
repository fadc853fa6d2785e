"""A bench as a table for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sidrec.bench.result import PHASES, BenchResult, PlanMeasurement
from sidrec.plans.hardware import GIB

HEADS = ("plan", "step", "p10", "p90", "by rounds", "input", "lookup", "output", "dense", "backward")
MORE_HEADS = ("CPU", "GiB", "uneven", "default", "calibrated")


LEGEND = """\
Milliseconds, of each step the slowest rank's. step: median, with p10 and p90. by rounds: times the first plan's step in
the same round, median of the rounds and 95% of its bootstrap draws. input to backward: medians of steps in which all
ranks wait for one another after each part. CPU: a step's CPU time on the rank that spends most; other work on the
machine disturbs it less. GiB: tables and optimizer state on the fullest rank. uneven: ids looked up on the busiest rank
over the mean. default, calibrated: the step as TorchRec's cost model and the calibrated one predict it."""


def bench_table(result: BenchResult) -> str:
    """A line for each measured plan, fastest first; below it the plans that failed, and why."""
    measured = [plan for plan in result.plans if plan.failed is None and plan.timings]
    measured.sort(key=lambda plan: plan.timings["step"].p50)
    rows = [[*HEADS, *MORE_HEADS], *(_row(plan, measured[0]) for plan in measured)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    failed = [f"{plan.name} failed: {plan.failed}" for plan in result.plans if plan.failed is not None]
    return "\n".join([*(_line(row, widths) for row in rows), *failed, "", LEGEND])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    figures = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *figures])


def _row(plan: PlanMeasurement, fastest: PlanMeasurement) -> list[str]:
    step = plan.timings["step"]
    parts = [*(plan.timings[phase].p50 for phase in PHASES[1:]), max(plan.cpu)]
    predictions = (plan.default, plan.calibrated)
    return [
        plan.name,
        *(f"{milliseconds:.2f}" for milliseconds in (step.p50, step.p10, step.p90)),
        _by_rounds(plan, fastest),
        *(f"{milliseconds:.2f}" for milliseconds in parts),
        f"{max(plan.memory) / GIB:.3f}",
        f"{imbalance(plan.lookups):.2f}",
        *(f"{prediction.step:.2f}" if prediction else "-" for prediction in predictions),
    ]


def _by_rounds(plan: PlanMeasurement, fastest: PlanMeasurement) -> str:
    found = paired_slowdown(plan.rounds, fastest.rounds)
    return "-" if found is None or plan is fastest else f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


def imbalance(amounts: Sequence[float]) -> float:
    """The largest amount over the mean: 1 where all are alike, and where there is nothing."""
    total = sum(amounts)
    return max(amounts) * len(amounts) / total if total else 1.0


# How far a plan is behind another, round by round: what else the machine does in a round slows both.
#
# Shapes: R rounds that both plans did, S bootstrap draws of them.


RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class PairedSlowdown:
    """ratio_R: float64, the plan's step over the other's in each round, 1 where both are as fast."""

    ratio_R: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return float(np.median(self.ratio_R))

    @property
    def low(self) -> float:
        return self._interval[0]

    @property
    def high(self) -> float:
        return self._interval[1]

    @property
    def slower(self) -> int:
        """Rounds in which the plan was slower."""
        return int((self.ratio_R > 1).sum())

    @property
    def rounds(self) -> int:
        """Rounds that both did."""
        return len(self.ratio_R)

    @cached_property  # drawn where it is asked for, and once
    def _interval(self) -> tuple[float, float]:
        """95% of what `ratio` is in bootstrap draws of the rounds (percentiles; Efron & Tibshirani 1993): below 1 and
        above 1, the plans cannot be told apart."""
        drawn_SR = np.random.default_rng(0).integers(0, self.rounds, (RESAMPLES, self.rounds))
        low, high = np.quantile(np.median(self.ratio_R[drawn_SR], axis=1), [0.025, 0.975]).tolist()
        return low, high


def paired_slowdown(rounds: Sequence[float], other: Sequence[float]) -> PairedSlowdown | None:
    """rounds: median steps of a plan's rounds; other: of the other plan's, in the same order. None without a round that
    both did; a bench that was cut short leaves unequal counts."""
    count = min(len(rounds), len(other))
    return PairedSlowdown(np.array(rounds[:count]) / np.array(other[:count])) if count else None
