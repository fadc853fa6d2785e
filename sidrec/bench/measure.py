"""A bench of plans from end to end: plans are made and rated, measured in rounds, and saved after every visit."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torchrec.distributed.types import ShardingPlan

from sidrec import __version__
from sidrec.bench.candidate_plans import CandidatePlan, FreeMemory, Rating, candidate_plans, rate
from sidrec.bench.result import VERSION, BenchResult
from sidrec.bench.rounds import DROPPED, KEPT, Record, Rounds
from sidrec.bench.subject import Subject, meta_model, workload_of
from sidrec.bench.trial import StepCounts, Trial
from sidrec.config import ConfigError
from sidrec.errors import SidrecError
from sidrec.io.files import write_json
from sidrec.machine import cores
from sidrec.parallel.planning import hardware_of
from sidrec.parallel.process_group import Ranks, broadcast_object, gather_objects, run_on_all_ranks
from sidrec.parallel.sharding import sharders_of
from sidrec.plans.calibration import CalibratedCost, load_calibration
from sidrec.plans.cost import CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.plan_file import plan_file_of
from sidrec.plans.workload import Workload
from sidrec.stack import find_stack

RESULT = "bench.json"


@dataclass(frozen=True)
class Bench:
    """The inputs of a bench. rounds: wanted. calibrated: the calibrated cost model, if there is one."""

    subject: Subject
    workload: Workload
    hardware: Hardware
    steps: StepCounts
    rounds: int
    calibrated: CostModel | None
    ranks: Ranks


def bench_plans(
    subject: Subject,
    names: Sequence[str],
    steps: StepCounts,
    rounds: int,
    out: Path,
    ranks: Ranks,
    calibration: Path | None = None,
    free: int | None = None,
    keep_all: bool = False,
) -> BenchResult:
    """Measures the plans of these names, and writes out/bench.json after every visit. Collective.

    Equal plans are measured once. free: bytes of memory that may be filled; None: what is free now. keep_all: no plan
    is dropped after the first round. Raises ConfigError or ContractError on all ranks for a plan file that does not
    fit, and if no plan could be measured.
    """
    calibrated = run_on_all_ranks(ranks, lambda: _calibrated(calibration, ranks))
    workload = workload_of(subject, ranks)
    bench = Bench(subject, workload, hardware_of(ranks), steps, rounds, calibrated, ranks)
    candidates = candidate_plans(subject, names, workload, calibration, ranks)
    records = _grouped([_record(bench, candidate) for candidate in candidates])
    keep = _check_memory(bench, records, free)
    facts = {**bench_conditions(subject, steps, keep, ranks), "slow_plans": KEPT if keep_all else DROPPED}

    def save(complete: bool = False) -> BenchResult:
        result = _result(bench, records, facts, complete)
        run_on_all_ranks(ranks, lambda: write_json(out / RESULT, result.as_json()) if ranks.first else None)
        return result

    run_on_all_ranks(ranks, lambda: out.mkdir(parents=True, exist_ok=True))
    save()
    plans = {candidate.name: candidate.plan for candidate in candidates}

    def trial(name: str) -> Trial:
        plan = plans[name]
        assert plan is not None, "a candidate without a plan has failed already"
        return Trial(subject, plan, ranks)

    Rounds(trial, records, steps, keep, save, ranks, keep_all).run(rounds)
    result = save(complete=True)
    run_on_all_ranks(ranks, lambda: _check_measured(result))
    return result


def _calibrated(calibration: Path | None, ranks: Ranks) -> CostModel | None:
    return CalibratedCost(load_calibration(calibration, ranks.device.type)) if calibration else None


def _record(bench: Bench, candidate: CandidatePlan) -> Record:
    """Rank 0 describes and rates the plan; all ranks get the same record."""
    if candidate.plan is None:
        return Record(candidate.name, {}, candidate.failed, None)
    plan = candidate.plan
    ranks = bench.ranks
    record = run_on_all_ranks(ranks, lambda: _describe(bench, candidate.name, plan) if ranks.first else None)
    described = broadcast_object(ranks, record)
    assert described is not None, "run_on_all_ranks raises if rank 0 fails"
    return described


def _describe(bench: Bench, name: str, plan: ShardingPlan) -> Record:
    subject, hardware = bench.subject, bench.hardware
    sharders = sharders_of(bench.workload.model, subject.optimizer, subject.seed)
    rating: Rating | None = None
    try:
        rating = rate(plan, bench.workload, hardware, sharders, bench.calibrated)
        world = (hardware.world, hardware.local_world, hardware.device)
        layout = plan_file_of(plan, meta_model(subject), *world).as_json()
    except SidrecError as error:
        return Record(name, {}, str(error), rating)
    return Record(name, layout, None, rating)


def _grouped(records: Sequence[Record]) -> dict[str, Record]:
    """Name -> record. A plan that equals an earlier one becomes one more name of it."""
    grouped: dict[str, Record] = {}
    for record in records:
        same = next((other for other in grouped.values() if record.layout and other.layout == record.layout), None)
        if same is None:
            grouped[record.name] = record
        else:
            same.aliases.append(record.name)
    return grouped


def _check_memory(bench: Bench, records: Mapping[str, Record], free: int | None) -> bool:
    """Marks plans that do not fit the memory as failed. Returns whether all others fit at the same time."""
    memory = FreeMemory(bench.hardware, free)
    rated = {name: record.rating.bytes_W for name, record in records.items() if record.rating and not record.failed}
    for name, bytes_W in rated.items():
        records[name].failed = next(filter(None, gather_objects(bench.ranks, memory.lacks(bytes_W))), None)
    fitting = [bytes_W for name, bytes_W in rated.items() if records[name].failed is None]
    return all(gather_objects(bench.ranks, memory.keeps(fitting)))


def _check_measured(result: BenchResult) -> None:
    if all(plan.failed is not None for plan in result.plans):
        first = result.plans[0]
        raise ConfigError(f"{result.workload['name']}: no plan could be measured; {first.name}: {first.failed}")


# The result, with the conditions of the measurement.

HELD_FIXED = (
    "batches and their order, initial values of tables and dense layers, and the optimizer of every table; replicated "
    "tables (data_parallel) are outside FBGEMM's fused optimizer and use torch's of the same kind and learning rate"
)


def _result(bench: Bench, records: Mapping[str, Record], facts: dict[str, Any], complete: bool) -> BenchResult:
    return BenchResult(
        version=VERSION,
        workload=_workload_facts(bench.workload),
        hardware=asdict(bench.hardware),
        conditions=facts,
        rounds_wanted=bench.rounds,
        complete=complete,
        plans=[record.measurement() for record in records.values()],
    )


def _workload_facts(workload: Workload) -> dict[str, Any]:
    tables = {
        name: {
            "rows": table.num_embeddings,
            "width": table.embedding_dim,
            "bags": workload.loads[name].bags,
            "ids_per_bag": list(workload.loads[name].ids_per_bag),
        }
        for name, table in workload.tables.items()
    }
    return {"name": workload.name, "rows_per_rank": workload.rows_per_rank, "tables": tables}


def bench_conditions(subject: Subject, steps: StepCounts, keep: bool, ranks: Ranks) -> dict[str, Any]:
    """The conditions as plain data. keep: whether models are kept between rounds."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "sidrec": __version__,
        "commit": _commit(),
        "stack": str(find_stack()),
        "processor": _processor(),
        "cores": cores(),
        "ranks": ranks.world,
        "threads_per_rank": ranks.threads,
        "warm_up": steps.warm_up,
        "steps": steps.timed,
        "step": {
            "sparse_dist": "TrainPipelineSparseDist, which sends the next batch's ids during a step",
            "plain": "TrainPipelineBase, one batch after the other",
        }[subject.pipeline],
        "models": "kept between rounds" if keep else "rebuilt for every visit, since all together do not fit",
        "optimizer": f"tables {subject.optimizer.tables.kind}, dense layers {subject.optimizer.dense.kind}",
        "held_fixed": HELD_FIXED,
        **subject.facts,
    }


def _commit() -> str | None:
    """Commit of the checkout that sidrec runs from, with `+` if files changed; None for an installed package."""
    root = Path(__file__).parents[2]
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return f"{commit}+" if _git(root, "status", "--porcelain", "--", "sidrec") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
