"""Files with the rows of one table, read by ranges of rows: safetensors, npy and parquet.

Shapes: R rows in the file, D their width, G rows of a row group, N rows of a part.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sidrec.checkpoint.stored_tables import PART, rows_within
from sidrec.checkpoint.tensor_shard import DTYPES, read_header
from sidrec.io.files import readable
from sidrec.schema import ContractError
from sidrec.text import did_you_mean

ROW, EMBEDDING = "row", "embedding"
"""Columns of an exported parquet file: row number and values."""


class TableSource(Protocol):
    """Rows of a table. where: the file, for messages. rows: the last row number + 1. width: D."""

    where: str
    rows: int
    width: int

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the file's rows in [first, last), a few at a time: their numbers, int64 [N], ascending, and their
        values, float32 [N, D]. Raises ContractError if the file's contents do not match its metadata."""


def open_table(name: str, table: str) -> TableSource:
    """Opens FILE or FILE:NAME. NAME is a tensor of a safetensors file, or a column of a parquet file.

    Default of NAME: the only tensor, else the one called `table`; the only column of lists, else "embedding".
    Raises ContractError if there is no two-dimensional table of floats.
    """
    file, _, part = (name, "", "") if Path(name).is_file() else name.rpartition(":") if ":" in name else (name, "", "")
    path = Path(file)
    if not path.is_file():
        raise ContractError(path, f"a file with rows of the table {table}", "none")
    match path.suffix:
        case ".safetensors":
            return SafetensorsRows(path, part, table)
        case ".npy" if not part:
            return NpyRows(path)
        case ".parquet":
            return ParquetRows(path, part)
    raise ContractError(path, "FILE.safetensors[:TENSOR], FILE.npy or FILE.parquet[:COLUMN]", repr(name))


class SafetensorsRows:
    """A tensor of a safetensors file."""

    def __init__(self, path: Path, name: str, table: str) -> None:
        try:
            tensors = read_header(path)
        except OSError as error:
            raise ContractError(path, "a safetensors file", error.strerror or error) from None
        self._stored = tensors[_tensor_name(path, list(tensors), name, table)]
        self.where = f"{path}, {self._stored.name}"
        floats = DTYPES[self._stored.dtype].is_floating_point
        self.rows, self.width = _shape_of(self.where, self._stored.shape, self._stored.dtype, floats)

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start, end in _ranges(first, min(last, self.rows), self.width):
            try:
                values_ND = self._stored.read(start, end).to(torch.float32)
            except OSError as error:
                raise ContractError(self.where, "readable rows", error.strerror or error) from None
            yield torch.arange(start, end), values_ND


class NpyRows:
    """A numpy array file; mapped anew for every part, so that its pages do not stay in memory."""

    def __init__(self, path: Path) -> None:
        self._path, self.where = path, str(path)
        found = self._mapped()
        self.rows, self.width = _shape_of(self.where, found.shape, str(found.dtype), found.dtype.kind == "f")

    def _mapped(self) -> np.ndarray:
        try:
            mapped: Any = np.load(self._path, mmap_mode="r", allow_pickle=False)
            assert isinstance(mapped, np.ndarray), "it holds several arrays"
        except Exception as error:  # numpy parses the header as Python, and any parser error can come out
            words = " ".join(str(error).split()) or type(error).__name__
            raise ContractError(self._path, "an array as numpy.save writes it", words) from None
        return mapped

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start, end in _ranges(first, min(last, self.rows), self.width):
            with np.errstate(over="ignore"):  # values too large become inf, which check_values refuses
                values_ND = np.array(self._mapped()[start:end], dtype=np.float32, order="C")
            yield torch.arange(start, end), torch.from_numpy(values_ND)


def _tensor_name(path: Path, names: list[str], name: str, table: str) -> str:
    wanted = name or (names[0] if len(names) == 1 else table)
    if wanted not in names:
        hint = did_you_mean(wanted, names) or f" among {', '.join(names) or 'no tensors'}"
        raise ContractError(path, f"a tensor {wanted}", f"none of that name{hint}")
    return wanted


def _shape_of(where: str, shape: tuple[int, ...], dtype: str, floats: bool) -> tuple[int, int]:
    if len(shape) != 2 or not floats:
        raise ContractError(where, "floats of shape [rows, width]", f"{dtype} {list(shape)}")
    return shape[0], shape[1]


