"""What a bench of plans leaves: one JSON, written anew after every round, so that what was measured stays readable."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import FailFast, TypeAdapter, ValidationError

from sidrec import __version__
from sidrec.bench.subject import Subject
from sidrec.bench.trial import StepCounts
from sidrec.machine import cores
from sidrec.parallel.process_group import Ranks
from sidrec.plans.plan_file import parse_plan
from sidrec.schema import ContractError, read_json
from sidrec.stack import find_stack
from sidrec.text import place, short_repr

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


# Under which conditions a bench was run: a figure without them says nothing.


def conditions(subject: Subject, amounts: StepCounts, keep: bool, ranks: Ranks) -> dict[str, Any]:
    """Plain data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "sidrec": __version__,
        "commit": _commit(),
        "stack": str(find_stack()),
        "processor": _processor(),
        "cores": cores(),
        "ranks": ranks.world,
        "threads_per_rank": ranks.threads,
        "warm_up": amounts.warm_up,
        "steps": amounts.steps,
        "step": {
            "sparse_dist": "TrainPipelineSparseDist, which sends the next batch's ids during a step",
            "plain": "TrainPipelineBase, one batch after the other",
        }[subject.pipeline],
        "models": "kept between rounds" if keep else "built anew for every round, as all at once would not fit",
        "optimizer": f"tables {subject.optimizer.tables.kind}, dense layers {subject.optimizer.dense.kind}",
        "held_fixed": HELD_FIXED,
        **subject.facts,
    }


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


def measured_plans(result: BenchResult) -> list[PlanMeasurement]:
    """The plans that were timed, in the result's order."""
    return [plan for plan in result.plans if plan.failed is None and "step" in plan.timings]


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


HELD_FIXED = (
    "batches and their order, first values of tables and dense layers, and the optimizer of every table: replicated "
    "tables (data_parallel), which FBGEMM's fused optimizer does not see, are stepped by torch's of its kind and rate"
)


def _commit() -> str | None:
    """Of the checkout that sidrec runs from, `+` where it was changed; None for an installed package."""
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


# Do all plans train the same? A plan that computes something else is not a faster way to the same end.
#
# Shapes: S steps.


TOLERANCE = 1e-3
"""Largest relative difference between two plans' losses of the same step. Other orders of summation differ by 1e-6."""


def loss_mismatches(losses: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Plans that lose otherwise than most, and the sentence that says so.

    losses: plan -> [S] mean loss over all ranks. The plan that most others agree with is taken to be right; of several
    such the first.
    """
    if not losses:
        return {}
    friends = {
        name: sum(_first_difference(own, other) is None for other in losses.values()) for name, own in losses.items()
    }
    right = max(losses, key=lambda name: friends[name])
    sentences = {}
    for name, own in losses.items():
        step = _first_difference(losses[right], own)
        if step is not None:
            expected, got = losses[right][step], own[step]
            sentences[name] = f"step {step + 1}: expected the loss of {right}, {expected:.6f}, got {got:.6f}"
    return sentences


def _first_difference(losses: Sequence[float], others: Sequence[float]) -> int | None:
    for step, (one, other) in enumerate(zip(losses, others, strict=True)):
        if not abs(one - other) <= TOLERANCE * max(abs(one), abs(other)):  # also where one is not a number
            return step
    return None
