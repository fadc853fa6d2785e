"""The result of a bench of plans: one JSON file, rewritten after every visit to a plan."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import FailFast, TypeAdapter, ValidationError

from sidrec.errors import ContractError
from sidrec.io.files import read_json
from sidrec.plans.plan_file import parse_plan
from sidrec.text import place, short_repr

VERSION = 1
PHASES = ("step", "input_dist", "lookup", "output_dist", "dense_forward", "backward")
"""step: the whole training step. lookup: FBGEMM's forward. dense_forward: everything after the embeddings, with the
loss. backward: with the update of tables and the communication of gradients. All but `step` are timed in separate
steps with a barrier after each phase, so their sum may exceed the step."""
Numbers = Annotated[list[float], FailFast()]
"""FailFast: one error for a list of a million strings."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of the slowest rank: quantiles over the timed steps of all rounds."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of one step that a cost model predicts. step: of the slowest rank. tables: table -> [world]."""

    step: float
    tables: dict[str, Numbers]


@dataclass(frozen=True)
class PlanMeasurement:
    """One plan.

    plan: the plan file's JSON. failed: why it was not measured, else None.
    rounds: median step of each round, milliseconds. timings: phase -> quantiles.
    memory: [world] bytes of tables and optimizer state. lookups: [world] ids looked up per step.
    cpu: [world] median CPU milliseconds of a step: without waiting, and little affected by other load on the machine.
    default, calibrated: predictions of TorchRec's cost model and of the calibrated one.
    work: kind of work (`sidrec.plans.cost`) -> [world] amount; calibrations are regressed on it.
    aliases: other names under which the same plan was asked for; it is measured once.
    dropped: why it was measured in the first round only, else None.
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
    aliases: list[str] = field(default_factory=list)
    dropped: str | None = None

    @property
    def title(self) -> str:
        """All its names: `auto = torchrec`."""
        return " = ".join([self.name, *self.aliases])


@dataclass(frozen=True)
class BenchResult:
    """workload, hardware, conditions: plain data. complete: whether all rounds were done."""

    version: int
    workload: dict[str, Any]
    hardware: dict[str, Any]
    conditions: dict[str, Any]
    rounds_wanted: int
    complete: bool
    plans: list[PlanMeasurement]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def measured_plans(result: BenchResult) -> list[PlanMeasurement]:
    """The plans that were timed, in the result's order."""
    return [plan for plan in result.plans if plan.failed is None and "step" in plan.timings]


_RESULT: TypeAdapter[BenchResult] = TypeAdapter(BenchResult)


def is_bench(path: Path) -> bool:
    """Whether a file is a bench of any version. Raises ContractError for a file that is not JSON."""
    raw = read_json(path, "a bench of plans")
    return isinstance(raw, dict) and {"version", "workload", "plans"} <= set(raw)


def load_bench(path: Path) -> BenchResult:
    """Reads a bench. Raises ContractError for another kind of file or version."""
    return parse_bench(read_json(path, "a bench of plans"), path)


def parse_bench(raw: object, path: Path) -> BenchResult:
    """A bench from its JSON. path: named in messages. Raises ContractError for another kind of value or version."""
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
    """Checks the keys of plain data that are read later, and that lists by rank have the world's length."""
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
