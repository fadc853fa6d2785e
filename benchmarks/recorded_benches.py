"""The recorded benches of sharding plans: one Parquet file, and how well costs predicted them.

    python -m benchmarks.recorded_benches write FOLDER        writes FOLDER/NAME/bench.json for each recorded bench
    python -m benchmarks.recorded_benches record FOLDER       replaces the recorded benches by FOLDER/**/bench.json
    python -m benchmarks.recorded_benches accuracy            writes results/plans/accuracy.json

`sidrec bench calibrate` and `sidrec bench page` read the files that `write` makes. results/plans/benches.parquet has
one row per plan of a bench: the bench's name (NAME-RANKS, replicas/NAME-RANKS, chosen/NAME-RANKS), workload, ranks, the
plan's name, its median step in milliseconds and why it failed; `bench_json` holds the bench without its plans, and
`plan_json` the plan, as JSON text, so that files are written back as they were.

accuracy.json: for each bench of fourteen plans, Spearman's correlation of predicted and measured steps, for TorchRec's
constants and for costs that are regressed on the other workloads; for each bench in `chosen`, how much longer `auto`
takes than the fastest other plan, and TorchRec's plan than `auto`, by rounds.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import RESULTS
from sidrec.bench.calibrate import default_accuracy, held_out
from sidrec.bench.ranking import PairedSlowdown, fastest_first, paired_slowdown
from sidrec.bench.regression import Sample, samples
from sidrec.bench.result import BenchResult, load_bench, parse_bench
from sidrec.io.files import read_json, replaced_file, write_json

BENCHES = RESULTS / "plans" / "benches.parquet"
ACCURACY = RESULTS / "plans" / "accuracy.json"
CHOSEN = "chosen/"
TEXTS = ("bench", "workload", "plan", "failed", "bench_json", "plan_json")
SCHEMA = pa.schema({**dict.fromkeys(TEXTS, pa.string()), "ranks": pa.int64(), "step_ms": pa.float64()})


def recorded(name: str, file: Path = BENCHES) -> dict[str, Any]:
    """The JSON of one recorded bench. Raises KeyError for a name that is not recorded."""
    return _benches(file, [("bench", "==", name)])[name]


def recorded_all(file: Path = BENCHES) -> dict[str, dict[str, Any]]:
    """Name -> JSON of each recorded bench."""
    return _benches(file, None)


def _benches(file: Path, filters: list[tuple[str, str, str]] | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in pq.read_table(file, columns=["bench", "bench_json", "plan_json"], filters=filters).to_pylist():
        bench = found.setdefault(row["bench"], {**json.loads(row["bench_json"]), "plans": []})
        bench["plans"].append(json.loads(row["plan_json"]))
    return found


def write_back(folder: Path, file: Path = BENCHES) -> list[Path]:
    """Writes FOLDER/NAME/bench.json for each recorded bench. Returns the files."""
    paths = []
    for name, bench in recorded_all(file).items():
        paths.append(folder / name / "bench.json")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write_json(paths[-1], bench)
    return paths


def record(folder: Path, file: Path = BENCHES) -> None:
    """Replaces the recorded benches by FOLDER/**/bench.json. Raises ContractError for a file that is no bench."""
    rows: list[dict[str, object]] = []
    for path in sorted(folder.rglob("bench.json")):
        result = load_bench(path)
        bench = read_json(path, "a bench of plans")
        plans = bench.pop("plans")
        for plan, checked in zip(plans, result.plans, strict=True):
            timing = checked.timings.get("step")
            rows.append(
                {
                    "bench": str(path.parent.relative_to(folder)),
                    "workload": str(result.workload["name"]),
                    "ranks": int(result.hardware["world"]),
                    "plan": checked.name,
                    "step_ms": None if timing is None else timing.p50,
                    "failed": checked.failed,
                    "bench_json": json.dumps(bench),
                    "plan_json": json.dumps(plan),
                }
            )
    with replaced_file(file) as partial:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial, compression="zstd", compression_level=19)


# How well costs predicted the recorded benches.


def accuracy_of(benches: Mapping[str, BenchResult]) -> dict[str, object]:
    """What accuracy.json holds. benches: name -> bench."""
    fitted = {name: bench for name, bench in benches.items() if not name.startswith(CHOSEN)}
    worlds: dict[int, list[Sample]] = {}
    for name, bench in fitted.items():
        worlds.setdefault(int(bench.hardware["world"]), []).extend(samples(bench, name))
    others = {name: found for of in worlds.values() for name, found in held_out(of).items()}
    spearman = {}
    for name, bench in fitted.items():
        default = default_accuracy(bench)
        spearman[name] = {
            "plans": others[name].plans,
            "TorchRec's constants": None if default is None else default.spearman,
            "regressed on the other workloads": others[name].spearman,
        }
    chosen = {name: _slowdowns(bench) for name, bench in benches.items() if name.startswith(CHOSEN)}
    return {"spearman": spearman, "chosen": chosen}


def _slowdowns(bench: BenchResult) -> dict[str, object]:
    """The step of `auto` over that of the fastest other plan, and of `torchrec` over `auto`, in the same rounds."""
    ranked = fastest_first(bench)
    plans = {name: plan for plan in ranked for name in (plan.name, *plan.aliases)}
    auto = plans["auto"]
    fastest = next(plan for plan in ranked if plan is not auto)
    pairs = {"auto": (auto, fastest), "torchrec": (plans["torchrec"], auto)}
    return {"plans": len(ranked)} | {
        name: {"over": other.name} | _interval(paired_slowdown(plan.rounds, other.rounds))
        for name, (plan, other) in pairs.items()
    }


def _interval(found: PairedSlowdown | None) -> dict[str, float]:
    if found is None:
        return {}
    return {"ratio": round(found.ratio, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def write_accuracy(out: Path = ACCURACY) -> None:
    """Computes accuracy.json from the recorded benches."""
    benches = {name: parse_bench(raw, Path(name)) for name, raw in recorded_all().items()}
    found: Any = accuracy_of(benches)
    for of in found["spearman"].values():
        of.update({name: round(value, 4) for name, value in of.items() if isinstance(value, float | np.floating)})
    write_json(out, found)


def main(argv: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recorded_benches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("write", "record"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.add_parser("accuracy")
    arguments = parser.parse_args(argv)
    if arguments.command == "write":
        print("\n".join(map(str, write_back(arguments.folder))))
    elif arguments.command == "record":
        record(arguments.folder)
    else:
        write_accuracy()


if __name__ == "__main__":
    main(sys.argv[1:])
