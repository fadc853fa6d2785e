"""Costs per unit of work on this machine, regressed on measured plans, and how well they predict.

`calibrate` is `sidrec bench calibrate`: it reads benches, regresses costs for every number of ranks, prints their
accuracy, and writes the calibration file (`sidrec.plans.calibration`).

Shapes: W ranks, K kinds of work, N measured plans, J benches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from sidrec import __version__
from sidrec.bench.result import BenchResult, load_bench, measured_plans
from sidrec.config import ConfigError
from sidrec.errors import ContractError
from sidrec.io.output_folders import output_file
from sidrec.plans.calibration import VERSION, Calibration, UnitCosts, is_calibration, save_calibration
from sidrec.plans.cost import KINDS, NO_PLANS
from sidrec.text import text_table

COLUMNS = 120
Benches = Mapping[Path, BenchResult]


@dataclass(frozen=True)
class Sample:
    """A measured plan of one bench. work_WK: float64, the work of each rank in a step. step: milliseconds."""

    workload: str
    bench: str
    plan: str
    work_WK: np.ndarray
    step: float


def calibrate(paths: Sequence[Path], out: Path) -> None:
    """Regresses costs on the benches at `paths`, prints their accuracy, and writes them to `out`.

    Raises ConfigError or ContractError before anything is written.
    """
    file = output_file(out, "a calibration", is_calibration)
    benches = {path: load_bench(path) for path in paths}
    device = _device(benches)
    worlds = _by_world(benches)
    calibration = Calibration(
        VERSION, device, {world: calibrate_costs(of) for world, of in worlds.items()}, conditions=_conditions(benches)
    )
    for world, of in worlds.items():
        print(_accuracy_text(world, of, calibration.worlds[world], benches))
    save_calibration(file, calibration)
    print(f"\nwritten: {out}; use it with sidrec plan --calibration, or parallel.calibration in a recipe")


def _device(benches: Benches) -> str:
    devices = {str(result.hardware["device"]): path for path, result in benches.items()}
    if len(devices) > 1:
        listed = ", ".join(f"{path} of {device}" for device, path in devices.items())
        raise ConfigError(f"calibration: expected benches of one kind of device, got {listed}")
    return next(iter(devices))


def _by_world(benches: Benches) -> dict[int, list[Sample]]:
    """Number of ranks -> its measured plans."""
    worlds: dict[int, list[Sample]] = {}
    for path, result in benches.items():
        found = samples(result, str(path))
        if not found:
            raise ConfigError(f"{path}: expected at least one measured plan, got none")
        worlds.setdefault(int(result.hardware["world"]), []).extend(found)
    return dict(sorted(worlds.items()))


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


def _conditions(benches: Benches) -> dict[str, object]:
    return {
        "sidrec": __version__,
        "fitted": datetime.now(UTC).isoformat(timespec="seconds"),
        "benches": {str(path): result.conditions for path, result in benches.items()},
    }


# The regression.

ROUNDS = 20  # of choosing each plan's slowest rank again; it converges within a few
RIDGE = 1e-3  # of a plan's time, on each kind's share: decides between kinds that always occur together


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
        slowest_NK = np.stack([sample.work_WK[np.argmax(sample.work_WK @ cost_K)] for sample in samples])
        found_K = _costs(samples, benches, slowest_NK, scale_K)
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


# How well costs predict measured steps.


@dataclass(frozen=True)
class Accuracy:
    """How well a cost model predicts the measured plans.

    spearman: rank correlation of predicted and measured steps; None for fewer than two plans, or if all are equal.
    error: median of |predicted - measured| / measured. regret: how much longer, as a share, the plan predicted to be
    fastest takes than the fastest plan.
    """

    plans: int
    spearman: float | None
    error: float
    regret: float


def accuracy(predicted: Sequence[float], steps: Sequence[float]) -> Accuracy:
    """Compares predicted with measured steps, both in milliseconds, one of each per plan."""
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


def default_accuracy(result: BenchResult) -> Accuracy | None:
    """Accuracy of TorchRec's own cost model; None if it predicted nothing."""
    pairs = [
        (plan.default.step, plan.timings["step"].p50) for plan in measured_plans(result) if plan.default is not None
    ]
    return accuracy([predicted for predicted, _ in pairs], [step for _, step in pairs]) if pairs else None


def calibrated_accuracy(of: Sequence[Sample], costs: UnitCosts) -> Accuracy:
    """Accuracy of costs on plans that they may or may not be regressed on."""
    return accuracy([costs.step(sample.work_WK) for sample in of], [sample.step for sample in of])


def held_out(of: Sequence[Sample]) -> dict[str, Accuracy]:
    """Bench -> accuracy of costs regressed on all other workloads; empty if there is only one workload."""
    workloads = {sample.bench: sample.workload for sample in of}
    if len(set(workloads.values())) < 2:
        return {}
    costs = {
        name: calibrate_costs([sample for sample in of if sample.workload != name]) for name in set(workloads.values())
    }
    return {
        bench: calibrated_accuracy([sample for sample in of if sample.bench == bench], costs[name])
        for bench, name in workloads.items()
    }


def _accuracy_text(world: int, of: Sequence[Sample], costs: UnitCosts, benches: Benches) -> str:
    """Accuracy on each bench: TorchRec's constants, costs from the other workloads, costs from all."""
    others = held_out(of)
    rows = [("workload", "bench", "cost model", "plans", "Spearman", "error", "regret")]
    for path, result in sorted(benches.items(), key=lambda bench: (str(bench[1].workload["name"]), bench[0])):
        if result.hardware["world"] != world:
            continue
        own = [sample for sample in of if sample.bench == str(path)]
        models = {
            "TorchRec's constants": default_accuracy(result),
            "calibrated on the other workloads": others.get(str(path)),
            "calibrated on all": calibrated_accuracy(own, costs),
        }
        rows += [
            (str(result.workload["name"]), str(path), model, *_figures(found))
            for model, found in models.items()
            if found is not None
        ]
    title = f"\n{world} rank(s), {len(of)} plans of {len(costs.workloads)} workload(s)"
    sentences = [line for sentence in determined(of, costs) for line in wrap(sentence, COLUMNS)]
    return "\n".join([title, text_table(rows, left=3), *sentences])


def _figures(found: Accuracy) -> tuple[str, str, str, str]:
    correlation = "-" if found.spearman is None else f"{found.spearman:.2f}"
    return f"{found.plans}", correlation, f"{found.error:.0%}", f"{found.regret:.1%}"


def determined(of: Sequence[Sample], costs: UnitCosts) -> list[str]:
    """Sentences: the number of unknown costs and of plans, and a warning if there are fewer plans than unknowns."""
    benches = len({sample.bench for sample in of})
    most_K = np.max([sample.work_WK.max(axis=0) for sample in of], axis=0)
    kinds = [kind for kind, most in zip(KINDS, most_K, strict=True) if most > 0 and kind not in NO_PLANS]
    zero = [kind for kind in kinds if costs.milliseconds.get(kind, 0.0) == 0.0]
    unknown = len(kinds) + benches
    found_zero = f"; found to be zero: {', '.join(zero)}" if zero else ""
    counts = f"unknown costs: {unknown} ({len(kinds)} kinds of work, {benches} bench(es)), from {len(of)} plans"
    if len(of) >= unknown:
        return [counts + found_zero]
    return [
        counts + found_zero,
        "warning: fewer plans than unknown costs: the costs are not determined, and predict only plans like the "
        "measured ones. Measure more plans (other sharding types, edited plan files, other workloads), and calibrate "
        "on all benches together.",
    ]
