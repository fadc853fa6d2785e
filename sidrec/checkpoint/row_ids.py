"""What the rows of an exported table stand for: ids of the log, or codes of the catalog.

Shapes: R rows of a table, I item ids, L levels of a SID.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from sidrec.checkpoint.piece import CheckpointError
from sidrec.checkpoint.table_writers import RowIds
from sidrec.config import Recipe
from sidrec.config.granularity import granularity_levels
from sidrec.config.index import ExactIndex
from sidrec.config.item import HashedItem, SemanticItem
from sidrec.data.item_tables import HID
from sidrec.schema import ITEM_ID, LOG, load_manifest
from sidrec.sid.catalog import load_catalog
from sidrec.sid.granularity import granularity_rows


def row_ids(recipe: Recipe, table: str, rows: int, fingerprint: str | None) -> RowIds:
    """Columns for the rows of a table: item_id or the log's id column, or sid_1, sid_2... of a SID's part; row 0, which
    stands for what is not known, has id 0 and no codes.

    fingerprint: of the catalog that the checkpoint was trained with. Raises CheckpointError where ids share rows or
    rows change owners, and where the recipe's catalog or log is not the checkpoint's any more.
    """
    item = recipe.model.item
    if table in recipe.model.context:
        return _numbered(table)
    if table == HID and isinstance(item, HashedItem) and isinstance(item.hid_index, ExactIndex):
        return _numbered(ITEM_ID)
    if isinstance(item, SemanticItem) and table in item.granularities:
        return _codes(recipe, table, rows, fingerprint)
    raise CheckpointError(f"--ids: expected a table with a row for each id, got {table}, whose rows ids share or swap")


def _numbered(column: str) -> RowIds:
    return lambda first, last: {column: pa.array(np.arange(first, last))}


def _codes(recipe: Recipe, table: str, rows: int, fingerprint: str | None) -> RowIds:
    catalog = load_catalog(recipe.data.catalog)
    if catalog.fingerprint != fingerprint:
        was = f"{recipe.data.catalog} as the checkpoint was trained with, {fingerprint}"
        raise CheckpointError(f"--ids: expected the catalog {was}, got {catalog.fingerprint}")
    codes_IL = catalog.codes_by_id(load_manifest(recipe.data.path / LOG).ids[ITEM_ID])
    rows_I, found = granularity_rows(codes_IL, table)
    if found != rows:
        log = f"{recipe.data.path} as the checkpoint was trained with, {rows:,} rows of {table}"
        raise CheckpointError(f"--ids: expected the log {log}, got {found:,}")
    columns = {}
    for level in granularity_levels(table):
        codes_R = np.full(rows, -1)
        codes_R[rows_I] = codes_IL[:, level - 1]
        columns[f"sid_{level}"] = codes_R
    return lambda first, last: _part(columns, first, last)


def _part(columns: Mapping[str, np.ndarray], first: int, last: int) -> dict[str, pa.Array]:
    parts = {name: codes_R[first:last] for name, codes_R in columns.items()}
    return {name: pa.array(codes_N, pa.int32(), mask=codes_N < 0) for name, codes_N in parts.items()}
