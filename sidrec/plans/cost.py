"""The cost of a step under a plan: counts the work of each rank and prices it.

Two models rate a plan: TorchRec's own estimates (`TorchRecCost`), and costs per unit of work that were measured on
this machine (`sidrec.plans.calibration`).

Shapes: W ranks, K kinds of work (`KINDS`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.distributed.types import ShardingType

from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import UNIFORM, TableLoad, Workload, ZipfLaw

PARTS = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms", "input_dist")
"""Parts of a step that TorchRec's model estimates separately."""


@dataclass(frozen=True)
class Cost:
    """Predicted milliseconds of one training step.

    step: of the slowest rank. ranks: [W] of each rank. tables: table -> [W] its share on each rank.
    parts: table -> part of the step -> milliseconds on the rank where the table costs most.
    """

    step: float
    ranks: list[float]
    tables: dict[str, list[float]]
    parts: dict[str, dict[str, float]]


class CostModel(Protocol):
    """Predicts the step of a plan, given as placed options."""

    @property
    def name(self) -> str:
        """The model's name in explanations."""

    @property
    def knows_replicas(self) -> bool:
        """Whether it prices replicated tables on CPU: a dense gradient, and an update of every row."""

    def margin(self, world: int) -> float:
        """Smallest relative difference of two steps that the model can resolve on `world` ranks."""

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Every shard of every option must have a rank. The options may cover some tables of the workload only."""

    def unknown_parts(self, option: ShardingOption, workload: Workload, hardware: Hardware) -> list[str]:
        """Parts of a step in which this table has work whose cost the model does not know, and counts as 0."""

    def remarks(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> list[str]:
        """Sentences on what the model cannot say about a plan."""


class TorchRecCost:
    """TorchRec's estimates (planner.shard_estimators), summed on each rank; the slowest rank's sum is the step.

    Like TorchRec, it leaves the input distribution out of the sum, since pipelines overlap it.
    """

    name = "torchrec"
    knows_replicas = False

    def margin(self, world: int) -> float:
        """0: the error of TorchRec's model has not been measured."""
        return 0.0

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Sums shard.perf, which `enumerate_options` and `options_of` fill."""
        tables = {option.name: _milliseconds_by_rank(option, hardware.world) for option in options}
        ranks = [sum((table[rank] for table in tables.values()), 0.0) for rank in range(hardware.world)]
        return Cost(max(ranks), ranks, tables, {option.name: _torchrec_parts(option) for option in options})

    def unknown_parts(self, option: ShardingOption, workload: Workload, hardware: Hardware) -> list[str]:
        """None: the model has a constant for each part."""
        return []

    def remarks(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> list[str]:
        """None."""
        return []


def _milliseconds_by_rank(option: ShardingOption, world: int) -> list[float]:
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


# The work of a plan, counted per rank and step.

FLOAT = 4  # bytes

ROW_TYPES = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value}
HOST_TYPES = {ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value}
REPLICATED = ShardingType.DATA_PARALLEL.value

KINDS = (
    "looked_up_ids",  # ids looked up by FBGEMM's fused kernels
    "looked_up_bytes",  # bytes of their rows
    "updated_bytes",  # bytes of the distinct rows among them: the backward pass updates a row once per step
    "replicated_bytes",  # bytes of replicated tables: dense gradient, all-reduce, update of every row
    "pooled_bags",  # bags pooled by a rank, for the rows of all ranks
    "sent_ids",  # ids sent to the ranks that look them up
    "sorted_ids",  # those among them that are first bucketed by row range
    "exchanged_bytes",  # pooled embeddings sent whole, and their gradients back
    "reduced_bytes",  # pooled embeddings sent as partial sums, and their gradients back
    "divided_collections",  # collections with a table that is not replicated: one exchange of ids each
    "exchanges",  # collectives of collections sharded by table or column: one per sharding type
    "reductions",  # collectives of collections sharded by row: one per sharding type
    "host_exchanges",  # second collective, between machines, of types that keep a table within one machine
    "replications",  # collections with replicated tables
    "multiplications",  # multiplications of the dense layers
    "steps",  # 1: the fixed cost of a step
)
"""Kinds of work, each counted per rank and step."""
NO_PLANS = ("multiplications", "steps")
"""Kinds that are the same under every plan of a workload."""


@dataclass(frozen=True)
class PlacedShard:
    """Rows [first_row, first_row + rows) of `columns` columns, on `rank`."""

    rank: int
    first_row: int
    rows: int
    columns: int


@dataclass(frozen=True)
class PlacedTable:
    """A table of `rows` rows in the collection at path `collection`, and its shards."""

    collection: str
    table: str
    rows: int
    sharding_type: str
    shards: tuple[PlacedShard, ...]


def placed_tables(options: Sequence[ShardingOption]) -> list[PlacedTable]:
    """The planner's placed options as plain data."""
    placed = []
    for option in options:
        path, _ = option.module
        shards = tuple(
            PlacedShard(0 if shard.rank is None else shard.rank, shard.offset[0], shard.size[0], shard.size[1])
            for shard in option.shards
        )
        placed.append(PlacedTable(path, option.name, int(option.tensor.shape[0]), option.sharding_type, shards))
    return placed


