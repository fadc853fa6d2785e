"""How well cost models foresee what a bench measured: order, error, and what their choice of plan would cost.

Shapes: N measured plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from sidrec.bench.result import BenchResult, PlanMeasurement
from sidrec.plans.calibration import Fit, Sample, fit
from sidrec.plans.work import KINDS
from sidrec.schema import ContractError


@dataclass(frozen=True)
class Accuracy:
    """spearman: rank correlation of predicted and measured steps, None for fewer than two plans or all alike.

    error: median of |predicted - measured| / measured. regret: how much longer a step of the plan predicted to be
    fastest takes than that of the fastest, as a share.
    """

    plans: int
    spearman: float | None
    error: float
    regret: float


def measured(result: BenchResult) -> list[PlanMeasurement]:
    """The plans of a bench that were timed."""
    return [plan for plan in result.plans if plan.failed is None and "step" in plan.timings]


def accuracy(predicted: Sequence[float], steps: Sequence[float]) -> Accuracy:
    """Of predictions for plans whose steps took so long; milliseconds both."""
    predicted_N, step_N = np.array(predicted), np.array(steps)
    correlation = None
    if len(set(predicted)) > 1 and len(set(steps)) > 1:
        correlation = float(spearmanr(predicted_N, step_N).statistic)
    return Accuracy(
        plans=len(steps),
        spearman=correlation,
        error=float(np.median(np.abs(predicted_N - step_N) / step_N)),
        regret=float(step_N[predicted_N.argmin()] / step_N.min() - 1),
    )


def samples(result: BenchResult, where: str) -> list[Sample]:
    """What a calibration is fitted to. Raises ContractError where the bench did not count its plans' work."""
    name, world = str(result.workload["name"]), int(result.hardware["world"])
    found = []
    for plan in measured(result):
        if set(plan.work) != set(KINDS) or any(len(ranks) != world for ranks in plan.work.values()):
            expected = f"work of the kinds {', '.join(KINDS)} on {world} rank(s)"
            raise ContractError(f"{where}, plan {plan.name}", expected, ", ".join(plan.work) or "none")
        work_WK = np.array([plan.work[kind] for kind in KINDS]).T
        found.append(Sample(name, where, plan.name, work_WK, plan.timings["step"].p50))
    return found


def default_accuracy(result: BenchResult) -> Accuracy | None:
    """Of TorchRec's own cost model; None where it predicted nothing."""
    pairs = [(plan.default.step, plan.timings["step"].p50) for plan in measured(result) if plan.default is not None]
    return accuracy([predicted for predicted, _ in pairs], [step for _, step in pairs]) if pairs else None


def fitted_accuracy(of: Sequence[Sample], found: Fit) -> Accuracy:
    """Of a fit, on plans that it may or may not have been fitted to."""
    return accuracy([found.step(sample.work_WK) for sample in of], [sample.step for sample in of])


def held_out(of: Sequence[Sample]) -> dict[str, Accuracy]:
    """Bench -> accuracy, on its plans, of a fit to all other workloads; empty where there is but one."""
    workloads = {sample.bench: sample.workload for sample in of}
    if len(set(workloads.values())) < 2:
        return {}
    fits = {name: fit([sample for sample in of if sample.workload != name]) for name in set(workloads.values())}
    return {
        bench: fitted_accuracy([sample for sample in of if sample.bench == bench], fits[name])
        for bench, name in workloads.items()
    }
