"""Valid Parquet files with other columns, types, values and layouts."""

import io
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.soak.fuzz.mutations import Mutation

TYPES = (pa.int8(), pa.int32(), pa.uint64(), pa.float16(), pa.float64(), pa.string(), pa.large_string(), pa.binary())
EXTREME: tuple[Any, ...] = (None, -1, 0, 2**31, 2**63 - 1, -(2**63), 1e300, float("nan"), float("inf"), -float("inf"))
LISTS: tuple[Any, ...] = (None, [], [None], [-1], [2**62], list(range(1, 5000)))


def _column(table: pa.Table, random: Random) -> int:
    return random.randrange(table.num_columns)


def _replaced(table: pa.Table, index: int, values: pa.Array) -> pa.Table:
    return table.set_column(index, table.column_names[index], values)


def column_less(table: pa.Table, random: Random) -> pa.Table:
    return table.remove_column(_column(table, random))


def column_twice(table: pa.Table, random: Random) -> pa.Table:
    index = _column(table, random)
    return table.append_column(table.column_names[index], table.column(index))


def column_renamed(table: pa.Table, random: Random) -> pa.Table:
    names = list(table.column_names)
    names[random.randrange(len(names))] = random.choice(("", "x", names[0], "a.b", "\u2028"))
    return table.rename_columns(names)


def columns_in_another_order(table: pa.Table, random: Random) -> pa.Table:
    names = list(table.column_names)
    random.shuffle(names)
    return table.select(names)


def other_type(table: pa.Table, random: Random) -> pa.Table:
    """Cast where that goes, else nothing but missing values."""
    index, kind = _column(table, random), random.choice(TYPES)
    try:
        return _replaced(table, index, table.column(index).cast(kind, safe=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _replaced(table, index, pa.nulls(table.num_rows, kind))


def other_container(table: pa.Table, random: Random) -> pa.Table:
    """Replaces a column by a list, structure or dictionary."""
    index = _column(table, random)
    values = table.column(index).combine_chunks()
    makers: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.array([[value] for value in values.to_pylist()]),
        lambda: pa.StructArray.from_arrays([values], ["a"]),
        lambda: pa.nulls(len(values)),
        lambda: pa.array([b"x"] * len(values)).dictionary_encode(),
        lambda: pa.FixedSizeListArray.from_arrays(pa.array([1.0] * len(values) * 3, pa.float32()), 3),
    )
    return _replaced(table, index, random.choice(makers)())


def other_values(table: pa.Table, random: Random) -> pa.Table:
    """Missing, extreme and wrong values in some rows of a column of the same type."""
    index = _column(table, random)
    kind, values = table.schema.field(index).type, table.column(index).to_pylist()
    pool = LISTS if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else EXTREME
    for _ in range(random.choice((1, 3, len(values)))):
        if values:
            values[random.randrange(len(values))] = random.choice(pool)
    try:
        return _replaced(table, index, pa.array(values, kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _replaced(table, index, pa.array([None] * len(values), kind))


def rows_in_another_order(table: pa.Table, random: Random) -> pa.Table:
    order = list(range(table.num_rows))
    random.shuffle(order)
    return table.take(order)


def rows_more_or_less(table: pa.Table, random: Random) -> pa.Table:
    rows = random.choice((0, 1, table.num_rows - 1, 2 * table.num_rows))
    return pa.concat_tables([table, table]).slice(0, rows)


CHANGES: dict[str, Callable[[pa.Table, Random], pa.Table]] = {
    change.__name__.replace("_", " "): change
    for change in (
        *(column_less, column_twice, column_renamed, columns_in_another_order, other_type, other_container),
        *(other_values, rows_in_another_order, rows_more_or_less),
    )
}


def _in_parquet(change: Callable[[pa.Table, Random], pa.Table]) -> Mutation:
    def mutate(content: bytes, random: Random) -> bytes:
        return written(change(pq.read_table(io.BytesIO(content)), random), random)

    return mutate


def other_layout(content: bytes, random: Random) -> bytes:
    """The same table, written otherwise."""
    return written(pq.read_table(io.BytesIO(content)), random)


def written(table: pa.Table, random: Random) -> bytes:
    """A parquet file of the table, with some compression, some row groups, with statistics or without."""
    sink = io.BytesIO()
    compression = random.choice(("none", "snappy", "zstd", "gzip", "lz4", "brotli"))
    options = {"use_dictionary": random.random() < 0.5, "write_statistics": random.random() < 0.7}
    groups, version = random.choice((7, 50, 1000)), random.choice(("1.0", "2.6"))
    pq.write_table(table, sink, row_group_size=groups, compression=compression, version=version, **options)
    return sink.getvalue()


PARQUET: dict[str, Mutation] = {name: _in_parquet(change) for name, change in CHANGES.items()}
PARQUET["other layout"] = other_layout
