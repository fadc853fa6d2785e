"""Reads tables of other programs: delimited text or Parquet, from a file, a folder or a pattern of files.

`blocks` yields them block by block. Values of Parquet keep their types: `data_prep.source_columns` turns columns of any
type into those of an event table.

What a file is, its first bytes say, not its name: Parquet, or text that is plain or packed by gzip, bzip2 or zstd.
"""

import bz2
import csv
import glob
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, NamedTuple, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from sidrec.errors import ContractError, print_warning
from sidrec.text import did_you_mean, near_file

from .command import reading
from .source_columns import Lines, lists, plain, texts, without_blanks

BLOCK_BYTES = 8 << 20
SEPARATORS = (",", "\t", ";", "|")
PARQUET = b"PAR1"
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
FOREIGN = {
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"ARROW1": "an Arrow or Feather file; write Parquet",
    b"FEA1": "a Feather file; write Parquet",
    b"ORC": "an ORC file; write Parquet",
    b"\x89HDF": "an HDF5 file; write Parquet",
    b"SQLite format 3": "an SQLite database; write Parquet",
    b"\xff\xfe": "UTF-16 text; write UTF-8",
    b"\xfe\xff": "UTF-16 text; write UTF-8",
}


class Block(NamedTuple):
    """Rows of one file, and their position in it."""

    lines: Lines
    table: pa.Table


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a path names, in order: itself, all files below a folder, or those that match a pattern (`*`).

    Files and folders that begin with `.` or `_` are left out, as Spark's `_SUCCESS`. Raises ContractError for none.
    """
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
    elif path.is_file() or not glob.has_magic(str(path)):
        found = [path] if path.is_file() else []
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # may be absolute
        found = [file for file in found if file.is_file() and not _hidden(Path(file.name))]
    if not found:
        got = "a folder without files" if path.is_dir() else f"none{near_file(path)}"
        raise ContractError(path, "a file to read, a folder of files, or a pattern such as 'log/*.parquet'", got)
    return tuple(sorted(found))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def blocks(
    path: Path,
    columns: Sequence[str],
    free_text: Collection[str] = (),
    separator: str = "",
    list_columns: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Block]:
    """Blocks of all files that `path` names, with these columns in this order; missing values are null.

    Text columns are trimmed strings. Folders called `column=value`, as Hive and Spark write them, are columns too.
    free_text: columns of prose, where bytes that are no UTF-8 become U+FFFD; in others they are refused. separator:
    between the values of text; "" finds it in the header. list_columns: columns that become lists of text -> the
    separator of the values of one row.

    Raises ContractError for a missing file or column, a column given twice, a broken row, and a cut or foreign file.
    """
    for file in files_of(path):
        partitions = _partitions(file)
        own = [column for column in columns if column not in partitions or column in _names(file, separator)]
        read = _parquet_blocks(file, own) if _kind(file) == "parquet" else _text_blocks(file, own, separator)
        trimmed: Counter[str] = Counter()
        for lines, table in read:
            found = {}
            for column in columns:
                raw = table[column] if column in own else _repeated(partitions[column], len(table))
                if column in list_columns:
                    found[column] = lists(raw, list_columns[column], column, lines)
                    continue
                values = plain(raw, column, lines, column in free_text)
                found[column], blanks = without_blanks(values)
                trimmed[column] += blanks * (column not in free_text)
            yield Block(lines, pa.table(found))
        for column, count in (+trimmed).items():
            print_warning(f"{file}, column {column}: blanks around {count:,} values left out")


def whole(found: Iterable[Block], path: Path, id_column: str) -> pa.Table:
    """Blocks of the file or files `path` as one table of text and lists of text. `id_column` names every row once.

    Raises ContractError for no rows, and with the line of an id that is missing or repeated.
    """
    tables, seen = [], set[str]()
    for lines, table in found:
        named = zip(table.column_names, table.columns, strict=True)
        tables.append(
            pa.table({name: values if pa.types.is_list(values.type) else texts(values) for name, values in named})
        )
        for row, value in enumerate(tables[-1][id_column].to_pylist()):
            if not value or value in seen:
                where = f"{lines.path}, column {id_column}, line {lines.at(row)}"
                raise ContractError(where, "an id of its own", repr(value))
            seen.add(value)
    if not seen:
        raise ContractError(path, "at least one row", "none")
    return pa.concat_tables(tables)


def _repeated(value: str | None, rows: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(pa.scalar(value, pa.string()), rows)])


def _partitions(file: Path) -> dict[str, str | None]:
    """Columns that the folders of a file name: `day=2024-01-01`."""
    named = [part.partition("=") for part in file.parts[:-1] if "=" in part]
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, _, value in named}


def _kind(file: Path) -> str:
    """ "parquet", "text", or how the text is packed. Raises ContractError for files of other kinds."""
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
    except OSError as error:
        raise ContractError(file, "a file that can be read", error.strerror or error) from None
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise ContractError(file, "a Parquet file, or UTF-8 text with columns", what)
    if start.startswith(PARQUET):
        return "parquet"
    if file.suffix.lower() in (".parquet", ".pq"):
        raise ContractError(file, "a readable Parquet file", "a file that does not begin as one")
    return next((how for magic, how in PACKED.items() if start.startswith(magic)), "text")


# Delimited text.


@contextmanager
def readable(path: Path, watched: bool = True) -> Iterator[IO[bytes]]:
    """Opens a plain or packed file. Errors while it is read become ContractErrors that name the file.

    watched: with a progress bar over its bytes.
    """
    if not path.is_file():
        raise ContractError(path, "a file to read", f"none{near_file(path)}")
    try:
        with reading(path) if watched else path.open("rb") as file:
            kind = _kind(path)
            if kind == "gzip":
                yield cast(IO[bytes], gzip.GzipFile(fileobj=file))
            elif kind == "bzip2":
                yield cast(IO[bytes], bz2.BZ2File(file))
            elif kind == "zstd":
                yield io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ContractError(path, f"a complete {_kind(path)} file", error) from None
    except OSError as error:
        raise ContractError(path, "a file that can be read", error.strerror or error) from None
    except (pa.ArrowException, KeyError) as error:
        raise ContractError(path, "a well-formed table with the columns that are needed", error) from None
    except UnicodeDecodeError as error:
        raise ContractError(path, "UTF-8 text", error) from None


def _header(path: Path, separator: str) -> tuple[list[str], str]:
    """Names of the columns of a text file, and its separator: the one that splits the header into most names."""
    with readable(path, watched=False) as file:
        line = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n")
    splits = {mark: next(csv.reader([line], delimiter=mark), []) for mark in ([separator] if separator else SEPARATORS)}
    mark = max(splits, key=lambda mark: len(splits[mark]))
    # RecBole writes a type behind each name: `item_id:token`.
    return [re.sub(r":(token|float)(_seq)?$", "", name.strip()) for name in splits[mark]], mark


def column_names(path: Path, separator: str) -> list[str]:
    """Columns of the first file that `path` names, and of its folders. Raises ContractError for no file."""
    file = files_of(path)[0]
    return [*_names(file, separator), *_partitions(file)]


def _names(file: Path, separator: str) -> list[str]:
    if _kind(file) == "parquet":
        return list(_open_parquet(file).schema_arrow.names)
    return _header(file, separator)[0]


def _check_names(path: Path, columns: Sequence[str], names: list[str]) -> None:
    """Raises ContractError for a column that is not there exactly once."""
    for column in columns:
        if column not in names:
            raise ContractError(path, f"a column {column!r}", f"columns {names}{did_you_mean(column, names)}")
        if names.count(column) > 1:
            raise ContractError(path, f"one column {column!r}", f"{names.count(column)} of them, columns {names}")


def _text_blocks(path: Path, columns: Sequence[str], separator: str) -> Iterator[Block]:
    names, mark = _header(path, separator)
    if path.stat().st_size:
        _check_names(path, columns, names)
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.binary()),  # UTF-8 is checked later, by column
        strings_can_be_null=True,
        null_values=[""],
    )
    parse = pa_csv.ParseOptions(delimiter=mark, newlines_in_values=True)
    read = pa_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=names, skip_rows=1)
    with readable(path) as file:
        row = 0
        for batch in pa_csv.open_csv(file, read, parse, convert):
            yield Block(Lines(path, row, partial(_line_of, mark=mark)), pa.Table.from_batches([batch]))
            row += batch.num_rows


def _line_of(path: Path, row: int, mark: str) -> int:
    """The line on which a row of a text file begins, counted from 1; rows count from 0, after the header.

    mark: between the values.
    """
    with readable(path, watched=False) as file:
        reader = csv.reader(io.TextIOWrapper(file, "utf-8", "replace", newline=""), delimiter=mark)
        next(reader, None)
        found = -1
        before = reader.line_num
        for values in reader:
            found += bool(values)  # a blank line is no row
            if found == row:
                return before + 1
            before = reader.line_num
    return before + 1


# Parquet.

BUFFER = 1 << 20  # bytes


def open_stream(path: Path) -> pq.ParquetFile:
    """Opens a file for `iter_batches`, without pyarrow's default of keeping all that was read until the end."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return open_stream(path)
    except (pa.ArrowException, OSError) as error:
        raise ContractError(path, "a readable Parquet file", error) from None


