"""`sidrec bench calibrate BENCH.json... --out FILE`: what work costs here, from plans that were measured."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from sidrec import __version__
from sidrec.bench.result import BenchResult, PlanMeasurement, load_bench
from sidrec.config import ConfigError
from sidrec.io.output_folders import output_file
from sidrec.plans.cost import VERSION, Calibration, Fit, Sample, fit, is_calibration, save_calibration
from sidrec.plans.work import KINDS
from sidrec.schema import ContractError

Benches = Mapping[Path, BenchResult]


def main(argv: Sequence[str]) -> None:
    """Fits, says how well, and writes the file. Raises ConfigError or ContractError; then nothing is written."""
    parser = argparse.ArgumentParser(prog="sidrec bench calibrate", description="Fit a cost model to measured plans.")
    parser.add_argument("benches", nargs="+", type=Path, metavar="BENCH.json", help="results of sidrec bench plans")
    parser.add_argument(
        "--out", type=Path, default=Path("calibration.json"), help="the calibration file to write or replace"
    )
    arguments = parser.parse_args(argv)
    out = output_file(arguments.out, "a calibration", is_calibration)
    benches = {path: load_bench(path) for path in arguments.benches}
    device = _device(benches)
    worlds = _by_world(benches)
    calibration = Calibration(
        VERSION, device, {world: fit(of) for world, of in worlds.items()}, conditions=_conditions(benches)
    )
    for world, of in worlds.items():
        print(_table(world, of, calibration.worlds[world], benches))
    save_calibration(out, calibration)
    print(f"\nwritten: {arguments.out}; use it with sidrec plan --calibration, or parallel.calibration in a recipe")


def _device(benches: Benches) -> str:
    devices = {str(result.hardware["device"]): path for path, result in benches.items()}
    if len(devices) > 1:
        listed = ", ".join(f"{path} of {device}" for device, path in devices.items())
        raise ConfigError(f"calibration: expected benches of one kind of device, got {listed}")
    return next(iter(devices))


def _by_world(benches: Benches) -> dict[int, list[Sample]]:
    worlds: dict[int, list[Sample]] = {}
    for path, result in benches.items():
        found = samples(result, str(path))
        if not found:
            raise ConfigError(f"{path}: expected at least one measured plan, got none")
        worlds.setdefault(int(result.hardware["world"]), []).extend(found)
    return dict(sorted(worlds.items()))


def _conditions(benches: Benches) -> dict[str, object]:
    return {
        "sidrec": __version__,
        "fitted": datetime.now(UTC).isoformat(timespec="seconds"),
        "benches": {str(path): result.conditions for path, result in benches.items()},
    }


def _table(world: int, of: Sequence[Sample], found: Fit, benches: Benches) -> str:
    """How well steps are foreseen: by TorchRec's constants, by a fit to the other workloads, by the fit to all."""
    others = held_out(of)
    header = f"{'workload':<24}{'plans':>6}  {'cost model':<24}{'Spearman':>9}{'error':>9}{'regret':>9}  bench"
    lines = [f"\n{world} rank(s), {len(of)} plans of {len(found.workloads)} workload(s)", header]
    for path, result in sorted(benches.items(), key=lambda bench: (str(bench[1].workload["name"]), bench[0])):
        if result.hardware["world"] != world:
            continue
        own = [sample for sample in of if sample.bench == str(path)]
        rows = {
            "TorchRec's constants": default_accuracy(result),
            "fitted to the others": others.get(str(path)),
            "fitted to all": fitted_accuracy(own, found),
        }
        name = str(result.workload["name"])
        lines += [f"{_line(name, model, value)}  {path}" for model, value in rows.items() if value is not None]
    return "\n".join(lines)


# How well cost models foresee what a bench measured: order, error, and what their choice of plan would cost.
#
# Shapes: N measured plans.


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


def _line(name: str, model: str, value: Accuracy) -> str:
    correlation = "-" if value.spearman is None else f"{value.spearman:.2f}"
    return f"{name:<24}{value.plans:>6}  {model:<24}{correlation:>9}{value.error:>8.0%} {value.regret:>8.1%}"


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
