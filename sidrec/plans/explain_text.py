"""An explanation as lines of text, for terminals of 120 columns."""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from sidrec.plans.explain import Explanation, Rejected, TableReport, by_layout
from sidrec.plans.hardware import GB
from sidrec.plans.options import FAST_KERNELS, TYPES
from sidrec.plans.search import DEFAULT

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
