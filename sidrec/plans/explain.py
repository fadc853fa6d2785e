"""What a plan is and why: each table's layout, bytes and cost, what it would cost laid out otherwise, each rank's load,
and what the data say.

Shapes: W ranks, S shards of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torchrec.distributed.planner.types import ShardingOption, Storage

from sidrec.plans.capacity import table_room
from sidrec.plans.cost import CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.memory import in_host_memory, table_bytes
from sidrec.plans.options import Sharders, enumerate_options
from sidrec.plans.placing import Board, Piece, piece
from sidrec.plans.remarks import remarks
from sidrec.plans.search import Candidate
from sidrec.plans.workload import Workload


@dataclass(frozen=True)
class Rejected:
    """Another layout of one table. step: milliseconds of a step with the table laid out so, in the best way found, and
    all others left as they are; None where it fits no rank. lacking: bytes that it lacks then, 0 where it fits."""

    sharding_type: str
    compute_kernel: str
    step: float | None
    lacking: int


@dataclass(frozen=True)
class TableReport:
    """ranks: of the shards, in their order. weights, state: bytes over all ranks, state with a dense gradient where
    there is one. parts: part of a step -> milliseconds for the rank that the table costs most. dearest: their sum."""

    table: str
    collection: str
    rows: int
    width: int
    sharding_type: str
    compute_kernel: str
    ranks: list[int]
    weights: int
    state: int
    parts: dict[str, float]
    dearest: float
    rejected: list[Rejected]


@dataclass(frozen=True)
class RankReport:
    """used: bytes of tables, their inputs and outputs; room: bytes there are for them. step: milliseconds."""

    rank: int
    used: int
    room: int
    step: float


@dataclass(frozen=True)
class Explanation:
    """A plan for `workload` on `hardware`, rated by the cost model `cost`. step: milliseconds of the slowest rank.

    candidates: every plan that was found -> its step, the best first. remarks: sentences.
    """

    workload: str
    rows_per_rank: int
    hardware: dict[str, Any]
    cost: str
    plan: str
    step: float
    tables: list[TableReport]
    ranks: list[RankReport]
    candidates: dict[str, float]
    search_cut: bool
    remarks: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(
    candidates: Sequence[Candidate], workload: Workload, hardware: Hardware, sharders: Sharders, cost: CostModel
) -> Explanation:
    """Explains the first of `candidates`, as `search` returns them; every sharding type is held against it."""
    best = candidates[0]
    room = table_room(workload, hardware, sharders)
    pieces = {
        name: [piece(option, cost, workload, hardware) for option in found]
        for name, found in enumerate_options(workload, hardware, sharders).items()
    }
    board = Board.empty(hardware, room)
    for option in best.options:
        board.put(piece(option, cost, workload, hardware), np.array([shard.rank for shard in option.shards]))
    shared = best.cost.step - float(board.load_W.max())
    tables = [
        _table(option, best, sharders, _rejected(option, pieces[option.name], board, hardware, shared))
        for option in best.options
    ]
    default = next((each for each in candidates if each.name == "default"), best)
    return Explanation(
        workload=workload.name,
        rows_per_rank=workload.rows_per_rank,
        hardware=asdict(hardware),
        cost=cost.name,
        plan=best.name,
        step=best.cost.step,
        tables=tables,
        ranks=_ranks(best, room, hardware),
        candidates={each.name: each.cost.step for each in candidates},
        search_cut=default.cut,
        remarks=remarks(best.options, workload, hardware, cost.knows_replicas),
    )


def _table(option: ShardingOption, plan: Candidate, sharders: Sharders, rejected: list[Rejected]) -> TableReport:
    sizes = table_bytes(option, sharders)
    rows, width = option.tensor.shape
    return TableReport(
        table=option.name,
        collection=option.path,
        rows=rows,
        width=width,
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        ranks=[int(shard.rank) for shard in option.shards],
        weights=sum(size.weights for size in sizes),
        state=sum(size.state for size in sizes),
        parts=plan.cost.parts[option.name],
        dearest=max(plan.cost.tables[option.name]),
        rejected=rejected,
    )


def _rejected(
    option: ShardingOption, pieces: Sequence[Piece], board: Board, hardware: Hardware, shared: float
) -> list[Rejected]:
    """Every other way of laying out the table. shared: milliseconds of a step that are no table's own."""
    old = board.take(option.name)
    found = []
    for each in pieces:
        if (each.option.sharding_type, each.option.compute_kernel) == (option.sharding_type, option.compute_kernel):
            continue
        steps = [float(board.load_with(each, rank_S).max()) + shared for rank_S in board.ranks_for(each)]
        lacking = 0 if steps else board.lacking(each, int(in_host_memory(each.option, hardware.device)))
        found.append(Rejected(each.option.sharding_type, each.option.compute_kernel, min(steps, default=None), lacking))
    board.put(*old)
    return sorted(found, key=lambda way: (way.step is None, way.step or 0.0, way.lacking))


def _ranks(plan: Candidate, room: Storage, hardware: Hardware) -> list[RankReport]:
    used_W = np.zeros(hardware.world, dtype=np.int64)
    for option in plan.options:
        for shard in option.shards:
            used_W[shard.rank] += shard.storage.ddr if hardware.device == "cpu" else shard.storage.hbm
    cap = room.ddr if hardware.device == "cpu" else room.hbm
    return [
        RankReport(rank, int(used), cap, step)
        for rank, (used, step) in enumerate(zip(used_W, plan.cost.ranks, strict=True))
    ]


def by_layout(tables: Sequence[TableReport]) -> Mapping[str, int]:
    """Sharding type -> tables laid out so, the most frequent first."""
    types = [table.sharding_type for table in tables]
    return {kind: types.count(kind) for kind in sorted(set(types), key=lambda kind: (-types.count(kind), kind))}
