"""The embedding tables of items, each item's row in them, and the other properties of items that batches carry.

Shapes: I item ids (0 is the unknown item), F item features, G granularities, L levels of a SID, U items of a batch, N
items of items.parquet, V width of a content vector.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidrec.config.item import Item, SemanticItem
from sidrec.config.item_parts import ExactIndex, HidIndex, ManagedCollisionIndex, ModuloIndex
from sidrec.config.section import granularity_levels
from sidrec.data.rows import ITEM
from sidrec.data.worker import Content, WorkerItems
from sidrec.io.files import column_type, readable
from sidrec.io.local_cache import local_file
from sidrec.io.places import Place
from sidrec.schema import ITEM_ID, TRAIN_IMPRESSIONS, UNKNOWN_ID, ContractError, Manifest
from sidrec.serve.id_lookup import splitmix64
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import Subwords, granularity_rows, radix_ids, rows_by_extension
from sidrec.sid.item_vectors import VECTORS, mapped_array, read_item_vectors

HID = "hid"
"""Name of the table of hashed item ids, and of its feature."""
SHARED = "sid"
"""Name of a table that all SID features share."""
MOST_IDS = np.iinfo(ITEM).max


@dataclass(frozen=True)
class ItemTable:
    """An embedding table: its number of rows, and the features that are looked up in it.

    managed: the section of a table that assigns its rows to ids during training; None for other tables.
    """

    rows: int
    features: tuple[str, ...]
    managed: ManagedCollisionIndex | None = None


@dataclass(frozen=True)
class ItemTables:
    """The tables of an item kind, and what a batch looks up for each item.

    tables: table name -> table; a table of one feature has the feature's name.
    rows_IF: int32 table row of every item id, features in the order of the tables; for a managed table, the id. Row 0
        means "unknown" in every table: such items are not looked up in it. Item 0 is unknown everywhere.
    token_weights_IW: float32 token weights. granules_IG: int32 granule numbers, 0 for none. content: content vectors.
        Width 0, or None, if the model does not use them.
    codes_IL: int32 SID of every item id, -1 without one, if the loader searches histories by SID; else of width 0.
    """

    tables: Mapping[str, ItemTable]
    rows_IF: np.ndarray
    token_weights_IW: np.ndarray
    granules_IG: np.ndarray
    content: Content | None = None
    codes_IL: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    _on: dict[torch.device, "ItemRows"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the F features."""
        return tuple(feature for table in self.tables.values() for feature in table.features)

    @property
    def sid_tables(self) -> tuple[str, ...]:
        """Names of the tables whose rows are codes of the catalog."""
        return tuple(name for name in self.tables if name != HID)

    def rows_of(self, feature: str) -> np.ndarray:
        """The row of every item id for one feature, int32 [I]."""
        return self.rows_IF[:, self.features.index(feature)]

    def on(self, device: torch.device) -> "ItemRows":
        """The arrays by item id on a device. Copied there once; on a CPU they share the arrays' memory."""
        if device not in self._on:
            arrays = (self.rows_IF, self.token_weights_IW, self.granules_IG)
            assert not any(array[:1].any() for array in arrays), "item 0 is unknown"
            self._on[device] = ItemRows(*(torch.from_numpy(array).to(device) for array in arrays))
        return self._on[device]

    def for_workers(self) -> WorkerItems:
        """What the loader's workers know of the items."""
        known_I = np.arange(len(self.rows_IF)) > 0
        masks: list[np.ndarray] = []
        has_row: dict[str, np.ndarray | None] = {}
        for name in self.features:
            has_row_I = self.rows_of(name) > 0
            same = next((mask_I for mask_I in masks if np.array_equal(mask_I, has_row_I)), None)
            if same is None:
                masks.append(has_row_I)
            has_row[name] = None if np.array_equal(has_row_I, known_I) else has_row_I if same is None else same
        return WorkerItems(len(self.rows_IF), has_row, self.content)

    def as_trained(self, rows: Mapping[str, int]) -> "ItemTables":
        """These tables with as many rows as a trained model's; items without a row there are unknown in that table.

        rows: table -> rows, of all these tables. Managed tables know by themselves which ids they have met.
        """
        tables = {name: replace(table, rows=rows[name]) for name, table in self.tables.items()}
        limits_F = [
            np.iinfo(np.int32).max if table.managed else table.rows for table in tables.values() for _ in table.features
        ]
        return replace(self, tables=tables, rows_IF=np.where(self.rows_IF < limits_F, self.rows_IF, np.int32(0)))

    def sid_rows(self, extension_I: np.ndarray, extensions: int) -> list[dict[str, int]]:
        """After each extension of the catalog from 0, the fit, on: SID table -> the rows that it had then.

        extension_I: of every item id. A table that hashed features or subwords share has the same rows always.
        """
        rows = {
            name: rows_by_extension(self.rows_of(name), extension_I, extensions)
            if name in self.tables[name].features
            else [self.tables[name].rows] * extensions
            for name in self.sid_tables
        }
        return [{name: counts[extension] for name, counts in rows.items()} for extension in range(extensions)]


