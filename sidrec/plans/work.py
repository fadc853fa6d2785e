"""What a plan makes every rank do in a step, counted: ids looked up, bytes sent, collectives begun. No times yet.

Shapes: W ranks, K kinds of work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ShardingType

from sidrec.plans.workload import EVEN, TableLoad, Workload, ZipfLaw

FLOAT = 4  # bytes

ROW_TYPES = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value}
HOST_TYPES = {ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value}
REPLICATED = ShardingType.DATA_PARALLEL.value

KINDS = (
    "looked_up_ids",  # ids that FBGEMM's fused kernels look up
    "looked_up_bytes",  # of their rows
    "updated_bytes",  # of distinct rows among them: a backward pass updates a row once, however often it was looked up
    "replicated_bytes",  # of tables of which every rank has a copy: their gradient is dense, summed over ranks, and
    # applied to all rows
    "pooled_bags",  # bags that a rank pools, for all ranks' rows
    "sent_ids",  # ids sent to the ranks that look them up
    "sorted_ids",  # of these, ids sorted into ranges of rows first
    "exchanged_bytes",  # pooled embeddings sent whole, and their gradients back
    "reduced_bytes",  # pooled embeddings sent as partial sums, and their gradients back
    "divided_collections",  # collections that are not replicated as a whole: their ids go to other ranks, and all wait
    "exchanges",  # rounds of collectives of collections sharded by table or column: one per sharding type
    "reductions",  # the same, by row
    "host_exchanges",  # the same, of types that keep a table within a machine: between machines, after their reduction
    "replications",  # the same, replicated
    "multiplications",  # of the dense layers
    "steps",  # 1: what a step costs at all
)
"""Kinds of work, each counted per rank and step."""
NO_PLANS = ("multiplications", "steps")
"""Kinds that are the same under every plan of a workload."""


@dataclass(frozen=True)
class PlacedShard:
    """rows [first_row, first_row + rows) of `columns` columns, on `rank`."""

    rank: int
    first_row: int
    rows: int
    columns: int


@dataclass(frozen=True)
class PlacedTable:
    """A table of `rows` rows in the collection at path `collection`, and where its shards are."""

    collection: str
    table: str
    rows: int
    sharding_type: str
    shards: tuple[PlacedShard, ...]


def placed_tables(options: Sequence[ShardingOption]) -> list[PlacedTable]:
    """The planner's options, placed on ranks, as plain data."""
    placed = []
    for option in options:
        path, _ = option.module
        shards = tuple(
            PlacedShard(0 if shard.rank is None else shard.rank, shard.offset[0], shard.size[0], shard.size[1])
            for shard in option.shards
        )
        placed.append(PlacedTable(path, option.name, int(option.tensor.shape[0]), option.sharding_type, shards))
    return placed


def table_work(table: PlacedTable, load: TableLoad, world: int) -> np.ndarray:
    """float64 [W, K]: what one table makes each rank do, without what it does together with others (`joint_work`)."""
    work_WK = np.zeros((world, len(KINDS)))
    ids, bags = load.bags * sum(load.ids_per_bag), load.bags * len(load.ids_per_bag)
    if table.sharding_type == REPLICATED:
        # How many tables these are and how many ids are looked up there was found not to matter.
        work_WK[:, KINDS.index("replicated_bytes")] = table.rows * table.shards[0].columns * FLOAT
        return work_WK
    by_row = table.sharding_type in ROW_TYPES
    elsewhere = (world - 1) / world
    popularity = load.popularity or ZipfLaw(table.rows, EVEN)
    for shard in table.shards:
        rows = (shard.first_row, shard.first_row + shard.rows)
        share = popularity.share(*rows)
        pooled = world * bags * shard.columns * FLOAT
        found = {
            "looked_up_ids": world * ids * share,
            "looked_up_bytes": world * ids * share * shard.columns * FLOAT,
            "updated_bytes": popularity.distinct(*rows, world * ids) * shard.columns * FLOAT,
            "pooled_bags": world * bags,
            "reduced_bytes" if by_row else "exchanged_bytes": pooled * elsewhere,
        }
        for kind, amount in found.items():
            work_WK[shard.rank, KINDS.index(kind)] += amount
    column_splits = len({shard.rank for shard in table.shards}) if not by_row else 1
    work_WK[:, KINDS.index("sent_ids")] += ids * column_splits * elsewhere
    if by_row:
        work_WK[:, KINDS.index("sorted_ids")] += ids
    return work_WK


def joint_work(tables: Sequence[PlacedTable], world: int) -> np.ndarray:
    """float64 [W, K]: what tables make each rank do together, beyond what each does alone.

    Rounds of collectives, one per collection and sharding type, and one per collection for its ids,
    whatever is in them.
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


def plan_work(tables: Sequence[PlacedTable], workload: Workload, world: int) -> np.ndarray:
    """float64 [W, K]: everything that a plan makes each rank do in a step."""
    work_WK = joint_work(tables, world)
    for table in tables:
        work_WK += table_work(table, workload.loads[table.table], world)
    work_WK[:, KINDS.index("multiplications")] += workload.rows_per_rank * workload.dense_parameters
    work_WK[:, KINDS.index("steps")] += 1
    return work_WK


def work_by_kind(work_K: np.ndarray) -> Mapping[str, float]:
    """The same, readable."""
    return dict(zip(KINDS, work_K.tolist(), strict=True))
