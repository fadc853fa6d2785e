"""Measured plans ranked: fastest first, ties by rounds, identical plans named; and the accuracy of cost models on them.

The terminal's table and the page (`sidrec.bench.page`) show this ranking.

Shapes: R rounds that two plans share, S bootstrap samples of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray

from sidrec.bench.calibrate import Accuracy, accuracy
from sidrec.bench.result import PHASES, BenchResult, PlanMeasurement, Prediction, measured_plans
from sidrec.plans.hardware import GIB
from sidrec.text import text_table


def step(plan: PlanMeasurement) -> float:
    """Median milliseconds of a measured plan's step."""
    return plan.timings["step"].p50


def fastest_first(result: BenchResult) -> list[PlanMeasurement]:
    """The measured plans by their median step. A plan's position, from 1, is its number on the page."""
    return sorted(measured_plans(result), key=step)


def unmeasured(result: BenchResult) -> list[tuple[PlanMeasurement, str]]:
    """Plans that were not measured, with reasons."""
    names = {plan.name for plan in measured_plans(result)}
    return [(plan, plan.failed or "No round was done.") for plan in result.plans if plan.name not in names]


def tied_with_first(ranked: Sequence[PlanMeasurement]) -> list[PlanMeasurement]:
    """The first plan, identical plans, and plans that are not shown to be slower round by round.

    Another bench may put another one of them first. ranked: fastest first, not empty.
    """
    return [plan for plan in ranked if plan is ranked[0] or _ties(plan, ranked[0])]


def _ties(plan: PlanMeasurement, first: PlanMeasurement) -> bool:
    slowdown = paired_slowdown(plan.rounds, first.rounds)
    return same_plan(plan, first) or (slowdown is not None and slowdown.low <= 1)


def same_plan(one: PlanMeasurement, other: PlanMeasurement) -> bool:
    """Whether two plans have the same layout of every table, whatever their names."""
    return bool(one.plan) and one.plan == other.plan


def identical_plans(ranked: Sequence[PlanMeasurement]) -> list[list[PlanMeasurement]]:
    """Groups of two or more measured plans that are the same plan."""
    groups: list[list[PlanMeasurement]] = []
    for plan in ranked:
        group = next((group for group in groups if same_plan(group[0], plan)), None)
        if group is None:
            groups.append([plan])
        else:
            group.append(plan)
    return [group for group in groups if len(group) > 1]


def headline(ranked: Sequence[PlanMeasurement]) -> list[str]:
    """Sentences: the fastest plan or the tie, the next plan, and identical plans. ranked: fastest first, not empty."""
    first, timing = ranked[0], ranked[0].timings["step"]
    tied = tied_with_first(ranked)
    spread = f"p10 {three_digits(timing.p10)}, p90 {three_digits(timing.p90)}"
    if len(tied) == 1:
        lead = f"Fastest: {first.name}, {milliseconds(step(first))} a step ({spread})."
    else:
        others = ", ".join(f"{plan.name} ({three_digits(step(plan))})" for plan in tied[1:])
        lead = (
            f"Tie of {len(tied)} plans: {first.name}, {milliseconds(step(first))} a step ({spread}), and {others}; "
            "round by round none is shown to be slower than the first."
        )
    slower = next((plan for plan in ranked if plan not in tied), None)
    if slower is not None:
        found = paired_slowdown(slower.rounds, first.rounds)
        often = "" if found is None else f", slower in {found.slower} of {found.rounds} rounds"
        lead += f" Next: {slower.name}, {percent(step(slower) / step(first) - 1)} longer{often}."
    return [lead, *(_identical(group) for group in identical_plans(ranked))]


def _identical(group: Sequence[PlanMeasurement]) -> str:
    names = " = ".join(plan.name for plan in group)
    difference = percent(step(group[-1]) / step(group[0]) - 1)
    return f"Same plan under several names: {names}; their steps differ by {difference}, which is noise of this bench."


