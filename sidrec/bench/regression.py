"""Costs per unit of work, regressed on measured plans.

Shapes: W ranks, K kinds of work, N measured plans, J benches, P coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from sidrec.bench.result import BenchResult, measured_plans
from sidrec.config import ConfigError
from sidrec.errors import ContractError
from sidrec.plans.calibration import UnitCosts
from sidrec.plans.cost import KINDS, NO_PLANS

ROUNDS = 20  # of choosing each plan's slowest rank again; it converges within a few
RIDGE = 1e-3  # of a plan's time, on each kind's share: decides between kinds that always occur together


@dataclass(frozen=True)
class Sample:
    """A measured plan of one bench. work_WK: float64, the work of each rank in a step. step: milliseconds."""

    workload: str
    bench: str
    plan: str
    work_WK: np.ndarray
    step: float


def samples(result: BenchResult, where: str) -> list[Sample]:
    """The measured plans of a bench. Raises ContractError if the bench did not count their work."""
    name, world = str(result.workload["name"]), int(result.hardware["world"])
    found = []
    for plan in measured_plans(result):
        if set(plan.work) != set(KINDS) or any(len(ranks) != world for ranks in plan.work.values()):
            expected = f"work of the kinds {', '.join(KINDS)} on {world} rank(s)"
            raise ContractError(f"{where}, plan {plan.name}", expected, ", ".join(plan.work) or "none")
        work_WK = np.array([plan.work[kind] for kind in KINDS]).T
        found.append(Sample(name, where, plan.name, work_WK, plan.timings["step"].p50))
    return found


def calibrate_costs(samples: Sequence[Sample]) -> UnitCosts:
    """Costs per unit by non-negative least squares of relative errors (Lawson & Hanson 1974).

    A step takes as long as its slowest rank. Which rank that is depends on the costs, so both are found in turns. Each
    bench has one more unknown for what no plan changes, so that neither long dense layers nor a slow hour of the
    machine affects the costs of plans; the costs of NO_PLANS are then regressed on these unknowns. Raises ConfigError
    without samples.
    """
    if not samples:
        raise ConfigError("calibration: expected at least one measured plan, got none")
    benches = sorted({sample.bench for sample in samples})
    step_N = np.array([sample.step for sample in samples])
    most_K = np.max([sample.work_WK.max(axis=0) for sample in samples], axis=0)
    scale_K = np.where(most_K > 0, most_K, 1.0)
    cost_K = np.full(len(KINDS), step_N.mean()) / scale_K
    for _ in range(ROUNDS):
        found_K = _costs(samples, benches, busiest_work(samples, cost_K), scale_K)
        if np.allclose(found_K, cost_K, rtol=1e-6, atol=0):
            break
        cost_K = found_K
    predicted_N = np.array([(sample.work_WK @ cost_K).max() for sample in samples])
    return UnitCosts(
        milliseconds=dict(zip(KINDS, cost_K.tolist(), strict=True)),
        samples=len(samples),
        workloads=sorted({sample.workload for sample in samples}),
        error=float(np.median(np.abs(predicted_N - step_N) / step_N)),
        spread=_spread(samples, benches, predicted_N / step_N),
    )


def _costs(samples: Sequence[Sample], benches: Sequence[str], work_NK: np.ndarray, scale_K: np.ndarray) -> np.ndarray:
    """float64 [K] milliseconds per unit, from the work of each plan's slowest rank. scale_K: largest work of a kind."""
    step_N = np.array([sample.step for sample in samples])
    of_plans = [k for k, kind in enumerate(KINDS) if kind not in NO_PLANS]
    of_none = [k for k, kind in enumerate(KINDS) if kind in NO_PLANS]
    bench_NJ = np.array([[sample.bench == name for name in benches] for sample in samples], dtype=float)
    relative = np.hstack([work_NK[:, of_plans], bench_NJ]) / step_N[:, None]
    ridge = np.diag(np.append(RIDGE * scale_K[of_plans] / step_N.mean(), np.zeros(len(benches))))
    found, _ = nnls(np.vstack([relative, ridge]), np.append(np.ones(len(samples)), np.zeros(len(ridge))))
    cost_K = np.zeros(len(KINDS))
    cost_K[of_plans], rest_J = found[: len(of_plans)], found[len(of_plans) :]
    first = [next(n for n, sample in enumerate(samples) if sample.bench == name) for name in benches]
    weight_J = 1 / np.array([step_N[bench_NJ[:, j] > 0].min() for j in range(len(benches))])
    cost_K[of_none], _ = nnls(work_NK[np.ix_(first, of_none)] * weight_J[:, None], rest_J * weight_J)
    return cost_K


def _spread(samples: Sequence[Sample], benches: Sequence[str], ratio_N: np.ndarray) -> float:
    """Median relative error after dividing by each bench's median ratio. ratio_N: predicted to measured steps."""
    bench_N = np.array([sample.bench for sample in samples])
    factor_N = np.select(
        [bench_N == name for name in benches], [np.median(ratio_N[bench_N == name]) for name in benches]
    )
    return float(np.median(np.abs(ratio_N / factor_N - 1)))


@dataclass(frozen=True)
class Design:
    """The regression's design matrix at its solution.

    relative_NP: each plan's work on its busiest rank, then one column for each bench, all over the plan's step.
    kinds: the kinds of work that occur, of the first columns.
    """

    kinds: list[str]
    relative_NP: np.ndarray


def design(samples: Sequence[Sample], cost_K: np.ndarray) -> Design:
    """cost_K: as regressed; they say which rank is a plan's busiest."""
    work_NK = busiest_work(samples, cost_K)
    step_N = np.array([sample.step for sample in samples])
    benches = sorted({sample.bench for sample in samples})
    bench_NJ = np.array([[sample.bench == name for name in benches] for sample in samples], dtype=float)
    found = [k for k, kind in enumerate(KINDS) if kind not in NO_PLANS and work_NK[:, k].any()]
    relative_NP = np.hstack([work_NK[:, found], bench_NJ]) / step_N[:, None]
    return Design([KINDS[k] for k in found], relative_NP)


def busiest_work(samples: Sequence[Sample], cost_K: np.ndarray) -> np.ndarray:
    """float64 [N, K]: the work of each plan's slowest rank."""
    return np.stack([sample.work_WK[np.argmax(sample.work_WK @ cost_K)] for sample in samples])
