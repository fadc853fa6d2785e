"""Tables of a checkpoint as files that others read: safetensors and parquet, written a range of rows at a time.

Shapes: R rows of a table, D its width, N rows of a range.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidrec.checkpoint.stored_table import PART, StoredTable, rows_of_size
from sidrec.checkpoint.tensor_file import header_of

ROW, EMBEDDING = "row", "embedding"
"""Columns of a parquet file: the number of a row, and its values."""

RowIds = Callable[[int, int], Mapping[str, pa.Array]]
"""Rows [first, last) -> columns that say what these rows stand for."""


def no_ids(first: int, last: int) -> Mapping[str, pa.Array]:
    """For tables of whose rows nothing is said but their numbers."""
    return {}


def is_exported(path: Path) -> bool:
    """Whether a file has what the writers below give it: one table, and perhaps its optimizer's state."""
    try:
        if path.suffix == ".parquet":
            names = pq.read_schema(path).names
            return names[:1] == [ROW] and EMBEDDING in names
        with safe_open(path, framework="pt") as file:
            tensors = list(file.keys())
        table = min(tensors, key=len, default="")
        return all(name == table or name.startswith(f"{table}/") for name in tensors)
    except (pa.ArrowException, SafetensorError, OSError):
        return False


def write_safetensors(path: Path, tensors: Mapping[str, StoredTable], progress: Callable[[int], object]) -> None:
    """Writes each as one tensor of that name, of the type that it is stored in. progress: is told of bytes written."""
    with path.open("wb") as file:
        file.write(header_of((name, table.dtype, table.shape) for name, table in tensors.items()))
        for table in tensors.values():
            for _, rows in table.parts():
                file.write(rows.reshape(-1).view(torch.uint8).numpy().data)
                progress(rows.nbytes)


def write_parquet(
    path: Path, tensors: Mapping[str, StoredTable], progress: Callable[[int], object], ids: RowIds = no_ids
) -> None:
    """Writes a line per row: its number, what it stands for, and each tensor [R, D] as a column of D float32.

    tensors: column -> table, all of as many rows. progress: is told of bytes read.
    """
    count = next(iter(tensors.values())).shape[0]
    step = rows_of_size(PART, sum(table.bytes // max(1, count) for table in tensors.values()))
    with pq.ParquetWriter(path, _schema(tensors, ids), compression="none", use_dictionary=False) as file:
        for first in range(0, count, step):
            last = min(first + step, count)
            rows = {name: table.rows(first, last) for name, table in tensors.items()}
            columns = {ROW: pa.array(np.arange(first, last)), **ids(first, last)}
            columns |= {name: _lists(rows_ND) for name, rows_ND in rows.items()}
            file.write_table(pa.table(columns))
            progress(sum(rows_ND.nbytes for rows_ND in rows.values()))


def _schema(tensors: Mapping[str, StoredTable], ids: RowIds) -> pa.Schema:
    said = [(name, array.type) for name, array in ids(0, 0).items()]
    widths = {name: table.shape[1] for name, table in tensors.items()}
    lists = [(name, pa.list_(pa.float32(), width)) for name, width in widths.items()]
    return pa.schema([(ROW, pa.int64()), *said, *lists])


def _lists(rows_ND: Tensor) -> pa.Array:
    values = pa.array(rows_ND.to(torch.float32).reshape(-1).numpy())
    return pa.FixedSizeListArray.from_arrays(values, rows_ND.shape[1])
