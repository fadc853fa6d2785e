"""Rows of a table in a parquet file: a column of lists of floats, and perhaps one that numbers the rows.

Shapes: R rows in the file, D their width, N rows of a part.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sidrec.checkpoint.stored_table import PART, rows_of_size
from sidrec.checkpoint.table_writers import EMBEDDING, ROW
from sidrec.schema import ContractError


class ParquetRows:
    """A column of lists, all of one length. A column `row` of ascending numbers says which rows they are; without one
    they are rows 0, 1, 2... of the table."""

    def __init__(self, path: Path, column: str) -> None:
        """column: its name, or "". Raises ContractError where there is no such column."""
        self._path = path
        try:
            with pq.ParquetFile(path) as file:
                schema, self._groups = file.schema_arrow, _group_rows(file)
                self._numbered = schema.get_field_index(ROW) >= 0
                self._spans = _spans(file, path) if self._numbered else None
                self._column = _list_column(path, schema, column)
                self.where = f"{path}, column {self._column}"
                self.width = self._width(file)
                self.rows = _last_row(file) + 1 if self._numbered else sum(self._groups)
        except (OSError, pa.ArrowException) as error:
            raise ContractError(path, "a readable parquet file", " ".join(str(error).split())) from None

    def _width(self, file: pq.ParquetFile) -> int:
        kind = file.schema_arrow.field(self._column).type
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        for batch in file.iter_batches(batch_size=1, columns=[self._column]):
            return len(batch[0][0].as_py() or ())
        return 0

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As TableSource says. Raises ContractError also for rows out of order and lists of another length."""
        start, before = 0, -1
        columns = [ROW, self._column] if self._numbered else [self._column]
        try:
            with pq.ParquetFile(self._path) as file:
                for group, rows in enumerate(self._groups):
                    if self._overlaps(group, start, rows, first, last):
                        step = rows_of_size(PART, self.width * torch.float32.itemsize)
                        for batch in file.iter_batches(step, row_groups=[group], columns=columns, use_threads=False):
                            rows_N = self._numbers(batch, start, before)
                            start, before = start + len(batch), int(rows_N[-1])
                            wanted_N = (rows_N >= first) & (rows_N < last)
                            if wanted_N.any():
                                values_ND = self._values(batch, rows_N)[wanted_N]
                                yield torch.from_numpy(rows_N[wanted_N]), torch.from_numpy(values_ND)
                    else:
                        start += rows
        except (OSError, pa.ArrowException) as error:
            raise ContractError(self._path, "a readable parquet file", " ".join(str(error).split())) from None

    def _overlaps(self, group: int, start: int, rows: int, first: int, last: int) -> bool:
        """Whether a row group, which begins at line `start`, can hold rows of [first, last)."""
        if not self._numbered:
            return start < last and start + rows > first
        return rows > 0 and (self._spans is None or (self._spans[group][0] < last and self._spans[group][1] >= first))

    def _numbers(self, batch: pa.RecordBatch, start: int, before: int) -> np.ndarray:
        """Row numbers, int64 [N]; before: the last one that was read."""
        if not self._numbered:
            return np.arange(start, start + len(batch))
        rows = batch.column(ROW)
        if rows.null_count:
            raise ContractError(f"{self._path}, column {ROW}", "no missing value", f"{rows.null_count}")
        rows_N = rows.to_numpy().astype(np.int64)
        back = np.flatnonzero(np.diff(rows_N, prepend=before) <= 0)
        if len(back):
            line = int(back[0])
            got = f"{rows_N[line]} after {rows_N[line - 1] if line else before}"
            raise ContractError(f"{self._path}, column {ROW}", "row numbers from 0 on, ascending", got)
        return rows_N

    def _values(self, batch: pa.RecordBatch, rows_N: np.ndarray) -> np.ndarray:
        """float32 [N, D]."""
        lists = batch.column(self._column)
        lengths_N = pc.list_value_length(lists).fill_null(-1).to_numpy()
        wrong = np.flatnonzero(lengths_N != self.width)
        if len(wrong):
            where = f"{self.where}, row {rows_N[wrong[0]]}"
            got = "a missing value" if lengths_N[wrong[0]] < 0 else lengths_N[wrong[0]]
            raise ContractError(where, f"a list of {self.width} floats", got)
        with np.errstate(over="ignore"):  # what is too large becomes inf, and is refused as such; so do missing ones
            flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return flat.reshape(len(batch), self.width)


def _group_rows(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _spans(file: pq.ParquetFile, path: Path) -> list[tuple[int, int]] | None:
    """First and last row number of every group, by the file's statistics; None where these are not all there, or not in
    order: then no group is left out unread, and the first number out of order is found.

    Raises ContractError where they are no numbers.
    """
    kind = file.schema_arrow.field(ROW).type
    if not pa.types.is_integer(kind):
        raise ContractError(f"{path}, column {ROW}", "integers", kind)
    spans: list[tuple[int, int]] = []
    for group in range(file.num_row_groups):
        found = file.metadata.row_group(group)
        columns = [found.column(place) for place in range(found.num_columns)]
        statistics = next(column.statistics for column in columns if column.path_in_schema == ROW)
        before = spans[-1][1] if spans else -1
        if statistics is None or not statistics.has_min_max or statistics.min <= before:
            return None
        spans.append((statistics.min, statistics.max))
    return spans


def _last_row(file: pq.ParquetFile) -> int:
    if not file.metadata.num_rows:
        return -1
    last = max(group for group, rows in enumerate(_group_rows(file)) if rows)
    return int(file.read_row_group(last, columns=[ROW])[ROW][-1].as_py() or 0)


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
