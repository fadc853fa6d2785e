"""The bench of plans from end to end: plans made and rated, measured in rounds, the result written as it grows."""

import gc
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import distributed as dist

from sidrec.bench.candidate_plans import CandidatePlan, FreeMemory, Rating, candidate_plans, rate
from sidrec.bench.result import PHASES, VERSION, BenchResult, PlanMeasurement, Timing, conditions, loss_mismatches
from sidrec.bench.subject import Subject, meta_model, workload_of
from sidrec.bench.trial import StepCounts, Trial, Visit
from sidrec.config import ConfigError
from sidrec.errors import SidrecError
from sidrec.parallel.planning import hardware_of
from sidrec.parallel.process_group import Ranks, run_on_all_ranks
from sidrec.parallel.sharding import sharders_of
from sidrec.plans.cost import CalibratedCost, CostModel, load_calibration
from sidrec.plans.hardware import Hardware
from sidrec.plans.plan_file import plan_file_of
from sidrec.plans.workload import Workload
from sidrec.train.run_directory import write_json

T = TypeVar("T")
RESULT = "bench.json"


@dataclass(frozen=True)
class Bench:
    """What all parts of a bench need to know. out: folder of the result. rounds: wanted."""

    subject: Subject
    workload: Workload
    hardware: Hardware
    amounts: StepCounts
    rounds: int
    calibrated: CostModel | None
    out: Path
    ranks: Ranks


def bench_plans(
    subject: Subject,
    names: Sequence[str],
    amounts: StepCounts,
    rounds: int,
    out: Path,
    ranks: Ranks,
    calibration: Path | None = None,
) -> BenchResult:
    """Measures the plans of these names; OUT/bench.json holds what was found after every visit to one.

    Raises ConfigError or ContractError on all ranks together, for a plan file that does not fit, and where no plan
    could be measured.
    """
    calibrated = run_on_all_ranks(ranks, lambda: _calibrated(calibration, ranks))
    workload = workload_of(subject, ranks)
    bench = Bench(subject, workload, hardware_of(ranks), amounts, rounds, calibrated, out, ranks)
    made = candidate_plans(subject, names, workload, calibration, ranks)
    records = {contender.name: _record(bench, contender) for contender in made}
    keep = _check_room(bench, records)
    facts = conditions(subject, amounts, keep, ranks)

    def save(complete: bool = False) -> BenchResult:
        result = _result(bench, records, facts, complete)
        run_on_all_ranks(ranks, lambda: write_json(out / RESULT, result.as_json()) if ranks.first else None)
        return result

    run_on_all_ranks(ranks, lambda: out.mkdir(parents=True, exist_ok=True))
    save()
    Rounds(subject, made, records, amounts, keep, save, ranks).run(rounds)
    result = save(complete=True)
    run_on_all_ranks(ranks, lambda: _check_measured(result))
    return result


def _calibrated(calibration: Path | None, ranks: Ranks) -> CostModel | None:
    return CalibratedCost(load_calibration(calibration, ranks.device.type)) if calibration else None


# What the rounds have found so far of each plan, and the result made of it.
#
# Shapes: S timed steps, W ranks.


@dataclass
class Record:
    """One plan. layout: the plan file's content. failed: why it is measured no longer.

    rounds: median step of each. slowest: phase -> milliseconds of every step so far, each the slowest rank's.
    cpu: per rank, milliseconds of CPU time of every whole step so far. losses: mean over ranks of the first visit's
    steps. lookups_W: one value per rank and visit.
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
        """Books a visit. visits: of every rank, in their order."""
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
        """What is known now."""
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


def _record(bench: Bench, contender: CandidatePlan) -> Record:
    """The first rank describes and rates a plan; all ranks get the same record."""
    if contender.plan is None:
        return Record(contender.name, {}, contender.failed, None)
    described = [run_on_all_ranks(bench.ranks, lambda: _describe(bench, contender) if bench.ranks.first else None)]
    dist.broadcast_object_list(described, src=0, group=bench.ranks.control)
    assert described[0] is not None, "together raises where the first rank fails"
    return described[0]


def _describe(bench: Bench, contender: CandidatePlan) -> Record:
    assert contender.plan is not None, "without a plan there is nothing to describe"
    subject, hardware = bench.subject, bench.hardware
    sharders = sharders_of(bench.workload.model, subject.optimizer, subject.seed)
    rating: Rating | None = None
    try:
        rating = rate(contender.plan, bench.workload, hardware, sharders, bench.calibrated)
        world = (hardware.world, hardware.local_world, hardware.device)
        layout = plan_file_of(contender.plan, meta_model(subject), *world).as_json()
    except SidrecError as error:
        return Record(contender.name, {}, str(error), rating)
    return Record(contender.name, layout, None, rating)


def _check_room(bench: Bench, records: dict[str, Record]) -> bool:
    """Marks the plans whose tables alone do not fit the memory. Returns whether those of all others fit at once."""
    room = FreeMemory(bench.hardware)
    rated = {name: record.rating.bytes_W for name, record in records.items() if record.rating and not record.failed}
    for name, bytes_W in rated.items():
        records[name].failed = next(filter(None, _of_all(room.lacks(bytes_W), bench.ranks)), None)
    fitting = [bytes_W for name, bytes_W in rated.items() if records[name].failed is None]
    return all(_of_all(room.keeps(fitting), bench.ranks))


def _of_all(value: T, ranks: Ranks) -> list[T]:
    """Every rank's value."""
    values = [value] * ranks.world
    dist.all_gather_object(values, value, group=ranks.control)
    return values


