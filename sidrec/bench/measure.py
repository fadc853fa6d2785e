"""A bench of plans from end to end: plans are made and rated, measured in rounds, and saved after every visit.

In a round every plan is visited once. The order rotates from round to round, so that a slow minute of the machine
affects all plans equally.

Shapes: S timed steps, W ranks.
"""

import gc
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torchrec.distributed.types import ShardingPlan

from sidrec import __version__
from sidrec.bench.candidate_plans import CandidatePlan, FreeMemory, Rating, candidate_plans, rate
from sidrec.bench.result import PHASES, VERSION, BenchResult, PlanMeasurement, Timing
from sidrec.bench.subject import Subject, meta_model, workload_of
from sidrec.bench.trial import StepCounts, Trial, Visit
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
) -> BenchResult:
    """Measures the plans of these names, and writes out/bench.json after every visit. Collective.

    free: bytes of memory that may be filled; None: what is free now. Raises ConfigError or ContractError on all ranks
    for a plan file that does not fit, and if no plan could be measured.
    """
    calibrated = run_on_all_ranks(ranks, lambda: _calibrated(calibration, ranks))
    workload = workload_of(subject, ranks)
    bench = Bench(subject, workload, hardware_of(ranks), steps, rounds, calibrated, ranks)
    candidates = candidate_plans(subject, names, workload, calibration, ranks)
    records = {candidate.name: _record(bench, candidate) for candidate in candidates}
    keep = _check_memory(bench, records, free)
    facts = bench_conditions(subject, steps, keep, ranks)

    def save(complete: bool = False) -> BenchResult:
        result = _result(bench, records, facts, complete)
        run_on_all_ranks(ranks, lambda: write_json(out / RESULT, result.as_json()) if ranks.first else None)
        return result

    run_on_all_ranks(ranks, lambda: out.mkdir(parents=True, exist_ok=True))
    save()
    plans = {candidate.name: candidate.plan for candidate in candidates}
    Rounds(subject, plans, records, steps, keep, save, ranks).run(rounds)
    result = save(complete=True)
    run_on_all_ranks(ranks, lambda: _check_measured(result))
    return result


def _calibrated(calibration: Path | None, ranks: Ranks) -> CostModel | None:
    return CalibratedCost(load_calibration(calibration, ranks.device.type)) if calibration else None


@dataclass
class Record:
    """Measurements of one plan so far. layout: the plan file's content. failed: why it is not measured any longer.

    rounds: median step of each round. slowest: phase -> milliseconds of the slowest rank in every timed step.
    cpu: for each rank, CPU milliseconds of every whole step. losses: of the first visit's steps, mean over ranks.
    lookups_W: for each visit, ids looked up on each rank.
    """

    name: str
    layout: dict[str, Any]
    failed: str | None
    rating: Rating | None
    rounds: list[float] = field(default_factory=list)
    slowest: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    losses: list[float] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    memory_W: list[int] = field(default_factory=list)
    lookups_W: list[list[float]] = field(default_factory=list)

    def add(self, visits: Sequence[Visit]) -> None:
        """Adds a visit. visits: [W] of every rank."""
        for phase in PHASES:
            slowest_S = np.max([visit.milliseconds[phase] for visit in visits], axis=0)
            self.slowest[phase] += slowest_S.tolist()
            if phase == "step":
                self.rounds.append(float(np.median(slowest_S)))
        if not self.losses:
            self.losses = np.mean([visit.losses for visit in visits], axis=0).tolist()
        self.cpu = [before + visit.cpu for before, visit in zip(self.cpu or [[]] * len(visits), visits, strict=True)]
        self.memory_W = [visit.memory for visit in visits]
        self.lookups_W.append([visit.ids for visit in visits])

    def measurement(self) -> PlanMeasurement:
        """The result so far."""
        return PlanMeasurement(
            name=self.name,
            plan=self.layout,
            failed=self.failed,
            rounds=self.rounds,
            timings={phase: _timing(spent) for phase, spent in self.slowest.items() if spent},
            memory=self.memory_W,
            lookups=np.mean(self.lookups_W, axis=0).tolist() if self.lookups_W else [],
            default=self.rating.default if self.rating else None,
            calibrated=self.rating.calibrated if self.rating else None,
            cpu=[float(np.median(spent)) for spent in self.cpu],
            work=self.rating.work if self.rating else {},
        )