# Two plans compared round by round: whatever else the machine does in a round slows both.

RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class PairedSlowdown:
    """ratio_R: float64, the plan's step over the other's in each round."""

    ratio_R: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return float(np.median(self.ratio_R))

    @property
    def low(self) -> float:
        """Lower end of the 95% interval of `ratio`."""
        return self._interval[0]

    @property
    def high(self) -> float:
        """Upper end of the 95% interval of `ratio`."""
        return self._interval[1]

    @property
    def slower(self) -> int:
        """Number of rounds in which the plan was slower."""
        return int((self.ratio_R > 1).sum())

    @property
    def rounds(self) -> int:
        """Number of rounds of both plans."""
        return len(self.ratio_R)

    @cached_property
    def _interval(self) -> tuple[float, float]:
        """Percentile bootstrap over rounds (Efron & Tibshirani 1993)."""
        index_SR = np.random.default_rng(0).integers(0, self.rounds, (RESAMPLES, self.rounds))
        low, high = np.quantile(np.median(self.ratio_R[index_SR], axis=1), [0.025, 0.975]).tolist()
        return low, high


def paired_slowdown(rounds: Sequence[float], other: Sequence[float]) -> PairedSlowdown | None:
    """Compares the median steps of a plan's rounds with another plan's, in the same order.

    None if the two plans share no round. If the bench was interrupted, one may have a round more.
    """
    count = min(len(rounds), len(other))
    return PairedSlowdown(np.array(rounds[:count]) / np.array(other[:count])) if count else None


# The accuracy of cost models on the measured plans.

Model = Callable[[PlanMeasurement], Prediction | None]
MODELS: dict[str, Model] = {
    "TorchRec's cost model": lambda plan: plan.default,
    "Calibrated cost model": lambda plan: plan.calibrated,
}


@dataclass(frozen=True)
class ModelRanking:
    """Measured plans with a cost model's predictions.

    points: number, predicted and measured milliseconds of each plan. choice: the plan predicted to be fastest.
    fastest: the plan measured to be fastest.
    """

    points: list[tuple[int, float, float]]
    accuracy: Accuracy
    choice: PlanMeasurement
    fastest: PlanMeasurement

    @property
    def verdict(self) -> str:
        """Rank correlation, error, and what choosing by this model costs."""
        error = f"median error {percent(self.accuracy.error)}"
        if len(self.points) == 1:
            return f"{error}; it rated {self.choice.name} only."
        found = self.accuracy.spearman
        order = "Spearman not defined" if found is None else f"Spearman {found:.2f}"
        choice = f"it chooses the fastest plan, {self.choice.name}"
        if self.choice is not self.fastest:
            more = percent(self.accuracy.regret)
            choice = f"it chooses {self.choice.name}, which took {more} longer than {self.fastest.name}"
            if self.choice in tied_with_first([self.fastest, self.choice]):
                choice += " (a tie by rounds)"
        return f"{order} over {len(self.points)} plans; {error}; {choice}."


def rank_by_model(ranked: Sequence[PlanMeasurement], model: Model) -> ModelRanking | None:
    """None if the model rated no plan. ranked: fastest first."""
    found = [
        (number, plan, prediction.step)
        for number, plan in enumerate(ranked, 1)
        if (prediction := model(plan)) is not None and math.isfinite(prediction.step) and prediction.step > 0
    ]
    if not found:
        return None
    return ModelRanking(
        points=[(number, predicted, step(plan)) for number, plan, predicted in found],
        accuracy=accuracy([predicted for *_, predicted in found], [step(plan) for _, plan, _ in found]),
        choice=min(found, key=lambda one: one[2])[1],
        fastest=found[0][1],
    )


# The ranking for a terminal of 120 columns.

