"""The bench of plans from end to end: plans made and rated, measured in rounds, the result written as it grows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed as dist

from sidrec.bench.conditions import conditions
from sidrec.bench.contenders import Contender, contenders
from sidrec.bench.loads import workload_of
from sidrec.bench.rating import Rating, rate
from sidrec.bench.record import Record
from sidrec.bench.result import VERSION, BenchResult
from sidrec.bench.room import Room
from sidrec.bench.rounds import Rounds
from sidrec.bench.subject import Subject, on_meta
from sidrec.bench.trial import Amounts
from sidrec.config import ConfigError
from sidrec.parallel.hardware import hardware_of
from sidrec.parallel.process_group import Ranks, together
from sidrec.parallel.shard import sharders_of
from sidrec.plans.calibrated_cost import CalibratedCost
from sidrec.plans.calibration import load_calibration
from sidrec.plans.cost import CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.plan_file import plan_file_of
from sidrec.plans.workload import Workload
from sidrec.schema import ContractError
from sidrec.train.run_directory import write_json

T = TypeVar("T")

RESULT = "bench.json"


@dataclass(frozen=True)
class Bench:
    """What all parts of a bench need to know. out: folder of the result. rounds: wanted."""

    subject: Subject
    workload: Workload
    hardware: Hardware
    amounts: Amounts
    rounds: int
    calibrated: CostModel | None
    out: Path
    ranks: Ranks


def bench_plans(
    subject: Subject,
    names: Sequence[str],
    amounts: Amounts,
    rounds: int,
    out: Path,
    ranks: Ranks,
    calibration: Path | None = None,
) -> BenchResult:
    """Measures the plans of these names; OUT/bench.json holds what was found after every visit to one.

    Raises ConfigError or ContractError on all ranks together, for a plan file that does not fit, and where no plan
    could be measured.
    """
    calibrated = together(ranks, lambda: _calibrated(calibration, ranks))
    workload = workload_of(subject, ranks)
    bench = Bench(subject, workload, hardware_of(ranks), amounts, rounds, calibrated, out, ranks)
    made = contenders(subject, names, workload, calibration, ranks)
    records = {contender.name: _record(bench, contender) for contender in made}
    keep = _check_room(bench, records)
    facts = conditions(subject, amounts, keep, ranks)

    def save(complete: bool = False) -> BenchResult:
        result = _result(bench, records, facts, complete)
        together(ranks, lambda: write_json(out / RESULT, result.as_json()) if ranks.first else None)
        return result

    together(ranks, lambda: out.mkdir(parents=True, exist_ok=True))
    save()
    Rounds(subject, made, records, amounts, keep, save, ranks).run(rounds)
    result = save(complete=True)
    together(ranks, lambda: _check_measured(result))
    return result


def _calibrated(calibration: Path | None, ranks: Ranks) -> CostModel | None:
    return CalibratedCost(load_calibration(calibration, ranks.device.type)) if calibration else None


def _record(bench: Bench, contender: Contender) -> Record:
    """The first rank describes and rates a plan; all ranks get the same record."""
    if contender.plan is None:
        return Record(contender.name, {}, contender.failed, None)
    described = [together(bench.ranks, lambda: _describe(bench, contender) if bench.ranks.first else None)]
    dist.broadcast_object_list(described, src=0, group=bench.ranks.control)
    assert described[0] is not None, "together raises where the first rank fails"
    return described[0]


def _describe(bench: Bench, contender: Contender) -> Record:
    assert contender.plan is not None, "without a plan there is nothing to describe"
    subject, hardware = bench.subject, bench.hardware
    sharders = sharders_of(bench.workload.model, subject.optimizer, subject.seed)
    rating: Rating | None = None
    try:
        rating = rate(contender.plan, bench.workload, hardware, sharders, bench.calibrated)
        world = (hardware.world, hardware.local_world, hardware.device)
        layout = plan_file_of(contender.plan, on_meta(subject), *world).as_json()
    except (ConfigError, ContractError) as error:
        return Record(contender.name, {}, str(error), rating)
    return Record(contender.name, layout, None, rating)


def _check_room(bench: Bench, records: dict[str, Record]) -> bool:
    """Marks the plans whose tables alone do not fit the memory. Returns whether those of all others fit at once."""
    room = Room(bench.hardware)
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