def _timing(milliseconds: list[float]) -> Timing:
    p10, p50, p90 = np.quantile(milliseconds, [0.1, 0.5, 0.9]).tolist()
    return Timing(p10, p50, p90)


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


# The rounds.

LONGEST = 400
"""Characters kept of an error raised inside TorchRec."""


class Rounds:
    """Visits every plan once a round.

    plans, records: by name; the same on every rank; plans that failed are skipped. keep: whether models stay in memory
    between rounds, or are rebuilt for every visit. save: called on every rank after each visit.
    """

    def __init__(
        self,
        subject: Subject,
        plans: Mapping[str, ShardingPlan | None],
        records: Mapping[str, Record],
        steps: StepCounts,
        keep: bool,
        save: Callable[[], object],
        ranks: Ranks,
    ) -> None:
        self._subject = subject
        self._plans = plans
        self._records = records
        self._steps = steps
        self._keep = keep
        self._save = save
        self._ranks = ranks
        self._trials: dict[str, Trial] = {}

    def run(self, rounds: int) -> None:
        """All rounds. After the first, plans whose losses differ from the others' are failed."""
        started, visits = time.monotonic(), 0
        for number in range(rounds):
            names = self._not_failed()
            turn = number % max(1, len(names))
            for index, name in enumerate(names[turn:] + names[:turn]):
                self._measure(self._records[name])
                self._save()
                visits += 1
                left = len(names) * (rounds - number) - index - 1
                self._print(f"round {number + 1}/{rounds}", name, (time.monotonic() - started) / visits * left)
            if number == 0:
                self._fail_other_losses()

    def _not_failed(self) -> list[str]:
        return [name for name, record in self._records.items() if record.failed is None]

    def _measure(self, record: Record) -> None:
        """A visit on all ranks. If it raises on any rank, this plan fails on all ranks; the others go on."""
        try:
            visit = run_on_all_ranks(self._ranks, lambda: self._visit(record.name))
        except Exception as error:
            if os.environ.get("SIDREC_TRACEBACK") == "1":
                traceback.print_exc()
            record.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"
            self._trials.pop(record.name, None)
            return
        finally:
            gc.collect()
        record.add(gather_objects(self._ranks, visit))

    def _visit(self, name: str) -> Visit:
        trial = self._trials.get(name)
        if trial is None:
            plan = self._plans[name]
            assert plan is not None, "a candidate without a plan has failed already"
            trial = Trial(self._subject, plan, self._ranks)
        if self._keep:
            self._trials[name] = trial
        return trial.visit(self._steps)

    def _fail_other_losses(self) -> None:
        mismatches = loss_mismatches({name: self._records[name].losses for name in self._not_failed()})
        for name, message in mismatches.items():
            self._records[name].failed = message
            self._trials.pop(name, None)
        self._save()

    def _print(self, where: str, name: str, seconds_left: float) -> None:
        if self._ranks.first:
            record = self._records[name]
            outcome = f"step {record.rounds[-1]:.2f} ms" if record.failed is None else f"failed: {record.failed}"
            print(f"{where}  {name}  {outcome}  ETA {timedelta(seconds=round(seconds_left))}", flush=True)


TOLERANCE = 1e-3
"""Largest relative difference between two plans' losses of a step. Another order of summation changes it by 1e-6."""


def loss_mismatches(losses: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Plans that compute something else than most plans -> a message that names the first differing step.

    losses: plan -> [S] mean loss over all ranks. The reference is the plan that most plans agree with, or the first of
    several such.
    """
    if not losses:
        return {}
    agreeing = {
        name: sum(_first_difference(own, other) is None for other in losses.values()) for name, own in losses.items()
    }
    reference = max(losses, key=lambda name: agreeing[name])
    messages = {}
    for name, own in losses.items():
        step = _first_difference(losses[reference], own)
        if step is not None:
            expected, got = losses[reference][step], own[step]
            messages[name] = f"step {step + 1}: expected the loss of {reference}, {expected:.6f}, got {got:.6f}"
    return messages


def _first_difference(losses: Sequence[float], others: Sequence[float]) -> int | None:
    for step, (one, other) in enumerate(zip(losses, others, strict=True)):
        if not abs(one - other) <= TOLERANCE * max(abs(one), abs(other)):  # true for NaN too
            return step
    return None


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