def _result(bench: Bench, records: dict[str, Record], facts: dict[str, Any], complete: bool) -> BenchResult:
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


def _check_measured(result: BenchResult) -> None:
    if all(plan.failed is not None for plan in result.plans):
        first = result.plans[0]
        raise ConfigError(f"{result.workload['name']}: no plan could be measured; {first.name}: {first.failed}")


def _timing(milliseconds: list[float]) -> Timing:
    p10, p50, p90 = np.quantile(milliseconds, [0.1, 0.5, 0.9]).tolist()
    return Timing(p10, p50, p90)


# Rounds over the plans, in an order that rotates, so that a slow minute of the machine falls on all of them alike.


LONGEST = 400
"""Characters kept of an error from the depths of TorchRec."""


class Rounds:
    """Visits every plan once a round.

    records: by name; the same on every rank. A record that has failed is passed over. keep: whether the models stay in
    memory between rounds, or are built anew for every visit. save: called on every rank after each visit.
    """

    def __init__(
        self,
        subject: Subject,
        contenders: list[CandidatePlan],
        records: dict[str, Record],
        amounts: StepCounts,
        keep: bool,
        save: Callable[[], object],
        ranks: Ranks,
    ) -> None:
        self._subject = subject
        self._plans = {contender.name: contender.plan for contender in contenders}
        self._records = records
        self._amounts = amounts
        self._keep = keep
        self._save = save
        self._ranks = ranks
        self._trials: dict[str, Trial] = {}

    def run(self, rounds: int) -> None:
        """All rounds. After the first, plans whose losses differ from the others' are out."""
        begun, visits = time.monotonic(), 0
        for number in range(rounds):
            alive = self._alive()
            turn = number % max(1, len(alive))
            for place, name in enumerate(alive[turn:] + alive[:turn]):
                self._measure(self._records[name])
                self._save()
                visits += 1
                left = len(alive) * (rounds - number) - place - 1
                self._say(f"round {number + 1}/{rounds}", name, (time.monotonic() - begun) / visits * left)
            if number == 0:
                self._drop_dissenters()

    def _alive(self) -> list[str]:
        return [name for name, record in self._records.items() if record.failed is None]

    def _measure(self, record: Record) -> None:
        """A visit on all ranks. One that fails on any rank ends this plan on all; the others go on."""
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
        visits = [visit] * self._ranks.world
        dist.all_gather_object(visits, visit, group=self._ranks.control)
        record.add(visits)

    def _visit(self, name: str) -> Visit:
        trial = self._trials.get(name)
        if trial is None:
            plan = self._plans[name]
            assert plan is not None, "a contender without a plan has failed already"
            trial = Trial(self._subject, plan, self._ranks)
        if self._keep:
            self._trials[name] = trial
        return trial.visit(self._amounts)

    def _drop_dissenters(self) -> None:
        for name, sentence in loss_mismatches({name: self._records[name].losses for name in self._alive()}).items():
            self._records[name].failed = sentence
            self._trials.pop(name, None)
        self._save()

    def _say(self, where: str, name: str, seconds_left: float) -> None:
        if self._ranks.first:
            record = self._records[name]
            found = f"step {record.rounds[-1]:.2f} ms" if record.failed is None else f"failed: {record.failed}"
            print(f"{where}  {name}  {found}  ETA {timedelta(seconds=round(seconds_left))}", flush=True)
