"""Which row of which embedding table an item has: HID and SID tables side by side; and what else is known of items.

Shapes: I item ids (0 is "not known"), F item features, W weighted granularities, L levels of a SID.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sidrec.config.granularity import granularity_levels
from sidrec.config.item import HidItem, Item, SidItem
from sidrec.data.batch_arrays import PER_BAG, PerItem
from sidrec.schema import ITEM_ID, ContractError, Manifest
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import granularity_rows

HID = "hid"
"""Name of the table of hashed item ids, and of its feature."""


@dataclass(frozen=True)
class ItemTable:
    """An embedding table of items: its rows, and the features that are looked up in it."""

    rows: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class ItemTables:
    """tables: table name -> table; a table of one feature is called as that feature.

    rows_IF: int64 table row of every item id, features in the order of the tables; row 0 is "not known" in every table,
        and such items get no lookup there.
    per_item: field of PER_BAG -> its values for every item id, of width 0 where the model uses none.
    """

    tables: Mapping[str, ItemTable]
    rows_IF: np.ndarray
    per_item: Mapping[str, PerItem]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the F features."""
        return tuple(feature for table in self.tables.values() for feature in table.features)

    def rows_of(self, feature: str) -> np.ndarray:
        """The row of every item id for one feature, int64 [I]."""
        return self.rows_IF[:, self.features.index(feature)]


def item_tables(item: Item, manifest: Manifest, catalog: Catalog | None) -> ItemTables:
    """The tables that an item kind needs: hid, SID granularities, or both.

    Raises ContractError when SIDs are needed and there is no catalog, or token weights and it has none; granularities
    deeper than the catalog's levels are refused as `granularity_rows` does.
    """
    ids = manifest.ids[ITEM_ID]
    tables: dict[str, ItemTable] = {}
    columns: list[np.ndarray] = []
    per_item = unused_per_item(ids)
    if not isinstance(item, SidItem):
        tables[HID] = ItemTable(ids, (HID,))
        columns.append(np.arange(ids))
    if not isinstance(item, HidItem):
        if catalog is None:
            raise ContractError("model.item", f"a catalog, which items of kind {item.kind} need", "none")
        codes_IL = catalog.codes_by_id(ids)
        for name in item.granularities:
            rows_I, rows = granularity_rows(codes_IL, name)
            tables[name] = ItemTable(rows, (name,))
            columns.append(rows_I)
        if item.token_weights != "off":
            per_item["token_weights_UW"] = granularity_weights(catalog.weights_by_id(ids), item.granularities)
    return ItemTables(tables, np.stack(columns, axis=1), per_item)


def unused_per_item(ids: int) -> dict[str, PerItem]:
    """What a model uses that wants nothing of items but their lookups: arrays [ids, 0]."""
    return {field: np.zeros((ids, 0), dtype) for field, dtype in PER_BAG.items()}


def granularity_weights(weights_IL: np.ndarray, granularities: tuple[str, ...]) -> np.ndarray:
    """float32 [I, W]: a granularity weighs as much as the product of the tokens that it joins."""
    levels = [[level - 1 for level in granularity_levels(name)] for name in granularities]
    return np.stack([weights_IL[:, joined].prod(axis=1) for joined in levels], axis=1).astype(np.float32)
