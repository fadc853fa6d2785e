"""A plan explained: each table's layout, memory and cost, its other layouts, the load of each rank, and remarks.

`explain` makes an `Explanation`: plain data, for `--json`. `sidrec.plans.explanation_text` prints it.

Shapes: W ranks, S shards of a table.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torchrec.distributed.planner.types import ShardingOption, Storage

from sidrec.plans.cost import FLOAT, REPLICATED, ROW_TYPES, CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import (
    Sharders,
    enumerate_options,
    in_host_memory,
    table_bytes,
    table_memory,
)
from sidrec.plans.placement import Placement, RatedLayout, rated_layout
from sidrec.plans.search import DEFAULT, Candidate
from sidrec.plans.workload import TableLoad, Workload
from sidrec.text import byte_size


@dataclass(frozen=True)
class OtherLayout:
    """A layout of one table that the plan does not use.

    step: predicted milliseconds with this layout in its best place, all other tables as planned; None if it fits no
    rank. lacking: bytes that are then missing, else 0. unknown: parts of the step whose cost is unknown and not in it.
    """

    sharding_type: str
    compute_kernel: str
    step: float | None
    lacking: int
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TableExplanation:
    """One table of the plan.

    ranks: of the shards, in order. weights, state: bytes over all ranks; state includes a dense gradient.
    parts: part of a step -> milliseconds, on the rank where the table costs most. dearest: their sum.
    unknown: parts whose cost the cost model does not know, and which are 0 in `parts`.
    """

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
    rejected: list[OtherLayout]
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RankLoad:
    """used: bytes of tables, inputs and outputs; room: bytes available for them. step: milliseconds."""

    rank: int
    used: int
    room: int
    step: float


@dataclass(frozen=True)
class Explanation:
    """A plan for `workload` on `hardware`, rated by the cost model `cost`. step: milliseconds of the slowest rank.

    candidates: every plan found -> its step, the best first. search_cut: TorchRec's own search was stopped before its
    end. remarks: sentences.
    """

    workload: str
    rows_per_rank: int
    hardware: dict[str, Any]
    cost: str
    plan: str
    step: float
    tables: list[TableExplanation]
    ranks: list[RankLoad]
    candidates: dict[str, float]
    search_cut: bool
    remarks: list[str]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def explain(
    candidates: Sequence[Candidate], workload: Workload, hardware: Hardware, sharders: Sharders, cost: CostModel
) -> Explanation:
    """Explains the first of `candidates`, as `search` returns them, and compares all other layouts of each table."""
    best = candidates[0]
    memory = table_memory(workload, hardware, sharders)
    layouts = {
        name: [rated_layout(option, cost, workload, hardware) for option in found]
        for name, found in enumerate_options(workload, hardware, sharders).items()
    }
    placement = Placement.empty(hardware, memory)
    for option in best.options:
        layout = rated_layout(option, cost, workload, hardware)
        placement.place(layout, np.array([shard.rank for shard in option.shards]))
    shared = best.cost.step - float(placement.load_W.max())
    tables = []
    for option in best.options:
        others = _other_layouts(option, layouts[option.name], placement, hardware, shared)
        rated = [
            replace(other, unknown=cost.unknown_parts(layout.option, workload, hardware)) for layout, other in others
        ]
        unknown = cost.unknown_parts(option, workload, hardware)
        tables.append(_table(option, best, sharders, _fastest_first(rated), unknown))
    default = next((each for each in candidates if each.name == DEFAULT), best)
    return Explanation(
        workload=workload.name,
        rows_per_rank=workload.rows_per_rank,
        hardware=asdict(hardware),
        cost=cost.name,
        plan=best.name,
        step=best.cost.step,
        tables=tables,
        ranks=_rank_loads(best, memory, hardware),
        candidates={each.name: each.cost.step for each in candidates},
        search_cut=default.cut,
        remarks=[
            *_unpriced(tables, cost),
            *cost.remarks(best.options, workload, hardware),
            *remarks(best.options, workload, hardware, cost.knows_replicas),
        ],
    )


def _table(
    option: ShardingOption, plan: Candidate, sharders: Sharders, rejected: list[OtherLayout], unknown: list[str]
) -> TableExplanation:
    sizes = table_bytes(option, sharders)
    rows, width = option.tensor.shape
    return TableExplanation(
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
        unknown=unknown,
    )


def _other_layouts(
    option: ShardingOption,
    layouts: Sequence[RatedLayout],
    placement: Placement,
    hardware: Hardware,
    shared: float,
) -> list[tuple[RatedLayout, OtherLayout]]:
    """All layouts but the planned one. shared: milliseconds of a step that belong to no table."""
    planned = placement.remove(option.name)
    others = []
    for layout in layouts:
        kind = (layout.option.sharding_type, layout.option.compute_kernel)
        if kind == (option.sharding_type, option.compute_kernel):
            continue
        ways = placement.feasible_ranks(layout)
        steps = [float(placement.load_with(layout, rank_S).max()) + shared for rank_S in ways]
        in_host = int(in_host_memory(layout.option, hardware.device))
        missing = 0 if steps else placement.missing_bytes(layout, in_host)
        others.append((layout, OtherLayout(*kind, min(steps, default=None), missing)))
    placement.place(*planned)
    return others


def _fastest_first(others: Sequence[OtherLayout]) -> list[OtherLayout]:
    return sorted(others, key=lambda other: (other.step is None, other.step or 0.0, other.lacking))


def _rank_loads(plan: Candidate, memory: Storage, hardware: Hardware) -> list[RankLoad]:
    used_W = np.zeros(hardware.world, dtype=np.int64)
    for option in plan.options:
        for shard in option.shards:
            used_W[shard.rank] += shard.storage.ddr if hardware.device == "cpu" else shard.storage.hbm
    available = memory.ddr if hardware.device == "cpu" else memory.hbm
    return [
        RankLoad(rank, int(used), available, step)
        for rank, (used, step) in enumerate(zip(used_W, plan.cost.ranks, strict=True))
    ]


# Remarks: facts about the data that the cost models do not show.

CROWDED = 1.5
"""Times its even share of lookups from which a shard is remarked on."""
NAMED = 6
"""Tables that a remark names, the most affected first."""


def _unpriced(tables: Sequence[TableExplanation], cost: CostModel) -> list[str]:
    """A warning if the cost model cannot compare plans, as after a calibration on too few of them."""
    if any(table.dearest > 0 for table in tables):
        return []
    return [
        f"the cost model {cost.name} predicts 0 ms for every table, and cannot compare plans: calibrate it on more "
        "measured plans"
    ]


def remarks(
    options: Sequence[ShardingOption], workload: Workload, hardware: Hardware, knows_replicas: bool
) -> list[str]:
    """Sentences on placed options. knows_replicas: whether the cost model prices replicated tables on CPU."""
    return [*_crowded_shards(options, workload), *_cheap_replicas(options, workload, hardware, knows_replicas)]


def _crowded_shards(options: Sequence[ShardingOption], workload: Workload) -> list[str]:
    """Row shards with most of a table's lookups, because popular ids have neighbouring rows."""
    found = []
    for option in options:
        shares = row_shares(option, workload.loads[option.name])
        if option.sharding_type in ROW_TYPES and shares and max(shares) * len(shares) > CROWDED:
            found.append((max(shares) * len(shares), option.name, shares, option.sharding_type))
    if not found:
        return []
    found.sort(reverse=True)
    names = ", ".join(
        f"{name} ({kind}: {max(shares):.0%}, {times:.1f} times an even share)"
        for times, name, shares, kind in found[:NAMED]
    )
    return [
        "popular ids are in neighbouring rows, so that one row shard gets most lookups of a table: "
        f"{names}{_and_more(found)}"
    ]


