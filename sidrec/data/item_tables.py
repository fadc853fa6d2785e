"""Which row of which embedding table an item has: HID and SID tables side by side.

Shapes: I item ids (0 is "not known"), G tables, W weighted granularities, L levels of a SID.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sidrec.config.granularity import granularity_levels
from sidrec.config.item import HidItem, Item, SidItem
from sidrec.schema import ITEM_ID, ContractError, Manifest
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import granularity_rows

HID = "hid"
"""Name of the table of hashed item ids; SID tables are called as their granularity."""


@dataclass(frozen=True)
class ItemTables:
    """names: G table names, in the order of the item features. table_rows: rows of each table.

    rows_IG: int64 table row of every item id; row 0 is "not known" in every table, and such items get no lookup there.
    weights_IW: float32 token weight of every item id at every granularity, in the order of the SID tables; W is 0 where
        the model uses no token weights.
    """

    names: tuple[str, ...]
    table_rows: tuple[int, ...]
    rows_IG: np.ndarray
    weights_IW: np.ndarray

    @property
    def sizes(self) -> Mapping[str, int]:
        """Table name -> number of rows."""
        return dict(zip(self.names, self.table_rows, strict=True))

    def rows_of(self, name: str) -> np.ndarray:
        """The row of every item id in one table, int64 [I]."""
        return self.rows_IG[:, self.names.index(name)]


def item_tables(item: Item, manifest: Manifest, catalog: Catalog | None) -> ItemTables:
    """The tables that an item kind needs: hid, SID granularities, or both.

    Raises ContractError when SIDs are needed and there is no catalog, or token weights and it has none; granularities
    deeper than the catalog's levels are refused as `granularity_rows` does.
    """
    ids = manifest.ids[ITEM_ID]
    columns: dict[str, tuple[np.ndarray, int]] = {}
    weights_IW = no_weights(ids)
    if not isinstance(item, SidItem):
        columns[HID] = np.arange(ids), ids
    if not isinstance(item, HidItem):
        if catalog is None:
            raise ContractError("model.item", f"a catalog, which items of kind {item.kind} need", "none")
        codes_IL = catalog.codes_by_id(ids)
        columns |= {name: granularity_rows(codes_IL, name) for name in item.granularities}
        if item.token_weights != "off":
            weights_IW = granularity_weights(catalog.weights_by_id(ids), item.granularities)
    rows_IG = np.stack([rows_I for rows_I, _ in columns.values()], axis=1)
    return ItemTables(tuple(columns), tuple(rows for _, rows in columns.values()), rows_IG, weights_IW)


def no_weights(ids: int) -> np.ndarray:
    """The token weights of a model that uses none: float32 [ids, 0]."""
    return np.zeros((ids, 0), dtype=np.float32)


def granularity_weights(weights_IL: np.ndarray, granularities: tuple[str, ...]) -> np.ndarray:
    """float32 [I, W]: a granularity weighs as much as the product of the tokens that it joins."""
    levels = [[level - 1 for level in granularity_levels(name)] for name in granularities]
    return np.stack([weights_IL[:, joined].prod(axis=1) for joined in levels], axis=1).astype(np.float32)
