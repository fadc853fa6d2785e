"""What a plan is and why: each table's layout, bytes and cost, what it would cost laid out otherwise, each rank's load,
and what the data say.

Shapes: W ranks, S shards of a table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from torchrec.distributed.planner.types import ShardingOption, Storage

from sidrec.plans.cost import CostModel
from sidrec.plans.hardware import GB, Hardware
from sidrec.plans.memory import in_host_memory, table_bytes
from sidrec.plans.options import FAST_KERNELS, TYPES, Sharders, enumerate_options, table_room
from sidrec.plans.placement import Board, Piece, piece
from sidrec.plans.search import DEFAULT, Candidate
from sidrec.plans.work import FLOAT, REPLICATED, ROW_TYPES
from sidrec.plans.workload import TableLoad, Workload


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


# What the data say of a plan that cost models do not: popular ids crowd row-wise shards, tables smaller than what is
# exchanged for them could be replicated.


def remarks(
    options: Sequence[ShardingOption], workload: Workload, hardware: Hardware, knows_replicas: bool
) -> list[str]:
    """Sentences on placed options, the telling ones first. knows_replicas: as the cost model says."""
    return [*_crowded(options, workload), *_small(options, workload, hardware, knows_replicas)]


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
        ranks=_rank_reports(best, room, hardware),
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


def _rank_reports(plan: Candidate, room: Storage, hardware: Hardware) -> list[RankReport]:
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


# An explanation as lines of text, for terminals of 120 columns.


COLUMNS = 120
TABLES = 40
"""Tables that are shown, the costliest first."""
RANKS = 16
PLANS = 8
NAME = 18


SHORT = {
    "data_parallel": "DP",
    "table_wise": "TW",
    "column_wise": "CW",
    "row_wise": "RW",
    "table_row_wise": "TWRW",
    "table_column_wise": "TWCW",
    "grid_shard": "GRID",
    "fwd_compute": "fwd",
    "fwd_comms": "f.comm",
    "bwd_compute": "bwd",
    "bwd_comms": "b.comm",
    "input_dist": "input",
}


def explanation_text(explained: Explanation) -> str:
    """What was planned, tables, ranks, other plans, remarks."""
    lines = [line for words in _head(explained) for line in wrap(words, COLUMNS)]
    lines += ["", *_tables(explained), "", *_otherwise(explained), "", *_ranks(explained), "", *_plans(explained)]
    for remark in explained.remarks:
        lines += ["", *wrap(remark, COLUMNS)]
    return "\n".join(lines)


def _head(explained: Explanation) -> Iterator[str]:
    there = explained.hardware
    machines = there["world"] // there["local_world"]
    yield (
        f"{explained.workload} on {there['name']}: {there['world']} rank(s), {machines} machine(s), {there['device']}, "
        f"{explained.rows_per_rank:,} rows per rank and step"
    )
    types = ", ".join(f"{count} {kind}" for kind, count in by_layout(explained.tables).items())
    yield f"plan: {types}; found by: {explained.plan}"
    step = f"step of the slowest rank, as the cost model {explained.cost} expects: {explained.step:.3f} ms"
    default = explained.candidates.get(DEFAULT)
    if default is None:
        yield f"{step}; TorchRec's own search finds no plan that fits"
    elif default > explained.step:
        yield f"{step}; {1 - explained.step / default:.1%} less than TorchRec's default plan ({default:.3f} ms)"
    else:
        yield f"{step}; no plan found beats TorchRec's default"
    if explained.search_cut:
        yield "TorchRec's own search was stopped before its end: so many tables and ranks would take it hours"


def _tables(explained: Explanation) -> Iterator[str]:
    parts = list(explained.tables[0].parts)
    headings = ["table", "rows x width", "layout", "ranks", "weights", "state", "ms", *(SHORT.get(p, p) for p in parts)]
    rows = [
        [
            _cut(table.table),
            f"{table.rows}x{table.width}",
            _layout(table),
            rank_ranges(table.ranks),
            _bytes(table.weights),
            _bytes(table.state),
            _ms(table.dearest),
            *(_ms(table.parts[part]) for part in parts),
        ]
        for table in _costliest(explained)
    ]
    yield "each table: bytes over all ranks; ms, and of what, for the rank that it costs most"
    yield from _aligned(headings, rows, left=4)
    hidden = len(explained.tables) - len(rows)
    if hidden:
        yield f"and {hidden} more, each cheaper; --json has all"


def _otherwise(explained: Explanation) -> Iterator[str]:
    yield "the step in ms if one table alone were laid out otherwise (* as planned; -: as many bytes short)"
    headings = ["table", *(SHORT[kind] for kind in TYPES)]
    rows = []
    for table in _costliest(explained):
        ways = {way.sharding_type: way for way in reversed(table.rejected)}
        rows.append([_cut(table.table), *(_way(kind, table, ways.get(kind)) for kind in TYPES)])
    yield from _aligned(headings, rows, left=1)


def _way(kind: str, table: TableReport, way: Rejected | None) -> str:
    if kind == table.sharding_type:
        return "*"
    if way is None:
        return ""
    return f"-{_bytes(way.lacking)}" if way.step is None else f"{way.step:.3f}"


def _ranks(explained: Explanation) -> Iterator[str]:
    by_step = sorted(explained.ranks, key=lambda rank: -rank.step)
    shown = sorted(by_step[:RANKS], key=lambda rank: rank.rank)
    mean = sum(rank.step for rank in by_step) / len(by_step)
    yield f"each rank (slowest {by_step[0].step:.3f} ms, mean {mean:.3f} ms); bytes with inputs and outputs"
    rows = [[str(rank.rank), f"{rank.step:.3f}", _bytes(rank.used), _bytes(rank.room)] for rank in shown]
    yield from _aligned(["rank", "ms", "bytes", "room"], rows, left=0)
    if len(by_step) > len(shown):
        yield f"and {len(by_step) - len(shown)} more, each faster or as fast"


def _plans(explained: Explanation) -> Iterator[str]:
    named = list(explained.candidates.items())
    shown = named[:PLANS] + [each for each in named[PLANS:] if each[0] == DEFAULT]
    yield f"plans found, {len(named)} in all, against the best"
    rows = [[name, f"{step:.3f} ms", f"{step / explained.step - 1:+.1%}"] for name, step in shown]
    yield from _aligned(["plan", "step", ""], rows, left=1)


def rank_ranges(ranks: Sequence[int]) -> str:
    """Ranks as `0-7`, `3`, `0,4-5`; repeated ones once."""
    numbers = sorted(set(ranks))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(text) <= 9 else f"{len(numbers)} ranks"


def _costliest(explained: Explanation) -> list[TableReport]:
    return sorted(explained.tables, key=lambda table: -table.dearest)[:TABLES]


def _layout(table: TableReport) -> str:
    return table.sharding_type if table.compute_kernel in FAST_KERNELS else f"{SHORT[table.sharding_type]} uvm"


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """The first `left` columns to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in [headings, *rows]) for place in range(len(headings))]
    for row in [headings, *rows]:
        cells = (
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield " ".join(cells).rstrip()


def _cut(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}"


def _bytes(size: float) -> str:
    for unit, name in ((1000 * GB, "TB"), (GB, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f}{name}"
    return f"{size:.0f}B"


CROWDED = 1.5
"""Times its even share that a shard is looked up before it is worth a sentence."""
SAID = 6
"""Tables that a sentence names, the telling ones first."""


def _crowded(options: Sequence[ShardingOption], workload: Workload) -> list[str]:
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
        for times, name, shares, kind in found[:SAID]
    )
    more = f" and {len(found) - SAID} more" if found[SAID:] else ""
    return [f"popular ids are neighbours, so that one row shard is looked up for most of a table's ids: {names}{more}"]


def row_shares(option: ShardingOption, load: TableLoad) -> list[float]:
    """Expected share of the ids that each range of rows of the option's shards gets; [] where that is not known."""
    if load.popularity is None:
        return []
    ranges = sorted({(shard.offset[0], shard.offset[0] + shard.size[0]) for shard in option.shards})
    return [load.popularity.share(first, last) for first, last in ranges]


def _small(
    options: Sequence[ShardingOption], workload: Workload, hardware: Hardware, knows_replicas: bool
) -> list[str]:
    """Replicas exchange a gradient as large as the table; shards exchange embeddings and their gradients per bag."""
    found = []
    for option in options:
        load, (rows, width) = workload.loads[option.name], option.tensor.shape
        table = rows * width * FLOAT
        exchanged = load.bags * len(load.ids_per_bag) * width * FLOAT
        if option.sharding_type != REPLICATED and hardware.world > 1 and exchanged > table:
            found.append((exchanged / table, option.name, table, exchanged))
    found.sort(reverse=True)
    names = ", ".join(
        f"{name} ({table / 1e3:,.1f} kB, for which a rank sends {exchanged / 1e3:,.0f} kB of embeddings a step)"
        for _, name, table, exchanged in found[:SAID]
    )
    more = f" and {len(found) - SAID} more" if found[SAID:] else ""
    if not found:
        return []
    unknown = "left out all the same: only a calibration knows what replicas cost on CPU, large ones many times as much"
    known = knows_replicas or hardware.device != "cpu"
    verdict = "what the cost model expects of that stands under DP" if known else unknown
    return [f"smaller than what is exchanged for them, so that replicas would send less: {names}{more}; {verdict}"]
