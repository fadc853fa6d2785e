"""What a plan is expected to cost: TorchRec's own cost model, and the contract that others of ours fulfil."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import nnls
from torchrec.distributed.planner.types import Shard, ShardingOption

from sidrec.config import ConfigError
from sidrec.plans.hardware import Hardware
from sidrec.plans.work import KINDS, NO_PLANS, placed_tables, plan_work, table_work
from sidrec.plans.workload import Workload
from sidrec.schema import ContractError, read_json
from sidrec.text import place, short_repr

PARTS = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms", "input_dist")


@dataclass(frozen=True)
class Cost:
    """Expected milliseconds of one training step.

    step: all of it, as the slowest rank sees it. ranks: [world] each rank's own. tables: table -> [world] what it costs
    each rank. parts: table -> part (PARTS) -> what it costs the rank that it costs most.
    """

    step: float
    ranks: list[float]
    tables: dict[str, list[float]]
    parts: dict[str, dict[str, float]]


class CostModel(Protocol):
    """Rates placed options, that is, plans."""

    @property
    def name(self) -> str:
        """How reports call the model."""

    @property
    def knows_replicas(self) -> bool:
        """Whether it knows what replicated tables cost on CPU: a dense gradient, and an update of every row."""

    def margin(self, world: int) -> float:
        """Share of a step by which two plans must differ for the model to tell which is faster on so many ranks."""

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Expects every shard of every option to have a rank. The options need not hold all tables of the workload."""


class TorchRecCost:
    """TorchRec's estimates (planner.shard_estimators), added up on each rank; a step takes as long as the slowest
    rank's sum. As TorchRec itself does, the input distribution is estimated but not added: pipelines hide it."""

    name = "torchrec"
    knows_replicas = False

    def margin(self, world: int) -> float:
        """Nobody has measured it: taken at its word."""
        return 0.0

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Milliseconds from shard.perf, which `enumerate_options` and `options_of` fill."""
        tables = {option.name: _by_rank(option, hardware.world) for option in options}
        ranks = [sum((table[rank] for table in tables.values()), 0.0) for rank in range(hardware.world)]
        return Cost(max(ranks), ranks, tables, {option.name: _torchrec_parts(option) for option in options})


def _by_rank(option: ShardingOption, world: int) -> list[float]:
    ranks = [0.0] * world
    for shard in option.shards:
        ranks[_rank(option, shard)] += shard.perf.total
    return ranks


def _rank(option: ShardingOption, shard: Shard) -> int:
    assert shard.rank is not None, f"table {option.name} is rated before its shards are placed"
    return int(shard.rank)


def _torchrec_parts(option: ShardingOption) -> dict[str, float]:
    by_rank: dict[int, dict[str, float]] = {}
    for shard in option.shards:
        parts = by_rank.setdefault(_rank(option, shard), dict.fromkeys(PARTS, 0.0))
        for part, value in _shard_parts(shard).items():
            parts[part] += value
    return max(by_rank.values(), key=lambda parts: sum(parts.values()))


def _shard_parts(shard: Shard) -> Mapping[str, float]:
    perf = shard.perf
    return {
        "fwd_compute": perf.fwd_compute + getattr(perf, "prefetch_compute", 0.0),
        "fwd_comms": perf.fwd_comms,
        "bwd_compute": perf.bwd_compute,
        "bwd_comms": perf.bwd_comms,
        "input_dist": getattr(perf, "input_dist_comms", 0.0),
    }


# What a plan costs on a machine that was calibrated: its work, at what each kind of work was measured to take there.
#
# Shapes: W ranks, K kinds of work.


LOOKUPS = ("looked_up_ids", "looked_up_bytes", "updated_bytes", "pooled_bags")
INPUTS = ("sent_ids", "sorted_ids")
REPLICAS = "replicated_bytes"
OUTPUTS = ("exchanged_bytes", "reduced_bytes", REPLICAS)


# What each kind of work costs on this machine, fitted to plans that were measured here; and the file that keeps it.
#
# Shapes: W ranks, K kinds of work, N measured plans.


@dataclass(frozen=True)
class Fit:
    """milliseconds: kind of work -> milliseconds per unit. samples: plans it was fitted to, of these workloads.

    error: median of |predicted - measured| / measured over these plans. spread: the same where each bench's own factor
    is taken out, which no plan changes: how far apart two plans of a model must be to be told apart.
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
        """Expected milliseconds of a step: the slowest rank's."""
        return float((work_WK @ self.costs()).max())