COLUMNS = 120
NAME = 32
"""Letters of a plan's name that are shown."""
LEGEND = """\
Milliseconds of the slowest rank. step: median, with p10 and p90. by rounds: over the first plan's step in the same
round, median and 95% bootstrap interval; an interval that contains 1 is a tie. CPU: CPU time of a step on the rank with
the most; other load on the machine affects it less. GiB: tables and optimizer state on the fullest rank. uneven: ids
looked up on the busiest rank over the mean. default, calibrated: step predicted by TorchRec's and the calibrated cost
model. Parts: medians of separate steps in which all ranks wait for each other after each part."""


def bench_table(result: BenchResult) -> str:
    """The ranking, the parts of a step, failed plans with reasons, a summary, and a legend."""
    ranked = fastest_first(result)
    heads = ("plan", "step", "p10", "p90", "by rounds", "CPU", "GiB", "uneven", "default", "calibrated")
    steps = text_table([heads, *(_step_row(plan, ranked[0]) for plan in ranked)])
    parts = text_table([("plan", "input", "lookup", "output", "dense", "backward"), *map(_part_row, ranked)])
    failed = [f"{plan.name} failed: {plan.failed}" for plan in result.plans if plan.failed is not None]
    sentences = [line for sentence in (headline(ranked) if ranked else []) for line in wrap(sentence, COLUMNS)]
    return "\n".join([steps, "", parts, *failed, "", *sentences, "", LEGEND])


def _step_row(plan: PlanMeasurement, fastest: PlanMeasurement) -> list[str]:
    timing = plan.timings["step"]
    predictions = (plan.default, plan.calibrated)
    return [
        _cut(plan.name),
        *(f"{value:.2f}" for value in (timing.p50, timing.p10, timing.p90)),
        _by_rounds(plan, fastest),
        f"{max(plan.cpu):.2f}",
        f"{max(plan.memory) / GIB:.3f}",
        f"{imbalance(plan.lookups):.2f}",
        *(f"{prediction.step:.2f}" if prediction else "-" for prediction in predictions),
    ]


def _part_row(plan: PlanMeasurement) -> list[str]:
    return [_cut(plan.name), *(f"{plan.timings[phase].p50:.2f}" for phase in PHASES[1:])]


def _by_rounds(plan: PlanMeasurement, fastest: PlanMeasurement) -> str:
    found = paired_slowdown(plan.rounds, fastest.rounds)
    return "-" if found is None or plan is fastest else f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _cut(name: str) -> str:
    """The end of a long name: plan files differ there."""
    return name if len(name) <= NAME else f"…{name[-NAME + 1 :]}"


def imbalance(amounts: Sequence[float]) -> float:
    """The largest amount over the mean; 1 if all are equal or zero."""
    total = sum(amounts)
    return max(amounts) * len(amounts) / total if total else 1.0


# Figures as text: three digits.

MISSING = "–"  # noqa: RUF001  # an en dash
TIMES = "×"  # noqa: RUF001  # the multiplication sign


def three_digits(value: float | None) -> str:
    """0.0123, 1.23, 12.3, 123, 1,230; a dash for None and for values that are not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    magnitude = int(f"{value:.2e}".partition("e")[2])  # of the rounded value: 9.999 is 10.0
    if magnitude < -4:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - magnitude)}f}"


def milliseconds(value: float | None) -> str:
    """As `three_digits`, with the unit."""
    text = three_digits(value)
    return text if text == MISSING else f"{text} ms"


def percent(share: float) -> str:
    """12% for 0.12; one decimal below 10%."""
    return f"{100 * share:.1f}%" if abs(share) < 0.0995 else f"{100 * share:,.0f}%"


# Axes of charts.

OFF_SCALE = 3.0  # times the median plan's step from which a plan does not stretch the axes


def on_scale(ranked: Sequence[PlanMeasurement]) -> list[PlanMeasurement]:
    """The plans that axes are fitted to: those within OFF_SCALE times the median plan's step."""
    limit = OFF_SCALE * median_low([step(plan) for plan in ranked])
    return [plan for plan in ranked if step(plan) <= limit]
