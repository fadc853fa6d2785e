"""Costs per unit of work that were measured on this machine, their file, and the cost model that rates plans by them.

`sidrec bench calibrate` (`sidrec.bench.calibrate`) writes the file.

Shapes: W ranks, K kinds of work (`sidrec.plans.cost.KINDS`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torchrec.distributed.planner.types import ShardingOption

from sidrec.config import ConfigError
from sidrec.io.files import read_json, write_json
from sidrec.plans.cost import KINDS, NO_PLANS, Cost, placed_tables, plan_work, table_work, work_by_kind
from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import Workload
from sidrec.schema import ContractError
from sidrec.text import place, short_repr

LOOKUPS = ("looked_up_ids", "looked_up_bytes", "updated_bytes", "pooled_bags")
INPUTS = ("sent_ids", "sorted_ids")
REPLICAS = "replicated_bytes"
OUTPUTS = ("exchanged_bytes", "reduced_bytes", REPLICAS)


PARTS: Mapping[str, tuple[str, ...]] = {"lookups": LOOKUPS, "comms": OUTPUTS, "input_dist": INPUTS}
"""Part of a step -> kinds of work of a table in it. lookups: forward and backward; comms: embeddings and gradients."""


@dataclass(frozen=True)
class Identifiability:
    """What the measured plans can say about the costs.

    plans: distinct measured plans. coefficients: costs to find, of the kinds of work that occur and one for each bench.
    rank, condition: of the regression's design matrix with columns of length 1; condition: None if it is singular.
    absent: kinds of work that no plan has. zero: kinds whose cost would be negative without the bound of 0.
    inseparable: kinds whose amounts the other kinds explain.
    ranges: kind -> least and largest amount on a plan's busiest rank, over the plans that have any.
    left_out_plan: median relative error of steps predicted for plans left out one by one; None for a single plan.
    left_out_workload: the same with all plans of the workload left out; None for a single workload.
    """

    plans: int
    coefficients: int
    rank: int
    condition: float | None
    absent: list[str]
    zero: list[str]
    inseparable: list[str]
    ranges: dict[str, tuple[float, float]]
    left_out_plan: float | None = None
    left_out_workload: float | None = None


@dataclass(frozen=True)
class UnitCosts:
    """Measured costs of a unit of work. milliseconds: kind of work -> milliseconds per unit.

    samples: number of measured plans that they were regressed on, of these workloads.
    error: median of |predicted - measured| / measured over these plans.
    spread: the same after dividing by each bench's own factor, which no plan changes: the smallest relative difference
    between two plans of a model that can be resolved.
    identifiability: None in files of earlier versions.
    """

    milliseconds: dict[str, float]
    samples: int
    workloads: list[str]
    error: float
    spread: float = 0.0
    identifiability: Identifiability | None = None

    def costs(self) -> np.ndarray:
        """float64 [K]: milliseconds per unit of each kind."""
        return np.array([self.milliseconds.get(kind, 0.0) for kind in KINDS])

    def step(self, work_WK: np.ndarray) -> float:
        """Predicted milliseconds of a step: the slowest rank's."""
        return float((work_WK @ self.costs()).max())


@dataclass(frozen=True)
class Calibration:
    """worlds: number of ranks -> costs, since ranks share cores and links. conditions: machine, commit, bench files."""

    version: int
    device: str
    worlds: dict[int, UnitCosts]
    conditions: dict[str, Any] = field(default_factory=dict)

    def costs_for(self, world: int) -> UnitCosts:
        """The costs measured on `world` ranks, or else on the nearest number of ranks."""
        return self.worlds[min(self.worlds, key=lambda measured: (abs(np.log(measured / world)), measured))]


class CalibratedCost:
    """Rates plans by a calibration.

    Unlike TorchRec's model it prices the fixed cost of collectives, the sending of ids, and the dense layers. It does
    not separate forward from backward.
    """

    name = "calibrated"

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    @property
    def knows_replicas(self) -> bool:
        """Whether replicated tables were measured in every world."""
        return all(costs.milliseconds.get(REPLICAS, 0.0) > 0 for costs in self._calibration.worlds.values())

    def margin(self, world: int) -> float:
        """The calibration's error between plans of one model."""
        return self._calibration.costs_for(world).spread

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Parts of a table: those of PARTS."""
        cost_K = self._calibration.costs_for(hardware.world).costs()
        tables = placed_tables(options)
        work_WK = {table.table: table_work(table, workload.loads[table.table], hardware.world) for table in tables}
        rank_W = plan_work(tables, workload, hardware.world) @ cost_K
        return Cost(
            step=float(rank_W.max()),
            ranks=rank_W.tolist(),
            tables={name: (each_WK @ cost_K).tolist() for name, each_WK in work_WK.items()},
            parts={name: _parts(each_WK, cost_K) for name, each_WK in work_WK.items()},
        )

    def unknown_parts(self, option: ShardingOption, workload: Workload, hardware: Hardware) -> list[str]:
        """Parts in which the table has work, all of it of kinds without a cost."""
        cost_K = self._calibration.costs_for(hardware.world).costs()
        (table,) = placed_tables([option])
        work_K = table_work(table, workload.loads[option.name], hardware.world).sum(axis=0)
        by_kind, priced = work_by_kind(work_K), work_by_kind(work_K * cost_K)
        return [
            part
            for part, kinds in PARTS.items()
            if any(by_kind[kind] > 0 for kind in kinds) and not any(priced[kind] > 0 for kind in kinds)
        ]

    def remarks(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> list[str]:
        """What the calibration does not know about this plan, and its error on plans that were left out."""
        costs = self._calibration.costs_for(hardware.world)
        found = [*_other_world(self._calibration, hardware.world), *self.warnings(options, workload, hardware)]
        if costs.identifiability is None:
            return [*found, f"{OLD_FILE}: {costs.samples} plan(s) for {len(PLAN_KINDS)} kinds of work"]
        return [*found, *_doubts(costs.identifiability)]

    def warnings(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> list[str]:
        """Those of the remarks that say why this plan's predicted step may be far off."""
        costs = self._calibration.costs_for(hardware.world)
        work_K = plan_work(placed_tables(options), workload, hardware.world).max(axis=0)
        known = costs.identifiability
        return [*_without_cost(costs, work_K), *(outside_ranges(known, work_by_kind(work_K)) if known else [])]


