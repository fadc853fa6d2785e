"""Events: the form that every raw log is read into, with checks that name the file and line of bad input.

An event table has the columns user, item (string, the source's own ids), timestamp (int64, seconds since 1970) and
label (float32, 0 or 1), and the source's own `int_*` (float32) and `cat_*` (string) columns.

A raw log is a `Source`: it yields event tables in any order, then metadata of the items. `blocks` and `dat_blocks` read
its files; `numbers`, `check_events` and `check_unique` check what they hold.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from sidrec.errors import ContractError
from sidrec.text import did_you_mean

from .command import reading

USER, ITEM, TIMESTAMP, LABEL = "user", "item", "timestamp", "label"
LATEST = 4_102_444_800  # 2100-01-01: later "seconds" are milliseconds or nonsense
CATALOG_TITLE, CATALOG_TEXT = "title", "content"


@dataclass(frozen=True)
class Items:
    """Metadata of items, one row per item id; row 0 is id 1.

    table: columns source_id, title, content (text that is embedded), and others for readers of items.parquet.
    categories: cat_* column -> text value per item; empty: unknown.
    vectors: vector column -> float32 [items, width].
    """

    table: pa.Table
    categories: Mapping[str, pa.Array]
    vectors: Mapping[str, np.ndarray]
    notes: Mapping[str, object]


class IdMap:
    """Source ids (text) to dense ids 1, 2, ... in order of first appearance; 0: unknown. Holds all ids in memory."""

    def __init__(self, source_ids: Iterable[str] = ()) -> None:
        self._dense: dict[str, int] = {}
        for source_id in source_ids:
            self._dense.setdefault(source_id, len(self._dense) + 1)

    def __len__(self) -> int:
        return len(self._dense)

    def source_ids(self) -> list[str]:
        """Source ids in order of their dense ids, starting with id 1."""
        return list(self._dense)

    def get(self, source_id: str) -> int:
        """The dense id, 0 if there is none."""
        return self._dense.get(source_id, 0)

    def add(self, column: pa.ChunkedArray) -> np.ndarray:
        """Dense ids int64 [rows] of a text column. New ids are appended; empty or missing text is id 0."""
        encoded = column.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        dense = self._dense
        known = [dense.setdefault(text, len(dense) + 1) if text else 0 for text in encoded.dictionary.to_pylist()]
        codes = encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
        return np.asarray([*known, 0], dtype=np.int64)[codes]

    def save(self, path: Path) -> None:
        pq.write_table(pa.table({"source_id": pa.array(self._dense, pa.string())}), path)

    @classmethod
    def load(cls, path: Path) -> "IdMap":
        return cls(pq.read_table(path)["source_id"].to_pylist())


class Source(Protocol):
    """A raw log: yields events in any order, then metadata of the items."""

    @property
    def name(self) -> str:
        """Name of the source in the manifest."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read. If one changes, an unfinished preparation starts again."""

    @property
    def dense(self) -> tuple[str, ...]:
        """int_* columns of the events."""

    @property
    def categorical(self) -> tuple[str, ...]:
        """cat_* columns of the events."""

    @property
    def extra(self) -> tuple[str, ...]:
        """Other float32 columns of the events, which the log gets in addition to the contract's."""

    @property
    def labels(self) -> str:
        """How labels are made, in words."""

    def catalog(self) -> list[str]:
        """Source ids that get the item ids 1, 2, ... before any event is read."""

    def events(self) -> Iterator[pa.Table]:
        """Event tables. Raises ContractError with file, line and column of invalid input."""

    def items(self, ids: IdMap) -> Items:
        """Metadata of the items in `ids`."""


def numbers(text: pa.ChunkedArray, kind: pa.DataType, where: str, first_line: int) -> pa.ChunkedArray:
    """Parses a text column as `kind`. first_line: line of the first value in the file.

    Raises ContractError with the first line whose value is missing, NaN, infinite or not a number.
    """
    text = pc.utf8_trim_whitespace(text)
    try:
        values = pc.cast(text, pa.float64() if pa.types.is_floating(kind) else kind)
        bad = pc.invert(pc.fill_null(pc.is_finite(values), False))
        if not pc.any(bad).as_py():
            return pc.cast(values, kind, safe=False)
    except pa.ArrowInvalid:
        bad = pc.invert(pc.fill_null(pc.match_substring_regex(text, _pattern(kind)), False))
    row = pc.index(bad, True).as_py()
    raise ContractError(f"{where}, line {first_line + row}", _words(kind), repr(text[row].as_py()))


def _pattern(kind: pa.DataType) -> str:
    return r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$" if pa.types.is_floating(kind) else r"^-?\d{1,18}$"


def _words(kind: pa.DataType) -> str:
    return "a finite number" if pa.types.is_floating(kind) else "a whole number"


