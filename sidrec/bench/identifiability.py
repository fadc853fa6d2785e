"""What measured plans can say about costs: coefficients, distinct plans, costs that they leave open, held-out errors.

Shapes: K kinds of work, P coefficients, N measured plans.
"""

from collections.abc import Sequence

import numpy as np

from sidrec.bench.regression import Sample, busiest_work, calibrate_costs, design
from sidrec.config import ConfigError
from sidrec.plans.calibration import Identifiability, UnitCosts
from sidrec.plans.cost import KINDS, NO_PLANS

SINGULAR = 1e-6
"""Singular values, as a share of the largest, that count as 0."""
EXPLAINED = 0.1
"""Length that is left of a column of length 1 after regression on the others, below which a cost is inseparable: a
variance inflation factor of 100 (Belsley, Kuh & Welsch 1980, chapter 3)."""


def identifiability(samples: Sequence[Sample], costs: UnitCosts) -> Identifiability:
    """What these samples, on which `costs` were regressed, can say about them."""
    of_plans = design(samples, costs.costs())
    length_P = np.linalg.norm(of_plans.relative_NP, axis=0)
    column_NP = of_plans.relative_NP / length_P
    singular = np.linalg.svd(column_NP, compute_uv=False)
    full = len(singular) == len(length_P) and singular[-1] > SINGULAR * singular[0]
    most_NK = np.array([sample.work_WK.max(axis=0) for sample in samples])
    ranges = {
        kind: (float(most_NK[:, k][most_NK[:, k] > 0].min()), float(most_NK[:, k].max()))
        for k, kind in enumerate(KINDS)
        if most_NK[:, k].any()
    }
    return Identifiability(
        plans=distinct_plans(samples, costs.costs()),
        coefficients=len(length_P),
        rank=int((singular > SINGULAR * singular[0]).sum()),
        condition=float(singular[0] / singular[-1]) if full else None,
        absent=[kind for kind in KINDS if kind not in ranges],
        zero=[kind for kind in ranges if kind not in NO_PLANS and costs.milliseconds[kind] == 0],
        inseparable=[kind for p, kind in enumerate(of_plans.kinds) if _unexplained(column_NP, p) < EXPLAINED],
        ranges=ranges,
        left_out_plan=_median_error(samples, predicted_left_out(samples)),
        left_out_workload=_median_error(samples, predicted_left_out(samples, by_workload=True)),
    )


def _unexplained(column_NP: np.ndarray, index: int) -> float:
    """Length of a column's residual after regression on all others."""
    others = np.delete(column_NP, index, axis=1)
    found, *_ = np.linalg.lstsq(others, column_NP[:, index], rcond=SINGULAR)
    return float(np.linalg.norm(column_NP[:, index] - others @ found))


def distinct_plans(samples: Sequence[Sample], cost_K: np.ndarray) -> int:
    """Plans whose busiest ranks do different work.

    A bench that repeats a plan of another one counts as one more: the repetition says how much slower its hour was,
    and nothing about costs.
    """
    benches: dict[str, set[tuple[str, bytes]]] = {}
    for sample, key in zip(samples, plan_keys(samples, cost_K), strict=True):
        benches.setdefault(sample.bench, set()).add(key)
    seen: set[tuple[str, bytes]] = set()
    count = 0
    for plans in benches.values():
        count += len(plans - seen) + bool(plans & seen)
        seen |= plans
    return count


def plan_keys(samples: Sequence[Sample], cost_K: np.ndarray) -> list[tuple[str, bytes]]:
    """Equal for samples of one workload that the regression cannot tell apart."""
    work_NK = busiest_work(samples, cost_K)
    return [(sample.workload, work_K.round(6).tobytes()) for sample, work_K in zip(samples, work_NK, strict=True)]


def check_identified(samples: Sequence[Sample], known: Identifiability, world: int) -> None:
    """Raises ConfigError if there are fewer distinct plans than coefficients: any step could be explained."""
    if known.plans >= known.coefficients:
        return
    benches = len({sample.bench for sample in samples})
    raise ConfigError(
        f"calibration on {world} rank(s): expected at least {known.coefficients} distinct plans, one for each cost "
        f"({known.coefficients - benches} kinds of work and {benches} bench(es)), got {known.plans}; run "
        f"`sidrec bench plans` on at least {known.coefficients - known.plans} more (other sharding types, edited plan "
        "files, other tables files), and calibrate on all results together"
    )


# Errors on plans that the regression has not seen.


def predicted_left_out(samples: Sequence[Sample], by_workload: bool = False) -> list[float] | None:
    """Predicted step of each sample, by costs regressed without its plan, or without its workload.

    None if nothing would be left to regress on.
    """
    keys: list[object] = [sample.workload for sample in samples]
    if not by_workload:
        keys = list(plan_keys(samples, np.ones(len(KINDS))))
    if len(set(keys)) < 2:
        return None
    costs = {
        left_out: calibrate_costs([sample for sample, key in zip(samples, keys, strict=True) if key != left_out])
        for left_out in set(keys)
    }
    return [costs[key].step(sample.work_WK) for sample, key in zip(samples, keys, strict=True)]


def _median_error(samples: Sequence[Sample], predicted: Sequence[float] | None) -> float | None:
    if predicted is None:
        return None
    return float(
        np.median([abs(each - sample.step) / sample.step for each, sample in zip(predicted, samples, strict=True)])
    )
