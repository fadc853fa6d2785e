"""items.parquet, and the cat_* ids that items lend to the log."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.events import Items
from data_prep.id_map import IdMap
from sidrec import schema

ROW_GROUP = 16_384


def category_ids(items: Items) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """cat_* column -> int64 id per item id (row 0 is "not known"), and column -> number of ids."""
    by_item: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for column, values in items.categories.items():
        ids = IdMap(sorted(set(pc.unique(values).to_pylist()) - {None, ""}))
        by_item[column] = np.concatenate([[0], ids.add(pa.chunked_array([values]))])
        sizes[column] = len(ids) + 1
    return by_item, sizes


def write_items(path: Path, items: Items, train_impressions: np.ndarray) -> None:
    """Writes items.parquet in one step. train_impressions: int64 per item id, 0 included."""
    table = items.table
    table = table.add_column(0, schema.ITEM_ID, pa.array(np.arange(1, table.num_rows + 1)))
    table = table.add_column(1, schema.TRAIN_IMPRESSIONS, pa.array(train_impressions[1:]))
    for column, vectors in items.vectors.items():
        table = table.append_column(column, vector_column(vectors))
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial, row_group_size=ROW_GROUP)
    partial.replace(path)


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """float [items, width] as a column of fixed-size float32 lists."""
    flat = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])
