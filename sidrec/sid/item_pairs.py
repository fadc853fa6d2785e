"""Item pairs from pairs.parquet, as row numbers of items.parquet. Shapes: N items, P pairs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.parquet_file import column_type, readable
from sidrec.schema import ITEM_ID, OTHER_ID, ContractError


def read_item_pairs(path: Path, item_ids_N: np.ndarray) -> np.ndarray:
    """int64 [P, 2]: row numbers of items that belong together, in the file's order and direction.

    item_ids_N: ids by row, every id once. Raises ContractError for a missing or unreadable file, columns that are no
    int64 or lack values, no pairs, ids that no item has, and an item paired with itself.
    """
    if not path.is_file():
        expected = "item pairs for the learner's losses, as `python -m data_prep.behavior` writes them"
        raise ContractError(path, expected, "no such file")
    with readable(path):
        table = pq.read_table(path)
    if not {ITEM_ID, OTHER_ID} <= set(table.column_names):
        raise ContractError(path, f"columns {ITEM_ID} and {OTHER_ID}", table.column_names)
    for name in (ITEM_ID, OTHER_ID):
        column_type(table.schema, name, path)
    if not table.num_rows:
        raise ContractError(path, "at least one pair", "no rows")
    rows_P2 = np.stack([_rows(table[name], name, path, item_ids_N) for name in (ITEM_ID, OTHER_ID)], axis=1)
    alike = np.flatnonzero(rows_P2[:, 0] == rows_P2[:, 1])
    if len(alike):
        item = item_ids_N[rows_P2[alike[0], 0]]
        raise ContractError(f"{path}, row {alike[0]}", "two different items", f"item {item} twice")
    return rows_P2


def _rows(column: pa.ChunkedArray, name: str, path: Path, item_ids_N: np.ndarray) -> np.ndarray:
    if column.type != pa.int64() or column.null_count:
        missing = f"{column.type} with {column.null_count} missing"
        raise ContractError(f"{path}, column {name}", "int64 without missing values", missing)
    ids_P = column.to_numpy()
    order = np.argsort(item_ids_N, kind="stable")
    place_P = np.minimum(np.searchsorted(item_ids_N, ids_P, sorter=order), len(order) - 1)
    rows_P = order[place_P]
    unknown = np.flatnonzero(item_ids_N[rows_P] != ids_P)
    if len(unknown):
        got = f"{ids_P[unknown[0]]} ({len(unknown)} such rows)"
        raise ContractError(f"{path}, row {unknown[0]}, column {name}", "an id of items.parquet", got)
    return rows_P