def plan_work(tables: Sequence[PlacedTable], workload: Workload, world: int) -> np.ndarray:
    """float64 [W, K]: the work of each rank in a step."""
    work_WK = joint_work(tables, world)
    for table in tables:
        work_WK += table_work(table, workload.loads[table.table], world)
    work_WK[:, KINDS.index("multiplications")] += workload.rows_per_rank * workload.dense_parameters
    work_WK[:, KINDS.index("steps")] += 1
    return work_WK


def table_work(table: PlacedTable, load: TableLoad, world: int) -> np.ndarray:
    """float64 [W, K]: the work that one table adds to each rank. `joint_work` counts what tables share."""
    work_WK = np.zeros((world, len(KINDS)))
    ids, bags = load.bags * sum(load.ids_per_bag), load.bags * len(load.ids_per_bag)
    if table.sharding_type == REPLICATED:
        # Measured: neither the number of replicated tables nor the ids looked up in them matters.
        work_WK[:, KINDS.index("replicated_bytes")] = table.rows * table.shards[0].columns * FLOAT
        return work_WK
    by_row = table.sharding_type in ROW_TYPES
    elsewhere = (world - 1) / world
    popularity = load.popularity or ZipfLaw(table.rows, UNIFORM)
    for shard in table.shards:
        rows = (shard.first_row, shard.first_row + shard.rows)
        share = popularity.share(*rows)
        pooled = world * bags * shard.columns * FLOAT
        amounts = {
            "looked_up_ids": world * ids * share,
            "looked_up_bytes": world * ids * share * shard.columns * FLOAT,
            "updated_bytes": popularity.distinct(*rows, world * ids) * shard.columns * FLOAT,
            "pooled_bags": world * bags,
            "reduced_bytes" if by_row else "exchanged_bytes": pooled * elsewhere,
        }
        for kind, amount in amounts.items():
            work_WK[shard.rank, KINDS.index(kind)] += amount
    column_splits = len({shard.rank for shard in table.shards}) if not by_row else 1
    work_WK[:, KINDS.index("sent_ids")] += ids * column_splits * elsewhere
    if by_row:
        work_WK[:, KINDS.index("sorted_ids")] += ids
    return work_WK


def joint_work(tables: Sequence[PlacedTable], world: int) -> np.ndarray:
    """float64 [W, K]: number of collectives: one per collection and sharding type, one for the ids of each collection.

    Collectives are counted per collection, not per table.
    """
    work_WK = np.zeros((world, len(KINDS)))
    for _, sharding_type in {(table.collection, table.sharding_type) for table in tables}:
        if sharding_type == REPLICATED:
            kind = "replications"
        else:
            kind = "reductions" if sharding_type in ROW_TYPES else "exchanges"
        for each in (kind, "host_exchanges") if sharding_type in HOST_TYPES else (kind,):
            work_WK[:, KINDS.index(each)] += 1
    divided = {table.collection for table in tables if table.sharding_type != REPLICATED}
    work_WK[:, KINDS.index("divided_collections")] = len(divided)
    return work_WK


def work_by_kind(work_K: np.ndarray) -> Mapping[str, float]:
    """Kind -> amount."""
    return dict(zip(KINDS, work_K.tolist(), strict=True))
