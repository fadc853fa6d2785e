"""An explanation of a plan as text for a terminal, at most 100 columns wide."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from sidrec.plans.explain import Explanation, OtherLayout, TableExplanation
from sidrec.plans.options import FAST_KERNELS, SHARDING_TYPES
from sidrec.plans.search import DEFAULT
from sidrec.text import byte_size, screen_width, shortened, text_table, wrapped

TABLES = 40
"""Tables that are shown, the costliest first."""
RANKS = 16
PLANS = 8
NAME = 16
"""Letters of a table's name that are shown."""
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
    """The plan, its tables, other layouts, ranks, other plans, remarks."""
    sections = [_tables(explained), _layouts(explained), _ranks(explained), _plans(explained)]
    return "\n\n".join(
        [
            "\n".join(map(wrapped, _head(explained))),
            *("\n".join(section) for section in sections),
            *map(wrapped, explained.remarks),
        ]
    )


def _head(explained: Explanation) -> Iterator[str]:
    hardware = explained.hardware
    machines = hardware["world"] // hardware["local_world"]
    yield (
        f"{explained.workload} on {hardware['name']}: {hardware['world']} rank(s), {machines} machine(s), "
        f"{hardware['device']}, {explained.rows_per_rank:,} rows per rank and step"
    )
    types = ", ".join(f"{count} {kind}" for kind, count in by_layout(explained.tables).items())
    yield f"plan: {types}; found by: {explained.plan}"
    step = f"predicted step of the slowest rank (cost model: {explained.cost}): {explained.step:.3f} ms"
    default = explained.candidates.get(DEFAULT)
    if default is None:
        yield f"{step}; TorchRec's own search finds no plan that fits"
    elif default > explained.step:
        yield f"{step}; {1 - explained.step / default:.1%} less than TorchRec's default plan ({default:.3f} ms)"
    else:
        yield f"{step}; no plan found is faster than TorchRec's default"
    if explained.search_cut:
        yield "TorchRec's own search was stopped early: with so many tables and ranks it would take hours"


def by_layout(tables: Sequence[TableExplanation]) -> Mapping[str, int]:
    """Sharding type -> number of tables, the most frequent first."""
    types = [table.sharding_type for table in tables]
    return {kind: types.count(kind) for kind in sorted(set(types), key=lambda kind: (-types.count(kind), kind))}


def _tables(explained: Explanation) -> Iterator[str]:
    shown, width = _costliest(explained), screen_width()
    text = text_table(_table_rows(shown, _layout), left=4, gap=1)
    short = max(map(len, text.splitlines())) > width
    if short:
        text = text_table(_table_rows(shown, _short_layout), left=4, gap=1, width=width)
    legend = "tables: bytes over all ranks; milliseconds, and their parts, on the rank where the table costs most"
    kinds = {table.sharding_type for table in explained.tables}
    names = ", ".join(f"{SHORT[kind]} {kind}" for kind in SHARDING_TYPES if kind in kinds)
    marks = f"; {UNKNOWN}" if any(table.unknown for table in shown) else ""
    yield wrapped(f"{legend}{marks}; {names}" if short else f"{legend}{marks}")
    yield text
    hidden = len(explained.tables) - len(shown)
    if hidden:
        yield f"and {hidden} more, each cheaper; --json lists all"


UNKNOWN = "unknown: no measured plan tells this cost, which is counted as 0; +: without unknown costs"


def _table_rows(tables: Sequence[TableExplanation], layout: Callable[[TableExplanation], str]) -> list[list[str]]:
    parts = list(tables[0].parts)
    head = ["table", "rows x width", "layout", "ranks", "weights", "state", "ms", *(SHORT.get(p, p) for p in parts)]
    return [
        head,
        *(
            [
                shortened(table.table, NAME),
                f"{table.rows}x{table.width}",
                layout(table),
                rank_ranges(table.ranks),
                byte_size(table.weights),
                byte_size(table.state),
                _sum(table),
                *("unknown" if part in table.unknown else _ms(table.parts[part]) for part in parts),
            ]
            for table in tables
        ),
    ]


def _sum(table: TableExplanation) -> str:
    if not table.unknown:
        return _ms(table.dearest)
    return f"{_ms(table.dearest)}+" if table.dearest > 0 else "unknown"


def _layouts(explained: Explanation) -> Iterator[str]:
    shown = _costliest(explained)
    rows = []
    for table in shown:
        others = {other.sharding_type: other for other in reversed(table.rejected)}
        rows.append([shortened(table.table, NAME), *(_other(kind, table, others.get(kind)) for kind in SHARDING_TYPES)])
    marks = "*: as planned; -: does not fit by so many bytes"
    if any(other.unknown for table in shown for other in table.rejected):
        marks += "; +: without costs that the cost model does not know"
    yield wrapped(f"predicted step in ms with another layout of one table ({marks})")
    yield text_table([["table", *(SHORT[kind] for kind in SHARDING_TYPES)], *rows], width=screen_width())


def _other(kind: str, table: TableExplanation, other: OtherLayout | None) -> str:
    if kind == table.sharding_type:
        return "*"
    if other is None:
        return ""
    if other.step is None:
        return f"-{byte_size(other.lacking)}"
    return f"{other.step:.3f}{'+' if other.unknown else ''}"


def _ranks(explained: Explanation) -> Iterator[str]:
    by_step = sorted(explained.ranks, key=lambda rank: -rank.step)
    shown = sorted(by_step[:RANKS], key=lambda rank: rank.rank)
    mean = sum(rank.step for rank in by_step) / len(by_step)
    figures = f"slowest {by_step[0].step:.3f} ms, mean {mean:.3f} ms"
    yield wrapped(f"ranks: predicted step ({figures}); bytes with inputs and outputs")
    rows = [[str(rank.rank), f"{rank.step:.3f}", byte_size(rank.used), byte_size(rank.room)] for rank in shown]
    yield text_table([["rank", "ms", "used", "available"], *rows], left=0)
    if len(by_step) > len(shown):
        yield f"and {len(by_step) - len(shown)} more, none slower"


def _plans(explained: Explanation) -> Iterator[str]:
    named = list(explained.candidates.items())
    shown = named[:PLANS] + [each for each in named[PLANS:] if each[0] == DEFAULT]
    yield wrapped(f"plans found: {len(named)}; predicted step, and difference from the chosen plan")
    rows = [[name, f"{step:.3f} ms", f"{step / explained.step - 1:+.1%}"] for name, step in shown]
    yield text_table([["plan", "step", ""], *rows], width=screen_width())


def _costliest(explained: Explanation) -> list[TableExplanation]:
    return sorted(explained.tables, key=lambda table: -table.dearest)[:TABLES]


def _layout(table: TableExplanation) -> str:
    return table.sharding_type if table.compute_kernel in FAST_KERNELS else _short_layout(table)


def _short_layout(table: TableExplanation) -> str:
    kind = SHORT[table.sharding_type]
    return kind if table.compute_kernel in FAST_KERNELS else f"{kind} uvm"


def rank_ranges(ranks: Sequence[int]) -> str:
    """Distinct ranks as `0-7`, `3` or `0,4-5`; as a count if that is long."""
    numbers = sorted(set(ranks))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(text) <= 9 else f"{len(numbers)} ranks"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}"
