"""What a plugged model keeps of a catalog: the table row of every item id at every granularity.

Shapes: I item ids, G granularities, W weighted granularities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidrec.config.item import SidCoordItem
from sidrec.data.item_tables import granularity_weights
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import granularity_rows


@dataclass(frozen=True)
class CatalogRows:
    """granularities: G table names. table_rows: rows of each table.

    rows_IG: int32, row 0 stands for "no SID" and is never looked up. weights_IW: float32 token weights, W = 0 where
    none are used. fingerprint: the catalog's.
    """

    granularities: tuple[str, ...]
    table_rows: tuple[int, ...]
    rows_IG: Tensor
    weights_IW: Tensor
    fingerprint: str


def catalog_rows(catalog: Catalog, config: SidCoordItem, items: int) -> CatalogRows:
    """Rows of the ids in [0, items), as many as the item table has rows.

    Raises ContractError when the catalog has ids beyond them, lacks levels that a granularity joins, or lacks token
    weights that the config wants.
    """
    if len(catalog) and catalog.item_ids_N[-1] >= items:
        expected = f"ids below {items}, the rows of the item table"
        raise ContractError("catalog, item ids", expected, int(catalog.item_ids_N[-1]))
    codes_IL = catalog.codes_by_id(items)
    columns = [granularity_rows(codes_IL, name) for name in config.granularities]
    weights_IW = np.zeros((items, 0), np.float32)
    if config.token_weights != "off":
        weights_IW = granularity_weights(catalog.weights_by_id(items), config.granularities)
    return CatalogRows(
        granularities=config.granularities,
        table_rows=tuple(rows for _, rows in columns),
        rows_IG=torch.from_numpy(_stacked([rows_I for rows_I, _ in columns])),
        weights_IW=torch.from_numpy(weights_IW),
        fingerprint=catalog.fingerprint,
    )


def _stacked(columns_I: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(columns_I, axis=1).astype(np.int32)
