"""What the page's parts tell alike: plans by their measured step, and what each cost model is worth."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidrec.bench.accuracy import Accuracy, accuracy, measured
from sidrec.bench.page_numbers import percent
from sidrec.bench.result import BenchResult, PlanMeasurement, Prediction

Model = Callable[[PlanMeasurement], Prediction | None]

MODELS: dict[str, Model] = {
    "TorchRec's cost model": lambda plan: plan.default,
    "Calibrated cost model": lambda plan: plan.calibrated,
}


def step(plan: PlanMeasurement) -> float:
    """Median milliseconds of a measured plan's step."""
    return plan.timings["step"].p50


def by_step(result: BenchResult) -> list[PlanMeasurement]:
    """The measured plans, fastest first: a plan's place here is its number on the page."""
    return sorted(measured(result), key=step)


def unmeasured(result: BenchResult) -> list[tuple[PlanMeasurement, str]]:
    """The other plans, and why they are."""
    timed = {plan.name for plan in measured(result)}
    return [(plan, plan.failed or "No round was done.") for plan in result.plans if plan.name not in timed]


@dataclass(frozen=True)
class Rated:
    """Measured plans that a cost model rated: their places, and predicted and measured milliseconds.

    choice: the plan that the model likes best. fastest: the one that was.
    """

    points: list[tuple[int, float, float]]
    accuracy: Accuracy
    choice: PlanMeasurement
    fastest: PlanMeasurement

    @property
    def verdict(self) -> str:
        """How far the model is right, and what following it would have cost."""
        off = f"median error {percent(self.accuracy.error)}"
        if len(self.points) == 1:
            return f"{off}; it rated {self.choice.name} only."
        found = self.accuracy.spearman
        order = "Spearman not defined" if found is None else f"Spearman {found:.2f}"
        choice = f"it likes best what was the fastest, {self.choice.name}"
        if self.choice is not self.fastest:
            more = percent(self.accuracy.regret)
            choice = f"it likes best {self.choice.name}, which took {more} longer than {self.fastest.name}"
        return f"{order} over {len(self.points)} plans; {off}; {choice}."


def rated(plans: Sequence[PlanMeasurement], model: Model) -> Rated | None:
    """plans: `by_step`. None for a model that rated none of them."""
    found = [
        (place, plan, expected.step)
        for place, plan in enumerate(plans, 1)
        if (expected := model(plan)) is not None and math.isfinite(expected.step) and expected.step > 0
    ]
    if not found:
        return None
    return Rated(
        points=[(place, expected, step(plan)) for place, plan, expected in found],
        accuracy=accuracy([expected for *_, expected in found], [step(plan) for _, plan, _ in found]),
        choice=min(found, key=lambda one: one[2])[1],
        fastest=found[0][1],
    )