def _parts(work_WK: np.ndarray, cost_K: np.ndarray) -> dict[str, float]:
    cost_WK = work_WK * cost_K
    costliest_K = cost_WK[cost_WK.sum(axis=1).argmax()]
    by_kind = work_by_kind(costliest_K)
    return {part: sum(by_kind[kind] for kind in kinds) for part, kinds in PARTS.items()}


# What a calibration does not know about a plan, in sentences.

PLAN_KINDS = [kind for kind in KINDS if kind not in NO_PLANS]
MARGIN = 1.5
"""Distinct plans for each coefficient, below which a calibration is doubted."""
BEYOND = 1.05
"""Times the largest or least amount measured, from which an amount is outside of the measured range."""
OLD_FILE = (
    "the calibration is of an earlier version and does not say what was measured; run `sidrec bench calibrate` again. "
    "It rests on"
)


def _other_world(calibration: Calibration, world: int) -> list[str]:
    if world in calibration.worlds:
        return []
    measured = ", ".join(map(str, sorted(calibration.worlds)))
    return [f"the calibration was measured on {measured} rank(s): for {world} the costs of the nearest number are used"]


def _without_cost(costs: UnitCosts, work_K: np.ndarray) -> list[str]:
    """work_K: largest amount of each kind on a rank under the plan."""
    known = costs.identifiability
    amounts, absent = work_by_kind(work_K), set(known.absent) if known else set()
    found = [
        f"{kind} (in no measured plan)" if kind in absent else f"{kind} (regressed to 0)"
        for kind in PLAN_KINDS
        if amounts[kind] > 0 and costs.milliseconds.get(kind, 0.0) == 0
    ]
    if not found:
        return []
    return [f"work of this plan whose cost is unknown, and counted as 0 ms: {', '.join(found)}"]


def outside_ranges(known: Identifiability, amounts: Mapping[str, float]) -> list[str]:
    """A sentence on kinds of work of which a plan has more or less than any measured one. amounts: kind -> largest."""
    found = []
    for kind, (low, high) in known.ranges.items():
        amount = amounts.get(kind, 0.0)
        if kind in PLAN_KINDS and amount and not low / BEYOND <= amount <= high * BEYOND:
            found.append(f"{kind} {_amount(amount)} (measured: {_amount(low)} to {_amount(high)})")
    if not found:
        return []
    listed = ", ".join(found)
    return [f"outside the calibrated range, so that the prediction extrapolates; on the busiest rank: {listed}"]


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _doubts(known: Identifiability) -> list[str]:
    found = []
    if known.plans < MARGIN * known.coefficients:
        found.append(f"the calibration rests on {known.plans} distinct plans for {known.coefficients} coefficients")
    if known.inseparable:
        listed = ", ".join(known.inseparable)
        found.append(f"costs that the measured plans do not separate from each other: {listed}")
    return [*found, f"the calibration's median error: {left_out(known)}"]


def left_out(known: Identifiability) -> str:
    """The errors on plans that the regression had not seen."""
    others = [(known.left_out_workload, "plans of a workload left out"), (known.left_out_plan, "plans left out")]
    found = [f"{error:.0%} on {what}" for error, what in others if error is not None]
    return ", ".join(found) or "not known, since no plan could be left out"


# The calibration file.

VERSION = 4

_CALIBRATION: TypeAdapter[Calibration] = TypeAdapter(Calibration)


def is_calibration(path: Path) -> bool:
    """Whether a file is a calibration of any version. Raises ContractError for a file that is not JSON."""
    raw = read_json(path, "a calibration")
    return isinstance(raw, dict) and {"version", "device", "worlds"} <= set(raw)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Writes the file in one step."""
    write_json(path, asdict(calibration))


def load_calibration(path: Path, device: str) -> Calibration:
    """Reads a calibration file. Raises ConfigError for another kind of file, version or device."""
    try:
        raw = read_json(path, "a calibration")
    except ContractError as error:
        raise ConfigError(f"{error}") from None
    if isinstance(raw, dict) and raw.get("version") != VERSION:
        raise ConfigError(f"{path}: expected a calibration of version {VERSION}, got {short_repr(raw.get('version'))}")
    try:
        calibration = _CALIBRATION.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = place(first["loc"]) or "the whole file"
        got = short_repr(first["input"])
        raise ConfigError(f"{path}: expected a calibration, {where}: {first['msg']}, got {got}") from None
    if calibration.device != device:
        raise ConfigError(f"{path}: expected a calibration of {device}, got one of {calibration.device}")
    if not calibration.worlds:
        raise ConfigError(f"{path}: expected a calibration of at least one world, got none")
    return calibration