@dataclass(frozen=True)
class Calibration:
    """worlds: number of ranks -> fit, as ranks share cores and links. conditions: machine, commit, files fitted to."""

    version: int
    device: str
    worlds: dict[int, Fit]
    conditions: dict[str, Any] = field(default_factory=dict)

    def fit_for(self, world: int) -> Fit:
        """The fit of that world, or of the nearest one that was measured."""
        return self.worlds[min(self.worlds, key=lambda measured: (abs(np.log(measured / world)), measured))]


class CalibratedCost:
    """Rates plans by a calibration. Unlike TorchRec's model it also counts what a collection's collectives cost at all,
    whatever is in them, the sending of ids, and the dense layers; it does not tell forward from backward."""

    name = "calibrated"

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    @property
    def knows_replicas(self) -> bool:
        """Where replicated tables were measured."""
        return all(fit.milliseconds.get(REPLICAS, 0.0) > 0 for fit in self._calibration.worlds.values())

    def margin(self, world: int) -> float:
        """How far the fit is off between plans of one model."""
        return self._calibration.fit_for(world).spread

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Parts of a table: `lookups`, forward and backward; `input_dist`; `comms`, of embeddings and gradients."""
        cost_K = self._calibration.fit_for(hardware.world).costs()
        tables = placed_tables(options)
        work_WK = {table.table: table_work(table, workload.loads[table.table], hardware.world) for table in tables}
        rank_W = plan_work(tables, workload, hardware.world) @ cost_K
        return Cost(
            step=float(rank_W.max()),
            ranks=rank_W.tolist(),
            tables={name: (each_WK @ cost_K).tolist() for name, each_WK in work_WK.items()},
            parts={name: _parts(each_WK, cost_K) for name, each_WK in work_WK.items()},
        )


def _parts(work_WK: np.ndarray, cost_K: np.ndarray) -> dict[str, float]:
    cost_WK = work_WK * cost_K
    dearest_K = cost_WK[cost_WK.sum(axis=1).argmax()]
    named = dict(zip(KINDS, dearest_K.tolist(), strict=True))
    return {
        part: sum(named[kind] for kind in kinds)
        for part, kinds in (("lookups", LOOKUPS), ("comms", OUTPUTS), ("input_dist", INPUTS))
    }


VERSION = 4
ROUNDS = 20  # of choosing each plan's slowest rank anew; it settles within a few
RIDGE = 1e-3  # of a plan's time, on each kind's share: decides between kinds that always come together


@dataclass(frozen=True)
class Sample:
    """A plan that was measured, beside the others of its bench. work_WK: float64, what it makes each rank do. step:
    milliseconds."""

    workload: str
    bench: str
    plan: str
    work_WK: np.ndarray
    step: float


def fit(samples: Sequence[Sample]) -> Fit:
    """Non-negative least squares of relative errors (Lawson & Hanson 1974).

    A step takes what its slowest rank's work costs. Which rank that is depends on the costs: found in turns. What no
    plan changes is one unknown per bench, so that a model whose dense layers take long says nothing about plans, nor an
    hour in which the machine was slow; the costs of dense layers and of a step at all are then fitted to these. Raises
    ConfigError without samples.
    """
    if not samples:
        raise ConfigError("calibration: expected at least one measured plan, got none")
    benches = sorted({sample.bench for sample in samples})
    step_N = np.array([sample.step for sample in samples])
    most_K = np.max([sample.work_WK.max(axis=0) for sample in samples], axis=0)
    scale_K = np.where(most_K > 0, most_K, 1.0)
    cost_K = np.full(len(KINDS), step_N.mean()) / scale_K
    for _ in range(ROUNDS):
        slowest_NK = np.stack([sample.work_WK[np.argmax(sample.work_WK @ cost_K)] for sample in samples])
        found_K = _costs(samples, benches, slowest_NK, scale_K)
        if np.allclose(found_K, cost_K, rtol=1e-6, atol=0):
            break
        cost_K = found_K
    predicted_N = np.array([(sample.work_WK @ cost_K).max() for sample in samples])
    return Fit(
        milliseconds=dict(zip(KINDS, cost_K.tolist(), strict=True)),
        samples=len(samples),
        workloads=sorted({sample.workload for sample in samples}),
        error=float(np.median(np.abs(predicted_N - step_N) / step_N)),
        spread=_spread(samples, benches, predicted_N / step_N),
    )


def _spread(samples: Sequence[Sample], benches: Sequence[str], ratio_N: np.ndarray) -> float:
    """ratio_N: predicted to measured steps."""
    bench_N = np.array([sample.bench for sample in samples])
    factor_N = np.select(
        [bench_N == name for name in benches], [np.median(ratio_N[bench_N == name]) for name in benches]
    )
    return float(np.median(np.abs(ratio_N / factor_N - 1)))


def _costs(samples: Sequence[Sample], benches: Sequence[str], work_NK: np.ndarray, scale_K: np.ndarray) -> np.ndarray:
    """float64 [K] milliseconds per unit, for the work of each plan's slowest rank. scale_K: most work of a kind."""
    step_N = np.array([sample.step for sample in samples])
    of_plans = [k for k, kind in enumerate(KINDS) if kind not in NO_PLANS]
    of_none = [k for k, kind in enumerate(KINDS) if kind in NO_PLANS]
    bench_NJ = np.array([[sample.bench == name for name in benches] for sample in samples], dtype=float)
    relative = np.hstack([work_NK[:, of_plans], bench_NJ]) / step_N[:, None]
    ridge = np.diag(np.append(RIDGE * scale_K[of_plans] / step_N.mean(), np.zeros(len(benches))))
    found, _ = nnls(np.vstack([relative, ridge]), np.append(np.ones(len(samples)), np.zeros(len(ridge))))
    cost_K = np.zeros(len(KINDS))
    cost_K[of_plans], rest_J = found[: len(of_plans)], found[len(of_plans) :]
    first = [next(n for n, sample in enumerate(samples) if sample.bench == name) for name in benches]
    weight_J = 1 / np.array([step_N[bench_NJ[:, j] > 0].min() for j in range(len(benches))])
    cost_K[of_none], _ = nnls(work_NK[np.ix_(first, of_none)] * weight_J[:, None], rest_J * weight_J)
    return cost_K


_CALIBRATION: TypeAdapter[Calibration] = TypeAdapter(Calibration)


def is_calibration(path: Path) -> bool:
    """Whether a file is a calibration of any version. Raises ContractError for what is no JSON."""
    raw = read_json(path, "a calibration")
    return isinstance(raw, dict) and {"version", "device", "worlds"} <= set(raw)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Writes the file, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(asdict(calibration), indent=1) + "\n")
    partial.replace(path)


def load_calibration(path: Path, device: str) -> Calibration:
    """Reads a calibration file. Raises ConfigError for what is not one, or is one of another device."""
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
        where = place(first["loc"]) or "all of it"
        got = short_repr(first["input"])
        raise ConfigError(f"{path}: expected a calibration, {where}: {first['msg']}, got {got}") from None
    if calibration.device != device:
        raise ConfigError(f"{path}: expected a calibration of {device}, got one of {calibration.device}")
    if not calibration.worlds:
        raise ConfigError(f"{path}: expected a calibration of at least one world, got none")
    return calibration
