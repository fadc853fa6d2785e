"""`sidrec bench calibrate BENCH.json... --out FILE`: what work costs here, from plans that were measured."""

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sidrec import __version__
from sidrec.bench.accuracy import Accuracy, default_accuracy, fitted_accuracy, held_out, samples
from sidrec.bench.result import BenchResult, load_bench
from sidrec.config import ConfigError
from sidrec.output import output_file
from sidrec.plans.calibration import VERSION, Calibration, Fit, Sample, fit, is_calibration, save_calibration

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


def _line(name: str, model: str, value: Accuracy) -> str:
    correlation = "-" if value.spearman is None else f"{value.spearman:.2f}"
    return f"{name:<24}{value.plans:>6}  {model:<24}{correlation:>9}{value.error:>8.0%} {value.regret:>8.1%}"
