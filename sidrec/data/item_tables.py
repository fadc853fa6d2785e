"""Which row of which embedding table an item has: HID and SID tables side by side; and what else is known of items.

Shapes: I item ids (0 is "not known"), F item features, G granularities, L levels of a SID.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from sidrec.config.alignment import MatchStatsAlignment
from sidrec.config.granularity import granularity_levels
from sidrec.config.index import ExactIndex, HidIndex, ManagedCollisionIndex, ModuloIndex
from sidrec.config.item import HashedItem, Item, SemanticItem
from sidrec.data.batch_arrays import PER_BAG, PerItem
from sidrec.data.hashed_rows import hashed_rows
from sidrec.schema import ITEM_ID, UNKNOWN_ID, ContractError, Manifest
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import granularity_rows, radix_ids
from sidrec.sid.subwords import Subwords

HID = "hid"
"""Name of the table of hashed item ids, and of its feature."""
SHARED = "sid"
"""Name of a table that all parts of a SID share."""


@dataclass(frozen=True)
class ItemTable:
    """An embedding table of items: its rows, and the features that are looked up in it.

    managed: how the table itself deals its rows to the ids that are looked up, where it does.
    """

    rows: int
    features: tuple[str, ...]
    managed: ManagedCollisionIndex | None = None


@dataclass(frozen=True)
class ItemTables:
    """tables: table name -> table; a table of one feature is called as that feature.

    rows_IF: int64 table row of every item id, features in the order of the tables; row 0 is "not known" in every table,
        and such items get no lookup there. For a managed table, the id itself.
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


class _Lookup(NamedTuple):
    """A table, and the row of every item id for each of its features: int64 [I, features]."""

    name: str
    table: ItemTable
    rows_IF: np.ndarray


def item_tables(
    item: Item,
    manifest: Manifest,
    catalog: Catalog | None,
    subwords: Subwords | None = None,
    content: PerItem | None = None,
) -> ItemTables:
    """The tables that an item kind needs, hid or SIDs or both; and what it wants to know of items besides.

    subwords: in the place of granularities, where the item's tokens are such. content: content vectors by item id.
    Raises ContractError when SIDs are needed and there is no catalog, or token weights and it has none; granularities
    deeper than the catalog's levels are refused as `granularity_rows` does.
    """
    ids = manifest.ids[ITEM_ID]
    lookups = [_hid(item.hid_index, ids)] if isinstance(item, HashedItem) else []
    per_item = unused_per_item(ids)
    if isinstance(item, SemanticItem):
        if catalog is None:
            raise ContractError("model.item", f"a catalog, which items of kind {item.kind} need", "none")
        codes_IL = catalog.codes_by_id(ids)
        numbered = cache(partial(granularity_rows, codes_IL))  # granules are numbered once, whoever asks
        lookups += [_subwords(subwords, codes_IL)] if subwords else _granularities(item, codes_IL, numbered)
        if item.token_weights != "off":
            per_item["token_weights_UW"] = granularity_weights(catalog.weights_by_id(ids), item.granularities)
        if isinstance(item.alignment, MatchStatsAlignment):
            granules = [numbered(name)[0] for name in item.granularities]
            per_item["granules_UG"] = np.stack(granules, axis=1)
    if content is not None:
        per_item["content_UV"] = content
    tables = {lookup.name: lookup.table for lookup in lookups}
    return ItemTables(tables, np.concatenate([lookup.rows_IF for lookup in lookups], axis=1), per_item)


def _hid(index: HidIndex, ids: int) -> _Lookup:
    ids_I = np.arange(ids)
    match index:
        case ExactIndex():
            return _Lookup(HID, ItemTable(ids, (HID,)), ids_I[:, None])
        case ManagedCollisionIndex():
            return _Lookup(HID, ItemTable(index.rows, (HID,), managed=index), ids_I[:, None])
        case ModuloIndex():
            hashed_I = hashed_rows(np.where(ids_I == UNKNOWN_ID, -1, ids_I), HID, index.rows)
            return _Lookup(HID, ItemTable(index.rows, (HID,)), hashed_I[:, None])


def _granularities(
    item: SemanticItem, codes_IL: np.ndarray, numbered: Callable[[str], tuple[np.ndarray, int]]
) -> list[_Lookup]:
    """numbered: granularity -> row of every item id in a table of its own, and the table's rows."""
    if isinstance(item.index, ExactIndex):
        exact = {name: numbered(name) for name in item.granularities}
        return [_Lookup(name, ItemTable(rows, (name,)), rows_I[:, None]) for name, (rows_I, rows) in exact.items()]
    rows = item.index.rows
    hashed = [hashed_rows(radix_ids(codes_IL, name), name, rows) for name in item.granularities]
    return [_Lookup(SHARED, ItemTable(rows, item.granularities), np.stack(hashed, axis=1))]


def _subwords(subwords: Subwords, codes_IL: np.ndarray) -> _Lookup:
    rows_IF = subwords.rows_of(codes_IL)
    return _Lookup(SHARED, ItemTable(subwords.rows, tuple(f"spm_{n + 1}" for n in range(rows_IF.shape[1]))), rows_IF)


def unused_per_item(ids: int) -> dict[str, PerItem]:
    """What a model uses that wants nothing of items but their lookups: arrays [ids, 0]."""
    return {field: np.zeros((ids, 0), dtype) for field, dtype in PER_BAG.items()}


def granularity_weights(weights_IL: np.ndarray, granularities: tuple[str, ...]) -> np.ndarray:
    """float32 [I, G]: a granularity weighs as much as the product of the tokens that it joins."""
    levels = [[level - 1 for level in granularity_levels(name)] for name in granularities]
    return np.stack([weights_IL[:, joined].prod(axis=1) for joined in levels], axis=1).astype(np.float32)
