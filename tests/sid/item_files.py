"""Small items.parquet files for tests."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def vector_column(vectors_ND: np.ndarray) -> pa.Array:
    """A fixed-size float32 list column, as the contract wants it."""
    values = pa.array(np.asarray(vectors_ND, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(values, vectors_ND.shape[1])


def write_items(path: Path, item_ids: object, row_group_size: int | None = None, **columns: np.ndarray) -> Path:
    """Writes `path` with an item_id column and vector columns of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"item_id": pa.array(item_ids, pa.int64())}
    table |= {name: vector_column(vectors) for name, vectors in columns.items()}
    pq.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def clustered_vectors(items: int, width: int = 8, seed: int = 0) -> np.ndarray:
    """float32 [items, width]: eight directions, and noise around them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, width))
    noise = 0.2 * rng.standard_normal((items, width))
    return (centres[rng.integers(8, size=items)] + noise).astype(np.float32)
