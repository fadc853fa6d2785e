"""Plans that engineers make by hand, for `sidrec bench plans` to compare with one sharding type for all tables.

    sidrec plan SUBJECT --world 2 --local-world 2 --device cpu --export base.json
    python -m benchmarks.plan_variants base.json OUT
    sidrec bench plans SUBJECT --plans auto,table_wise,OUT/one_rank.json,...

On one machine, with tables too narrow to cut by columns, several sharding types give the same plan; these differ.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sidrec.plans.cost import FLOAT
from sidrec.plans.plan_file import COLUMNS_TOGETHER, PlanFile, TableLayout, read_plan, write_plan

SMALL = 10_000  # rows
MIB = 1 << 20


class Tables:
    """A plan's tables, largest first, and the rank that gets the next one."""

    def __init__(self, plan: PlanFile) -> None:
        self.all_ranks = tuple(range(plan.world))
        named = [(path, name, table) for path, tables in plan.tables.items() for name, table in tables.items()]
        self.largest_first = sorted(named, key=lambda each: (-each[2].rows * each[2].width, each[:2]))
        self.bytes_W = [0] * plan.world

    def smallest(self, larger: int) -> int:
        """Bytes of all tables but that many of the largest."""
        return sum(table.rows * table.width * FLOAT for _, _, table in self.largest_first[larger:])

    def by_rows(self, table: TableLayout) -> TableLayout:
        return replace(table, sharding_type="row_wise", compute_kernel="fused", ranks=self.all_ranks)

    def replicated(self, table: TableLayout) -> TableLayout:
        return replace(table, sharding_type="data_parallel", compute_kernel="dense", ranks=self.all_ranks)

    def by_columns(self, table: TableLayout) -> TableLayout:
        blocks = next(n for n in range(len(self.all_ranks), 0, -1) if table.width % (n * COLUMNS_TOGETHER) == 0)
        return replace(table, sharding_type="column_wise", compute_kernel="fused", ranks=self.all_ranks[:blocks])

    def whole(self, table: TableLayout, rank: int | None = None) -> TableLayout:
        """On that rank, else on the one that holds fewest bytes of whole tables."""
        rank = self.bytes_W.index(min(self.bytes_W)) if rank is None else rank
        self.bytes_W[rank] += table.rows * table.width
        return replace(table, sharding_type="table_wise", compute_kernel="fused", ranks=(rank,))


Rule = Callable[[Tables, int, TableLayout], TableLayout]
"""Tables, number of larger tables, table -> its layout."""


def replicated_up_to(mib: int) -> Rule:
    """The smallest tables replicated, as many as take so much together, the rest whole."""

    def rule(tables: Tables, larger: int, table: TableLayout) -> TableLayout:
        return tables.replicated(table) if tables.smallest(larger) <= mib * MIB else tables.whole(table)

    return rule


VARIANTS: Mapping[str, Rule] = {
    "one_rank": lambda tables, _, table: tables.whole(table, 0),
    "columns_split": lambda tables, _, table: tables.by_columns(table),
    "largest_by_rows": lambda tables, larger, table: tables.whole(table) if larger else tables.by_rows(table),
    "half_by_rows": lambda tables, larger, table: tables.whole(table) if larger % 2 else tables.by_rows(table),
    "small_replicated": lambda tables, _, table: (
        tables.replicated(table) if table.rows <= SMALL else tables.whole(table)
    ),
    "small_replicated_rest_by_rows": lambda tables, _, table: (
        tables.replicated(table) if table.rows <= SMALL else tables.by_rows(table)
    ),
    **{f"replicated_{mib}mib": replicated_up_to(mib) for mib in (1, 4, 16)},
}


def variants(plan: PlanFile) -> Iterator[tuple[str, PlanFile]]:
    """The same tables on the same ranks, under other layouts."""
    for name, rule in VARIANTS.items():
        tables = Tables(plan)
        laid: dict[str, dict[str, TableLayout]] = {path: {} for path in plan.tables}
        for larger, (path, table_name, table) in enumerate(tables.largest_first):
            laid[path][table_name] = rule(tables, larger, table)
        yield name, replace(plan, tables=laid)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path, help="plan file to take tables and ranks from")
    parser.add_argument("out", type=Path, help="folder of the variants, made if need be")
    arguments = parser.parse_args(argv)
    plan = read_plan(arguments.plan)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, variant in variants(plan):
        write_plan(arguments.out / f"{name}.json", variant)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