class ItemRows(NamedTuple):
    """`ItemTables`' arrays by item id, on a device."""

    rows_IF: Tensor
    token_weights_IW: Tensor
    granules_IG: Tensor


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
    content: Content | None = None,
) -> ItemTables:
    """The tables and per-item properties that an item kind needs.

    subwords: replace the granularities if `item.tokens` is of kind spm. content: content vectors by item id.
    Raises ContractError if the kind needs a catalog and there is none, if it needs token weights and the catalog has
    none, for granularities deeper than the catalog's levels, and for more item ids than int32 has.
    """
    ids = manifest.ids[ITEM_ID]
    if ids > MOST_IDS:
        raise ContractError(f"manifest.json, ids.{ITEM_ID}", f"at most {MOST_IDS} item ids", ids)
    lookups = [_hid(item.hids, ids)] if item.hids else []
    weights_IW, granules_IG = np.zeros((ids, 0), np.float32), np.zeros((ids, 0), np.int32)
    if (sids := item.sids) is not None:
        if catalog is None:
            raise ContractError("model.item", f"a catalog, which items of kind {item.kind} need", "none")
        codes_IL = catalog.codes_by_id(ids)
        extension_I = catalog.extension_by_id(ids)
        numbered = cache(partial(granularity_rows, codes_IL, extension_I=extension_I))  # each granularity once
        lookups += [_subwords(subwords, codes_IL)] if subwords else _granularities(sids, codes_IL, numbered)
        if sids.token_weights != "off":
            weights_IW = granularity_weights(catalog.weights_by_id(ids), sids.granularities)
        if sids.needs_granules:
            granules_IG = np.stack([numbered(name)[0] for name in sids.granularities], axis=1).astype(np.int32)
    tables = {lookup.name: lookup.table for lookup in lookups}
    for name, table in tables.items():
        if table.rows > MOST_IDS:
            raise ContractError(f"model.item, table {name}", f"at most {MOST_IDS} rows", table.rows)
    rows_IF = np.concatenate([lookup.rows_IF for lookup in lookups], axis=1, dtype=np.int32, casting="same_kind")
    for array in (rows_IF, weights_IW, granules_IG):
        array[UNKNOWN_ID] = 0
    return ItemTables(tables, rows_IF, weights_IW, granules_IG, content)


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
    """numbered: granularity -> (row of every item id in a table of its own, that table's number of rows)."""
    if isinstance(item.index, ExactIndex):
        exact = {name: numbered(name) for name in item.granularities}
        return [_Lookup(name, ItemTable(rows, (name,)), rows_I[:, None]) for name, (rows_I, rows) in exact.items()]
    rows = item.index.rows
    hashed = [hashed_rows(radix_ids(codes_IL, name), name, rows) for name in item.granularities]
    return [_Lookup(SHARED, ItemTable(rows, item.granularities), np.stack(hashed, axis=1))]


def _subwords(subwords: Subwords, codes_IL: np.ndarray) -> _Lookup:
    rows_IF = subwords.rows_of(codes_IL)
    return _Lookup(SHARED, ItemTable(subwords.rows, tuple(f"spm_{n + 1}" for n in range(rows_IF.shape[1]))), rows_IF)