def row_shares(option: ShardingOption, load: TableLoad) -> list[float]:
    """Expected share of the lookups in each row range of the option's shards; [] if popularity is unknown."""
    if load.popularity is None:
        return []
    ranges = sorted({(shard.offset[0], shard.offset[0] + shard.size[0]) for shard in option.shards})
    return [load.popularity.share(first, last) for first, last in ranges]


def _cheap_replicas(
    options: Sequence[ShardingOption], workload: Workload, hardware: Hardware, knows_replicas: bool
) -> list[str]:
    """Tables smaller than the embeddings exchanged for them: replicas exchange a gradient as large as the table."""
    found = []
    for option in options:
        load, (rows, width) = workload.loads[option.name], option.tensor.shape
        table = rows * width * FLOAT
        exchanged = load.bags * len(load.ids_per_bag) * width * FLOAT
        if option.sharding_type != REPLICATED and hardware.world > 1 and exchanged > table:
            found.append((exchanged / table, option.name, table, exchanged))
    if not found:
        return []
    found.sort(reverse=True)
    names = ", ".join(
        f"{name} ({byte_size(table)}; a rank sends {byte_size(exchanged)} of embeddings a step)"
        for _, name, table, exchanged in found[:NAMED]
    )
    if knows_replicas or hardware.device != "cpu":
        verdict = "the predicted steps with replicas are in column DP"
    else:
        verdict = "not replicated all the same: without a calibration the cost of replicas on CPU is unknown"
    return [
        "these tables are smaller than what is exchanged for them, so that replicas would send less: "
        f"{names}{_and_more(found)}; {verdict}"
    ]


def _and_more(found: Sequence[object]) -> str:
    return f" and {len(found) - NAMED} more" if found[NAMED:] else ""
