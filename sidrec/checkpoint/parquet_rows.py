"""Rows of a table in a parquet file: a column of lists of floats, and perhaps one that numbers the rows.

Shapes: R rows in the file, D their width, G rows of a row group, N rows of a part.
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
from sidrec.parquet_file import readable
from sidrec.schema import ContractError


class ParquetRows:
    """A column of lists, all of one length. A column `row` of ascending numbers says which rows they are; without one
    they are rows 0, 1, 2... of the table."""

    def __init__(self, path: Path, column: str) -> None:
        """column: its name, or "". Raises ContractError where there is no such column."""
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
        """As TableSource says. Raises ContractError also for rows out of order and lists of another length.

        Of row groups beside the range the row numbers alone are read. Their statistics would tell as much, but a broken
        one ends the process: pyarrow 26 does not catch what its Parquet library throws there.
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
        step, done = rows_of_size(PART, self.width * torch.float32.itemsize), 0
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
        """A broken file can have columns of other lengths than it says."""
        if rows > at_most:
            raise ContractError(self._path, f"{self._groups[group]} rows in row group {group}", "columns of others")

    def _numbers(self, file: pq.ParquetFile, group: int, before: int) -> np.ndarray:
        """Row numbers of a row group, int64 [G]; before: the last of the group before."""
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
        with np.errstate(over="ignore"):  # what is too large becomes inf, and is refused as such; so do missing ones
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