def granularity_weights(weights_IL: np.ndarray, granularities: tuple[str, ...]) -> np.ndarray:
    """float32 [I, G]: the weight of a granularity is the product of the weights of the tokens that it joins."""
    levels = [[level - 1 for level in granularity_levels(name)] for name in granularities]
    return np.stack([weights_IL[:, joined].prod(axis=1) for joined in levels], axis=1).astype(np.float32)


# The hashing trick.


def hashed_rows(ids_I: np.ndarray, feature: str, rows: int) -> np.ndarray:
    """Rows of ids in a table of `rows` rows: int64 [I] in [1, rows), 0 for ids below 0.

    Each feature adds its own offset, so that features that share a table collide differently. Ids are mixed
    (splitmix64) before the modulo: composed ids have a round radix, and a plain modulo by a round number of rows would
    keep their last code alone.
    """
    offset = np.uint64(int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little"))
    mixed_I = splitmix64(ids_I.astype(np.uint64) + offset)
    return np.where(ids_I < 0, 0, 1 + (mixed_I % np.uint64(rows - 1)).astype(np.int64))


# Properties of items from items.parquet: content vectors and train impressions.


class ContentVectors:
    """Content vectors by item id (a Content), in a scratch folder that is removed with this object.

    Loader processes map the file themselves, so that no vector is copied to them.
    """

    def __init__(self, items: Place, columns: tuple[str, ...], ids: int) -> None:
        """Reads vector columns, each scaled to unit length, and concatenates them. ids: number of item ids of the log.

        Raises ContractError as `read_item_vectors` does.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="sidrec-content-")
        self._folder = Path(self._scratch.name)
        found = read_item_vectors(items, columns, normalize=True, scratch=self._folder)
        self.width = found.vectors_NV.shape[1]
        known_N = found.item_ids_N < ids
        self._place_I = np.full(ids, -1)
        self._place_I[found.item_ids_N[known_N]] = np.flatnonzero(known_N)
        self._vectors_NV: np.ndarray | None = None

    def __getitem__(self, ids_U: np.ndarray) -> np.ndarray:
        """float32 [U, V]; zeros for items without content."""
        if self._vectors_NV is None:
            self._vectors_NV = mapped_array(self._folder, VECTORS)
        place_U = self._place_I[ids_U]
        vectors_UV = self._vectors_NV[place_U]
        vectors_UV[place_U < 0] = 0
        return vectors_UV

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_scratch": None, "_vectors_NV": None}


def read_train_impressions(items: Place) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Item ids and how often the train split shows each, in the file's order: int64 [N] each.

    Raises ContractError naming the column of items.parquet that is wrong.
    """
    if not items.is_file():
        raise ContractError(items, "the items, as data_prep writes them", "no such file")
    with readable(items, "a readable parquet file of items"):
        schema = pq.read_schema(local_file(items))
    for column in (ITEM_ID, TRAIN_IMPRESSIONS):
        kind = column_type(schema, column, items)
        if kind != pa.int64():
            raise ContractError(f"{items}, column {column}", "int64", kind)
    with readable(items, "a readable parquet file of items"):
        table = pq.read_table(local_file(items), columns=[ITEM_ID, TRAIN_IMPRESSIONS])
    for column in (ITEM_ID, TRAIN_IMPRESSIONS):
        if table[column].null_count:
            raise ContractError(f"{items}, column {column}", "no missing value", f"{table[column].null_count} missing")
    impressions = table[TRAIN_IMPRESSIONS].to_numpy()
    if (impressions < 0).any():
        raise ContractError(f"{items}, column {TRAIN_IMPRESSIONS}", "counts of at least 0", int(impressions.min()))
    return table[ITEM_ID].to_numpy(), impressions


def impressions_by_id(items: Place, ids: int) -> NDArray[np.int64]:
    """Train impressions indexed by item id: int64 [ids], 0 for ids that the file lacks.

    Raises ContractError as `read_train_impressions` does.
    """
    item_N, impressions_N = read_train_impressions(items)
    known_N = (item_N >= 0) & (item_N < ids)
    return np.bincount(item_N[known_N], impressions_N[known_N], minlength=ids).astype(np.int64)