def check_events(events: pa.Table, where: object, first_line: int) -> pa.Table:
    """Checks that ids are present, times in [1970, 2100), labels 0/1. Raises ContractError with the first bad line."""
    rules = {
        USER: ("a user id", pc.equal(pc.utf8_length(pc.fill_null(events[USER], "")), 0)),
        ITEM: ("an item id", pc.equal(pc.utf8_length(pc.fill_null(events[ITEM], "")), 0)),
        TIMESTAMP: (
            "seconds since 1970, before the year 2100 (milliseconds?)",
            pc.or_(pc.less(events[TIMESTAMP], 0), pc.greater_equal(events[TIMESTAMP], LATEST)),
        ),
        LABEL: ("0 or 1", pc.invert(pc.or_(pc.equal(events[LABEL], 0), pc.equal(events[LABEL], 1)))),
    }
    for column, (expected, bad) in rules.items():
        row = pc.index(pc.fill_null(bad, True), True).as_py()
        if row >= 0:
            got = repr(events[column][row].as_py())
            raise ContractError(f"{where}, line {first_line + row}, column {column}", expected, got)
    return events


def check_unique(column: pa.ChunkedArray, where: str, first_line: int) -> None:
    """Raises ContractError with the first line whose id is missing or repeated."""
    seen: set[str] = set()
    for row, value in enumerate(column.to_pylist()):
        if not value or value in seen:
            raise ContractError(f"{where}, line {first_line + row}", "an id of its own", repr(value))
        seen.add(value)


# Readers of CSV (plain or gzipped), Parquet and `::`-separated .dat files: block by block, columns as text.


BLOCK_BYTES = 8 << 20
DAT_SEPARATOR = b"::"
UNIT_SEPARATOR = b"\x1f"  # one byte that no title contains


@contextmanager
def readable(path: Path) -> Iterator[IO[bytes]]:
    """Opens a plain or gzipped file. Errors while it is read become ContractErrors that name the file."""
    if not path.is_file():
        raise ContractError(path, "a file to read", "none")
    try:
        with reading(path) as file:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ContractError(path, "a complete gzip file", error) from None
    except (pa.ArrowException, KeyError) as error:
        raise ContractError(path, "a well-formed table with the columns that are needed", error) from None
    except UnicodeDecodeError as error:
        raise ContractError(path, "UTF-8 text", error) from None


def blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """Blocks of a CSV or Parquet file, each with the number of its first line. Columns are text, missing values null.

    Lines count from 1, header included (line breaks in quotes are not counted); Parquet rows count from 1.
    Raises ContractError for a missing file or column, a broken row, and a truncated or empty file.
    """
    if path.suffix == ".parquet":
        yield from _parquet_blocks(path, columns)
        return
    _check_header(path, columns)
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    with readable(path) as file:
        options = pa_csv.ReadOptions(block_size=BLOCK_BYTES)
        reader = pa_csv.open_csv(file, options, pa_csv.ParseOptions(newlines_in_values=True), convert)
        line = 2
        for batch in reader:
            yield line, pa.Table.from_batches([batch])
            line += batch.num_rows


def _check_header(path: Path, columns: Sequence[str]) -> None:
    """Raises ContractError for a column that the first line of a CSV file lacks."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            names = next(csv.reader([file.readline().decode("utf-8-sig", "replace")]), [])
    except (OSError, EOFError, zlib.error):
        return  # reading the rows reports it
    for column in columns:
        if names and column not in names:
            raise ContractError(path, f"a column {column!r}", f"columns {names}{did_you_mean(column, names)}")


def whole(path: Path, columns: Sequence[str]) -> pa.Table:
    """All blocks as one table. Raises ContractError as `blocks` does, and for a file without rows."""
    tables = [table for _, table in blocks(path, columns)]
    if not tables:
        raise ContractError(path, "at least one row", "none")
    return pa.concat_tables(tables)


def dat_blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """As `blocks`, for MovieLens 1M: `::` between values, Latin-1, no header. columns: all columns of the file."""
    with readable(path) as file:
        line = 1
        while lines := file.readlines(BLOCK_BYTES):
            text = b"".join(lines).replace(DAT_SEPARATOR, UNIT_SEPARATOR).decode("latin-1").encode()
            table = _parse_dat(text, columns)
            yield line, table
            line += table.num_rows
    if line == 1:
        raise ContractError(path, "at least one line", "none")


def _parse_dat(text: bytes, columns: Sequence[str]) -> pa.Table:
    return pa_csv.read_csv(
        io.BytesIO(text),
        pa_csv.ReadOptions(column_names=list(columns)),
        pa_csv.ParseOptions(delimiter=UNIT_SEPARATOR.decode(), quote_char=False),
        pa_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True),
    )


def _parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    if not path.is_file():
        raise ContractError(path, "a file to read", "none")
    row = 1
    try:
        file = open_stream(path)
        names = file.schema_arrow.names
        if any(names.count(column) != 1 for column in columns):
            raise ContractError(path, f"the columns {list(columns)}", f"columns {names}")
        for batch in file.iter_batches(columns=list(columns)):
            table = pa.Table.from_batches([batch]).select(list(columns)).cast(_as_text(columns))
            table.validate(full=True)  # finds text that is not UTF-8 here, not where it is first used
            yield row, table
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ContractError(path, "a readable Parquet file", error) from None


def _as_text(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(column, pa.string()) for column in columns])


BUFFER = 1 << 20  # bytes


def open_stream(path: Path) -> pq.ParquetFile:
    """Opens a file for `iter_batches`, without pyarrow's default of keeping all that was read until the end."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
