"""How often the train split shows each item: from items.parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidrec.parquet_file import column_type, readable
from sidrec.schema import ITEM_ID, TRAIN_IMPRESSIONS, ContractError


def read_train_impressions(items: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Item ids and their train impressions, in the file's order.

    Raises ContractError naming the column of items.parquet that is wrong.
    """
    if not items.is_file():
        raise ContractError(items, "the items, as data_prep writes them", "no such file")
    with readable(items, "a readable parquet file of items"):
        schema = pq.read_schema(items)
    for column in (ITEM_ID, TRAIN_IMPRESSIONS):
        kind = column_type(schema, column, items)
        if kind != pa.int64():
            raise ContractError(f"{items}, column {column}", "int64", kind)
    with readable(items, "a readable parquet file of items"):
        table = pq.read_table(items, columns=[ITEM_ID, TRAIN_IMPRESSIONS])
    for column in (ITEM_ID, TRAIN_IMPRESSIONS):
        if table[column].null_count:
            raise ContractError(f"{items}, column {column}", "no missing value", f"{table[column].null_count} missing")
    impressions = table[TRAIN_IMPRESSIONS].to_numpy()
    if (impressions < 0).any():
        raise ContractError(f"{items}, column {TRAIN_IMPRESSIONS}", "counts of at least 0", int(impressions.min()))
    return table[ITEM_ID].to_numpy(), impressions


def impressions_by_id(items: Path, ids: int) -> NDArray[np.int64]:
    """Train impressions indexed by item id: int64 [ids], 0 for ids that the file does not list.

    Raises ContractError as `read_train_impressions` does.
    """
    item_N, impressions_N = read_train_impressions(items)
    known_N = (item_N >= 0) & (item_N < ids)
    return np.bincount(item_N[known_N], impressions_N[known_N], minlength=ids).astype(np.int64)