def _ranges(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    step = rows_within(PART, width * torch.float32.itemsize)
    for start in range(first, last, step):
        yield start, min(start + step, last)


def check_values(source: TableSource, first: int, last: int, progress: Callable[[int], object]) -> None:
    """Reads and checks rows [first, last). progress: called with the number of rows read.

    Raises ContractError naming the first value that is not a finite float32.
    """
    for rows_N, values_ND in source.parts(first, last):
        bad_ND = ~torch.isfinite(values_ND)
        if bad_ND.any():
            place, column = bad_ND.nonzero()[0].tolist()
            where = f"{source.where}, row {rows_N[place]}, column {column}"
            raise ContractError(where, "a finite float32", values_ND[place, column].item())
        progress(len(rows_N))


class ParquetRows:
    """A column of equally long lists in a parquet file. The column `row`, if there is one, holds ascending row numbers;
    without it, rows are numbered 0, 1, 2..."""

    def __init__(self, path: Path, column: str) -> None:
        """column: a name, or "" for the default. Raises ContractError if there is no such column."""
        self._path = path
        with readable(path), pq.ParquetFile(path) as file:
            schema, self._groups = file.schema_arrow, _group_rows(file)
            self._numbered = schema.get_field_index(ROW) >= 0
            self._column = _list_column(path, schema, column)
            if self._numbered and not pa.types.is_integer(schema.field(ROW).type):
                raise ContractError(f"{path}, column {ROW}", "integers", schema.field(ROW).type)
            self.where = f"{path}, column {self._column}"
            self.width = self._width(file)
            self.rows = self._last_row(file) + 1 if self._numbered else sum(self._groups)

    def _width(self, file: pq.ParquetFile) -> int:
        kind = file.schema_arrow.field(self._column).type
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        for batch in file.iter_batches(batch_size=1, columns=[self._column]):
            return len(batch[0][0].as_py() or ())
        return 0

    def _last_row(self, file: pq.ParquetFile) -> int:
        filled = [group for group, rows in enumerate(self._groups) if rows]
        return int(self._numbers(file, filled[-1], before=-1)[-1]) if filled else -1

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See TableSource. Raises ContractError also for rows out of order and lists of another length.

        Of row groups outside the range only row numbers are read. Their statistics would do, but pyarrow 26 does not
        catch the exception that its Parquet library throws for broken ones, and the process ends.
        """
        start, before = 0, -1
        with readable(self._path), pq.ParquetFile(self._path) as file:
            for group, rows in enumerate(self._groups):
                rows_G = self._numbers(file, group, before) if self._numbered else np.arange(start, start + rows)
                start, before = start + rows, int(rows_G[-1]) if rows else before
                if rows and rows_G[0] < last and rows_G[-1] >= first:
                    yield from self._parts_of(file, group, rows_G, first, last)

    def _parts_of(
        self, file: pq.ParquetFile, group: int, rows_G: np.ndarray, first: int, last: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        step, done = rows_within(PART, self.width * torch.float32.itemsize), 0
        for batch in file.iter_batches(step, row_groups=[group], columns=[self._column], use_threads=False):
            rows_N = rows_G[done : done + len(batch)]
            done += len(batch)
            self._check_length(group, done, at_most=len(rows_G))
            wanted_N = (rows_N >= first) & (rows_N < last)
            if wanted_N.any():
                values_ND = self._values(batch, rows_N)[wanted_N]
                yield torch.from_numpy(rows_N[wanted_N]), torch.from_numpy(values_ND)
        self._check_length(group, len(rows_G), at_most=done)

    def _check_length(self, group: int, rows: int, at_most: int) -> None:
        """Raises ContractError for a column longer than its row group, which a broken file can have."""
        if rows > at_most:
            raise ContractError(self._path, f"{self._groups[group]} rows in row group {group}", "columns of others")

    def _numbers(self, file: pq.ParquetFile, group: int, before: int) -> np.ndarray:
        """Row numbers of a row group, int64 [G]. before: the last row number of the previous group."""
        rows = file.read_row_group(group, columns=[ROW], use_threads=False)[ROW]
        if rows.null_count:
            raise ContractError(f"{self._path}, column {ROW}", "no missing value", f"{rows.null_count}")
        rows_G = rows.to_numpy().astype(np.int64)
        self._check_length(group, len(rows_G), at_most=self._groups[group])
        self._check_length(group, self._groups[group], at_most=len(rows_G))
        back = np.flatnonzero(np.diff(rows_G, prepend=before) <= 0)
        if len(back):
            line = int(back[0])
            got = f"{rows_G[line]} after {rows_G[line - 1] if line else before}"
            raise ContractError(f"{self._path}, column {ROW}", "row numbers from 0 on, ascending", got)
        return rows_G

    def _values(self, batch: pa.RecordBatch, rows_N: np.ndarray) -> np.ndarray:
        """float32 [N, D]."""
        lists = batch.column(self._column)
        lengths_N = pc.list_value_length(lists).fill_null(-1).to_numpy()
        wrong = np.flatnonzero(lengths_N != self.width)
        if len(wrong):
            where = f"{self.where}, row {rows_N[wrong[0]]}"
            got = "a missing value" if lengths_N[wrong[0]] < 0 else lengths_N[wrong[0]]
            raise ContractError(where, f"a list of {self.width} floats", got)
        with np.errstate(over="ignore"):  # values too large become inf, missing ones NaN; check_values refuses both
            flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return flat.reshape(len(batch), self.width)


def _group_rows(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _list_column(path: Path, schema: pa.Schema, name: str) -> str:
    lists = [field.name for field in schema if _is_float_list(field.type)]
    wanted = name or (lists[0] if len(lists) == 1 else EMBEDDING)
    if wanted not in lists:
        got = f"columns of lists {', '.join(lists) or 'none'} of {', '.join(schema.names)}"
        raise ContractError(path, f"a column {wanted} of lists of floats", got)
    return wanted


def _is_float_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)