def _parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[Block]:
    file = _open_parquet(path)
    _check_names(path, columns, file.schema_arrow.names)
    row = 1
    try:
        for batch in file.iter_batches(columns=list(columns)):
            yield Block(Lines(path, row), pa.Table.from_batches([batch]))
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ContractError(path, "a readable Parquet file", error) from None


# Files of MovieLens without a header.

DAT_SEPARATOR = b"::"
UNIT_SEPARATOR = b"\x1f"  # one byte that no title contains


def dat_blocks(path: Path, columns: Sequence[str], separator: bytes = DAT_SEPARATOR) -> Iterator[Block]:
    """As `blocks`, for MovieLens 1M and 100K: no header, no quotes, UTF-8 or Latin-1. columns: all of the file."""
    with readable(path) as file:
        line = 1
        while lines := file.readlines(BLOCK_BYTES):
            table = _parse_dat(_recoded(b"".join(lines).replace(separator, UNIT_SEPARATOR)), columns)
            yield Block(Lines(path, line), table)
            line += table.num_rows
    if line == 1:
        raise ContractError(path, "at least one line", "none")


def _recoded(text: bytes) -> bytes:
    """Decodes UTF-8, and Latin-1 if it is not UTF-8, as in the published file."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1").encode()
    return text


def _parse_dat(text: bytes, columns: Sequence[str]) -> pa.Table:
    return pa_csv.read_csv(
        io.BytesIO(text),
        pa_csv.ReadOptions(column_names=list(columns)),
        pa_csv.ParseOptions(delimiter=UNIT_SEPARATOR.decode(), quote_char=False),
        pa_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True),
    )
