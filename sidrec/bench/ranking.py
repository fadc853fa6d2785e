"""Measured plans ranked: fastest first, ties by rounds, identical plans named; and the accuracy of cost models on them.

The terminal's table and the page (`sidrec.bench.page`) show this ranking.

Shapes: R rounds that two plans share, S bootstrap samples of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from sidrec.bench.calibrate import Accuracy, accuracy
from sidrec.bench.result import PHASES, BenchResult, PlanMeasurement, Prediction, measured_plans
from sidrec.plans.hardware import GIB
from sidrec.text import screen_width, text_table, wrapped


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
    """The first plan, identical plans, and plans that are not shown to be slower.

    Slower: the interval of the ratio by rounds lies above 1. One round gives no interval: then the plan's fast steps
    (p10) must take longer than the first's slow ones (p90).

    Another bench may put another one of them first. ranked: fastest first, not empty.
    """
    return [plan for plan in ranked if plan is ranked[0] or _ties(plan, ranked[0])]


def _ties(plan: PlanMeasurement, first: PlanMeasurement) -> bool:
    slowdown = paired_slowdown(plan.rounds, first.rounds)
    if same_plan(plan, first):
        return True
    if plan.dropped is not None:
        return False
    if slowdown is None or slowdown.rounds == 1:
        return plan.timings["step"].p10 <= first.timings["step"].p90
    return slowdown.low <= 1


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
    """Sentences: the fastest plan or the tie, and the next plan; identical and dropped plans; a doubt.

    ranked: fastest first, not empty.
    """
    tied = tied_with_first(ranked)
    slower = next((plan for plan in ranked if plan not in tied), None)
    return [
        f"{_lead(ranked[0], tied)}{_next(slower, ranked[0])}",
        *(_identical(group) for group in identical_plans(ranked)),
        *_dropped(ranked),
        *_few_rounds(ranked),
    ]


def _lead(first: PlanMeasurement, tied: Sequence[PlanMeasurement]) -> str:
    timing = first.timings["step"]
    spread = f"p10 {three_digits(timing.p10)}, p90 {three_digits(timing.p90)}"
    if len(tied) == 1:
        return f"Fastest: {first.title}, {milliseconds(step(first))} a step ({spread})."
    others = ", ".join(f"{plan.title} ({three_digits(step(plan))})" for plan in tied[1:])
    return (
        f"Tie of {len(tied)} plans: {first.title}, {milliseconds(step(first))} a step ({spread}), and {others}; "
        "round by round none is shown to be slower than the first."
    )


FAR = 3.0
"""Ratio of two steps from which it is printed as such, not as a percentage."""


def _next(slower: PlanMeasurement | None, first: PlanMeasurement) -> str:
    if slower is None or slower.dropped is not None:
        return ""
    found = paired_slowdown(slower.rounds, first.rounds)
    often = "" if found is None else f", slower in {found.slower} of {found.rounds} rounds"
    ratio = step(slower) / step(first)
    longer = f"{percent(ratio - 1)} longer" if ratio < FAR else f"{ratio:.1f} times as long"
    return f" Next: {slower.title}, {longer}{often}."


def _dropped(ranked: Sequence[PlanMeasurement]) -> list[str]:
    found = ", ".join(f"{plan.title} ({milliseconds(step(plan))})" for plan in ranked if plan.dropped is not None)
    return [f"Dropped after 1 round, since far slower than the fastest: {found}."] if found else []


ENOUGH_ROUNDS = 5
"""Rounds from which two equally fast plans are seldom (in 1 of 16 benches) in the same order in all of them."""


def _few_rounds(ranked: Sequence[PlanMeasurement]) -> list[str]:
    rounds, others = len(ranked[0].rounds), [plan for plan in ranked[1:] if plan.dropped is None]
    if not others or not 0 < rounds < ENOUGH_ROUNDS:
        return []
    return [
        f"Only {rounds} round(s): of two equally fast plans one is slower in all of them by chance, in "
        f"{percent(0.5 ** (rounds - 1))} of benches. --rounds {ENOUGH_ROUNDS} or more tells plans apart."
    ]


def _identical(group: Sequence[PlanMeasurement]) -> str:
    names = " = ".join(plan.title for plan in group)
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
            return f"{error}; it rated {self.choice.title} only."
        found = self.accuracy.spearman
        order = "Spearman not defined" if found is None else f"Spearman {found:.2f}"
        choice = f"it chooses the fastest plan, {self.choice.title}"
        if self.choice is not self.fastest:
            more = percent(self.accuracy.regret)
            choice = f"it chooses {self.choice.title}, which took {more} longer than {self.fastest.title}"
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


# The ranking for a terminal.

LEGEND = (
    "Milliseconds of the slowest rank. step: median, with p10 and p90. by rounds: over the first plan's step in the "
    "same round, median and 95% bootstrap interval; an interval that contains 1 is a tie. CPU: CPU time of a step on "
    "the rank with the most; other load on the machine affects it less. GiB: tables and optimizer state on the fullest "
    "rank. uneven: ids looked up on the busiest rank over the mean. Parts: medians of separate steps in which all "
    "ranks wait for each other after each part. default, calibrated: step predicted by TorchRec's and the calibrated "
    "cost model."
)


def bench_table(result: BenchResult) -> str:
    """The ranking, the parts of a step, failed plans with reasons, a summary, and a legend."""
    ranked, width = fastest_first(result), screen_width()
    heads = ("plan", "step", "p10", "p90", "by rounds", "CPU", "GiB", "uneven")
    steps = text_table([heads, *(_step_row(plan, ranked[0]) for plan in ranked)], width=width)
    heads = ("plan", "input", "lookup", "output", "dense", "backward", "default", "calibrated")
    parts = text_table([heads, *map(_part_row, ranked)], width=width)
    failed = [f"{plan.title} failed: {plan.failed}" for plan in result.plans if plan.failed is not None]
    sentences = headline(ranked) if ranked else []
    parts_of_text = [failed, sentences, [LEGEND]]
    return "\n\n".join([steps, parts, *("\n".join(map(wrapped, each)) for each in parts_of_text if each)])


def _step_row(plan: PlanMeasurement, fastest: PlanMeasurement) -> list[str]:
    timing = plan.timings["step"]
    return [
        plan.title,
        *(f"{value:.2f}" for value in (timing.p50, timing.p10, timing.p90)),
        _by_rounds(plan, fastest),
        f"{max(plan.cpu):.2f}",
        f"{max(plan.memory) / GIB:.3f}",
        f"{imbalance(plan.lookups):.2f}",
    ]


def _part_row(plan: PlanMeasurement) -> list[str]:
    predictions = (plan.default, plan.calibrated)
    return [
        plan.title,
        *(f"{plan.timings[phase].p50:.2f}" for phase in PHASES[1:]),
        *(f"{prediction.step:.2f}" if prediction else "-" for prediction in predictions),
    ]


def _by_rounds(plan: PlanMeasurement, fastest: PlanMeasurement) -> str:
    found = paired_slowdown(plan.rounds, fastest.rounds)
    if found is None or plan is fastest:
        return "-"
    if plan.dropped is not None:
        return f"{found.ratio:.2f}, dropped"
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


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
