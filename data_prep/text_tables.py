"""Reads columns of CSV (also gzipped), Parquet and `::`-separated .dat files, block by block, as text."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.csv as pa_csv

from data_prep.parquet_stream import open_stream
from data_prep.progress import reading
from sidrec.schema import ContractError

BLOCK_BYTES = 8 << 20
DAT_SEPARATOR = b"::"
UNIT_SEPARATOR = b"\x1f"  # one byte that no title contains


@contextmanager
def readable(path: Path) -> Iterator[IO[bytes]]:
    """Opens a plain or gzipped file; whatever goes wrong while reading becomes a ContractError naming the file."""
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
    """Blocks of a CSV or Parquet file with the named columns as text, missing values null, each with its first line.

    Line numbers count from 1, the header included (a quoted line break counts as none); Parquet rows count from 1.
    Raises ContractError for a missing file or column, a broken row, and a truncated or empty file.
    """
    if path.suffix == ".parquet":
        yield from _parquet_blocks(path, columns)
        return
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


def whole(path: Path, columns: Sequence[str]) -> pa.Table:
    """All blocks as one table, for files with one row per item. Raises ContractError as `blocks`, and for no rows."""
    tables = [table for _, table in blocks(path, columns)]
    if not tables:
        raise ContractError(path, "at least one row", "none")
    return pa.concat_tables(tables)


def dat_blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """The same for MovieLens 1M's files: `::` between values, Latin-1, no header; all columns must be named."""
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
            table.validate(full=True)  # text that is no UTF-8 would be found wherever it is first looked at
            yield row, table
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ContractError(path, "a readable Parquet file", error) from None


def _as_text(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(column, pa.string()) for column in columns])
