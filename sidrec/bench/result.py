"""What a bench of plans leaves: one JSON, written anew after every round, so that what was measured stays readable."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import FailFast, TypeAdapter, ValidationError

from sidrec.plans.plan_file import parse_plan
from sidrec.schema import ContractError, read_json
from sidrec.sentence import place, short_repr

VERSION = 1
PHASES = ("step", "input_dist", "lookup", "output_dist", "dense_forward", "backward")
"""step: all of a training step. lookup: FBGEMM's forward. dense_forward: all behind the embeddings, the loss included.
backward: with the tables' update and the communication of gradients. The parts are timed in steps of their own, in
which every rank waits for the others after each part, so their sum may exceed a step's."""


Numbers = Annotated[list[float], FailFast()]
"""Of a list of a million words the first is enough to complain of."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds: quantiles over the timed steps of all rounds, of each step the slowest rank's."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class Prediction:
    """Milliseconds that a cost model expects of the slowest rank in one step.

    tables: table name -> [world] expected milliseconds on each rank.
    """

    step: float
    tables: dict[str, Numbers]


@dataclass(frozen=True)
class PlanMeasurement:
    """One plan.

    plan: the plan file's JSON. failed: the sentence that says why it was not measured, else None.
    rounds: median step of each round, milliseconds. timings: phase -> quantiles.
    memory: [world] bytes of tables and optimizer state. lookups: [world] ids looked up per step.
    cpu: [world] median milliseconds of CPU time of a step: no measure of waiting, but the same on a busy machine.
    default, calibrated: predictions of TorchRec's cost model and of the calibrated one.
    work: kind of work (`sidrec.plans.work`) -> [world] how much of it each rank does: what a calibration is fitted to.
    """

    name: str
    plan: dict[str, Any]
    failed: str | None
    rounds: Numbers
    timings: dict[str, Timing]
    memory: Annotated[list[int], FailFast()]
    lookups: Numbers
    default: Prediction | None
    calibrated: Prediction | None
    cpu: Numbers = field(default_factory=list)
    work: dict[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchResult:
    """workload, hardware, conditions: what was measured where, as plain data. complete: all rounds were done."""

    version: int
    workload: dict[str, Any]
    hardware: dict[str, Any]
    conditions: dict[str, Any]
    rounds_wanted: int
    complete: bool
    plans: list[PlanMeasurement]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_RESULT: TypeAdapter[BenchResult] = TypeAdapter(BenchResult)


def is_bench(path: Path) -> bool:
    """Whether a file is a bench of any version. Raises ContractError for what is no JSON."""
    raw = read_json(path, "a bench of plans")
    return isinstance(raw, dict) and {"version", "workload", "plans"} <= set(raw)


def load_bench(path: Path) -> BenchResult:
    """Reads a bench's JSON. Raises ContractError for what is not one."""
    raw = read_json(path, "a bench of plans")
    if isinstance(raw, dict) and raw.get("version") != VERSION:
        raise ContractError(path, f"a bench of version {VERSION}", short_repr(raw.get("version")))
    try:
        result = _RESULT.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = place(first["loc"])
        raise ContractError(path, f"a bench of plans, {where}: {first['msg']}", short_repr(first["input"])) from None
    _check(result, path)
    return result


def _check(result: BenchResult, path: Path) -> None:
    """What is plain data has what is read of it, and lists by rank have the world's length."""
    device, world = result.hardware.get("device"), result.hardware.get("world")
    if not isinstance(result.workload.get("name"), str):
        raise ContractError(f"{path}, workload", "a name", short_repr(result.workload))
    if device not in ("cpu", "cuda") or not isinstance(world, int) or world < 1:
        raise ContractError(f"{path}, hardware", "a device, cpu or cuda, and a world", short_repr(result.hardware))
    for plan in result.plans:
        where = f"{path}, plan {plan.name}"
        if plan.plan:
            parse_plan(plan.plan, where)
        predicted = [spent for of in (plan.default, plan.calibrated) if of for spent in of.tables.values()]
        lengths = {len(plan.memory), len(plan.lookups), len(plan.cpu), *map(len, (*plan.work.values(), *predicted))}
        if not lengths <= {0, world}:
            raise ContractError(where, f"values of {world} rank(s)", f"{max(lengths - {0, world})} values")
