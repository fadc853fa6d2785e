"""Costs per unit of work on this machine, regressed on measured plans, and how well they predict.

`calibrate` is `sidrec bench calibrate`: it reads benches, regresses costs for every number of ranks, prints their
accuracy, and writes the calibration file (`sidrec.plans.calibration`).

Shapes: W ranks, K kinds of work, N measured plans, J benches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from sidrec import __version__
from sidrec.bench.identifiability import check_identified, identifiability, predicted_left_out
from sidrec.bench.regression import Sample, calibrate_costs, samples
from sidrec.bench.result import BenchResult, load_bench, measured_plans
from sidrec.config import ConfigError
from sidrec.io.output_folders import output_file
from sidrec.plans.calibration import (
    MARGIN,
    VERSION,
    Calibration,
    Identifiability,
    UnitCosts,
    is_calibration,
    left_out,
    save_calibration,
)
from sidrec.text import screen_width, text_table, wrapped

Benches = Mapping[Path, BenchResult]


def calibrate(paths: Sequence[Path], out: Path) -> None:
    """Regresses costs on the benches at `paths`, prints their accuracy, and writes them to `out`.

    Raises ConfigError or ContractError before anything is written; ConfigError if the plans do not determine the costs.
    """
    file = output_file(out, "a calibration", is_calibration)
    benches = {path: load_bench(path) for path in paths}
    device = _device(benches)
    worlds = _by_world(benches)
    costs = {world: _checked_costs(world, of) for world, of in worlds.items()}
    calibration = Calibration(VERSION, device, costs, conditions=_conditions(benches))
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


def _checked_costs(world: int, of: Sequence[Sample]) -> UnitCosts:
    costs = calibrate_costs(of)
    known = identifiability(of, costs)
    check_identified(of, known, world)
    return replace(costs, identifiability=known)


def _conditions(benches: Benches) -> dict[str, object]:
    return {
        "sidrec": __version__,
        "fitted": datetime.now(UTC).isoformat(timespec="seconds"),
        "benches": {str(path): result.conditions for path, result in benches.items()},
    }


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


# The accuracy as text.

LEGEND = (
    "Spearman: rank correlation of predicted and measured steps. error: median of |predicted - measured| / measured. "
    "regret: how much longer the plan predicted to be fastest takes than the fastest. Costs from other workloads and "
    "other plans are regressed without the workload or plan that they predict. Costs from all plans are those written, "
    "whose error is no test."
)


def _accuracy_text(world: int, of: Sequence[Sample], costs: UnitCosts, benches: Benches) -> str:
    """The error on plans left out, the accuracy on each bench, and what the plans can say about costs."""
    known = costs.identifiability
    assert known is not None, "_checked_costs says what the plans can say"
    head = f"{world} rank(s), {len(of)} plans of {len(costs.workloads)} workload(s); median error: {left_out(known)}"
    other_plans = predicted_left_out(of)
    rows = _accuracy_rows(world, of, costs, benches, other_plans)
    table = text_table(rows, left=3, width=screen_width())
    sentences = [*determined(of, known), *order_warning(of, other_plans)]
    return "\n".join(["", wrapped(head), table, wrapped(LEGEND), *map(wrapped, sentences)])


def _accuracy_rows(
    world: int, of: Sequence[Sample], costs: UnitCosts, benches: Benches, other_plans: Sequence[float] | None
) -> list[tuple[str, ...]]:
    """other_plans: each plan's step, predicted by costs from the other plans."""
    others, by_plans = held_out(of), _by_bench(of, other_plans)
    rows: list[tuple[str, ...]] = [("workload", "bench", "costs from", "plans", "Spearman", "error", "regret")]
    for path, result in sorted(benches.items(), key=lambda bench: (str(bench[1].workload["name"]), bench[0])):
        if result.hardware["world"] != world:
            continue
        own = [sample for sample in of if sample.bench == str(path)]
        models = {
            "TorchRec's constants": default_accuracy(result),
            "other workloads": others.get(str(path)),
            "other plans": by_plans.get(str(path)),
            "all plans": calibrated_accuracy(own, costs),
        }
        rows += [
            (str(result.workload["name"]), str(path), model, *_figures(found))
            for model, found in models.items()
            if found
        ]
    return rows


def _by_bench(of: Sequence[Sample], predicted: Sequence[float] | None) -> dict[str, Accuracy]:
    """Bench -> accuracy of the predicted steps; empty without predictions."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for sample, step in zip(of, predicted or [], strict=predicted is not None):
        pairs.setdefault(sample.bench, []).append((step, sample.step))
    return {bench: accuracy(*map(list, zip(*each, strict=True))) for bench, each in pairs.items()}


ORDERED = 0.5
"""Spearman correlation on plans left out, median over benches, below which costs are no guide to plans."""


def order_warning(of: Sequence[Sample], other_plans: Sequence[float] | None) -> list[str]:
    """A sentence if costs from the other plans do not order the plans of a bench."""
    found = [each.spearman for each in _by_bench(of, other_plans).values() if each.spearman is not None]
    if not found or np.median(found) >= ORDERED:
        return []
    return [
        f"warning: these costs do not order plans: Spearman on plans left out is {np.median(found):.2f} in the median "
        f"bench, below {ORDERED}. Do not search plans by them; measure more rounds and steps, on a machine without "
        "other load."
    ]


def _figures(found: Accuracy) -> tuple[str, str, str, str]:
    correlation = "-" if found.spearman is None else f"{found.spearman:.2f}"
    return f"{found.plans}", correlation, f"{found.error:.0%}", f"{found.regret:.1%}"


def determined(of: Sequence[Sample], known: Identifiability) -> list[str]:
    """Sentences: coefficients and distinct plans, which costs the plans leave open, and warnings."""
    benches = len({sample.bench for sample in of})
    kinds = known.coefficients - benches
    condition = "singular" if known.condition is None else f"condition {known.condition:,.0f}"
    lines = [
        f"unknown costs: {known.coefficients} ({kinds} kinds of work, {benches} bench(es)), from {known.plans} "
        f"distinct plans; the design matrix has rank {known.rank}, {condition}"
    ]
    for title, found in (
        ("unknown, since no plan has such work", known.absent),
        ("unknown, since regressed to 0", known.zero),
        ("not separable from the other costs, so that only their sum is known", known.inseparable),
    ):
        if found:
            lines.append(f"{title}: {', '.join(found)}")
    if known.rank < known.coefficients:
        lines.append(
            "warning: kinds of work that rise and fall together in all measured plans have no costs of their own: "
            "predictions hold for the measured workloads only. Bench other tables files too."
        )
    if known.plans < MARGIN * known.coefficients:
        lines.append(
            f"warning: fewer than {MARGIN} distinct plans for each unknown cost: the costs are poorly determined. "
            "Bench more plans (other sharding types, edited plan files) or other tables files, and calibrate on all "
            "results together."
        )
    return lines
