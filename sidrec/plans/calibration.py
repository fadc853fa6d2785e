"""Costs per unit of work that were measured on this machine, their file, and the cost model that rates plans by them.

`sidrec bench calibrate` (`sidrec.bench.calibrate`) writes the file.

Shapes: W ranks, K kinds of work (`sidrec.plans.cost.KINDS`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torchrec.distributed.planner.types import ShardingOption

from sidrec.config import ConfigError
from sidrec.io.files import read_json, write_json
from sidrec.plans.cost import KINDS, Cost, placed_tables, plan_work, table_work, work_by_kind
from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import Workload
from sidrec.schema import ContractError
from sidrec.text import place, short_repr

LOOKUPS = ("looked_up_ids", "looked_up_bytes", "updated_bytes", "pooled_bags")
INPUTS = ("sent_ids", "sorted_ids")
REPLICAS = "replicated_bytes"
OUTPUTS = ("exchanged_bytes", "reduced_bytes", REPLICAS)


@dataclass(frozen=True)
class UnitCosts:
    """Measured costs of a unit of work. milliseconds: kind of work -> milliseconds per unit.

    samples: number of measured plans that they were regressed on, of these workloads.
    error: median of |predicted - measured| / measured over these plans.
    spread: the same after dividing by each bench's own factor, which no plan changes: the smallest relative difference
    between two plans of a model that can be resolved.
    """

    milliseconds: dict[str, float]
    samples: int
    workloads: list[str]
    error: float
    spread: float = 0.0

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
        """Parts of a table: `lookups` (forward and backward), `input_dist`, `comms` (embeddings and gradients)."""
        cost_K = self._calibration.costs_for(hardware.world).costs()
        tables = placed_tables(options)
        work_WK = {table.table: table_work(table, workload.loads[table.table], hardware.world) for table in tables}
        rank_W = plan_work(tables, workload, hardware.world) @ cost_K
        return Cost(
            step=float(rank_W.max()),
            ranks=rank_W.tolist(),
            tables={name: (each_WK @ cost_K).tolist() for name, each_WK in work_WK.items()},
            parts={name: _calibrated_parts(each_WK, cost_K) for name, each_WK in work_WK.items()},
        )


def _calibrated_parts(work_WK: np.ndarray, cost_K: np.ndarray) -> dict[str, float]:
    cost_WK = work_WK * cost_K
    costliest_K = cost_WK[cost_WK.sum(axis=1).argmax()]
    by_kind = work_by_kind(costliest_K)
    return {
        part: sum(by_kind[kind] for kind in kinds)
        for part, kinds in (("lookups", LOOKUPS), ("comms", OUTPUTS), ("input_dist", INPUTS))
    }


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
