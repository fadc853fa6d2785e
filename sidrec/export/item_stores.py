"""The arrays of a bundle that hold rows of items and of context columns, made from a checkpoint part by part.

A SID that several items share is stored once: `index_sid.npy` leads from item ids to its row. Fusions that read the HID
or the item's token weights give each item a row of its own. HIDs of a hashed table are stored as that table, with
`index_hid.npy`.

Shapes: I item ids, V rows of SIDs (0 is none), R rows of a table, G SID features, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidrec.checkpoint.stored_tables import CheckpointTable, StoredTable
from sidrec.config import Recipe
from sidrec.data.dataset import Dataset
from sidrec.data.item_tables import HID
from sidrec.export.graph import HAS_SID, SID, item_inputs
from sidrec.model.items import ContentRepresentation, SemanticRepresentation
from sidrec.model.ranker import Ranker
from sidrec.model.semantic_part import ItemLookup
from sidrec.schema import ITEM_ID
from sidrec.serve.bundle import WEIGHTS, ContextColumn, Store
from sidrec.serve.row_store import Precision, write_rows

Part = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """Rows that are made when they are sliced. shape: of all. part: (first, last) -> these rows."""

    shape: tuple[int, int]
    part: Part

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        first, last, _ = rows.indices(self.shape[0])
        return self.part(first, last)


@dataclass(frozen=True)
class ItemStores:
    """Writes the stores of a run's items. precision: of vectors; counts and weights are f32, granules i32."""

    folder: Path
    recipe: Recipe
    data: Dataset
    ranker: Ranker
    tables: Mapping[str, CheckpointTable]
    precision: Precision

    def write(self) -> dict[str, Store]:
        """Input of the graph -> its store. Raises ValueError for a value that the precision cannot hold."""
        makers: dict[str, Callable[[], Store]] = {
            HID: self._hid,
            SID: self._sid,
            "content": self._content,
            "token_weights": lambda: self._written("token_weights", self.data.tables.token_weights_IW, "f32"),
            "granules": self._granules,
            "updates": self._updates,
        }
        return {name: makers[name]() for name in item_inputs(self.recipe.model.item) if name != HAS_SID}

    def _written(self, name: str, rows: Any, precision: Precision, index: str = "") -> Store:
        write_rows(self.folder, name, rows, precision)
        return Store(precision, index)

    def _hid(self) -> Store:
        return self._written(HID, self._hid_rows(self.tables[HID].weight), self.precision, self._hid_index)

    def _hid_rows(self, table: StoredTable) -> Rows:
        """A row per row of the HID table, or per item id; 0 for an item that came after the training."""
        return table_rows(table, 0 if self._hid_index else len(self.data.tables.rows_IF))

    @cached_property
    def _hid_index(self) -> str:
        """The index of stores with a row per row of the HID table."""
        if self.recipe.model.item.hid_rows_are_ids:
            return ""
        np.save(self.folder / f"index_{HID}.npy", self.data.tables.rows_of(HID))
        return HID

    def _updates(self) -> Store:
        counts = self.tables[HID].updates
        assert counts is not None, "a model that reads updates counts them"
        return self._written("updates", self._hid_rows(counts), "f32", self._hid_index)

    def _content(self) -> Store:
        item, vectors, ids = self.ranker.item, self.data.tables.content, len(self.data.tables.rows_IF)
        assert isinstance(item, ContentRepresentation), "of kind content"
        assert vectors is not None, "content of this kind"

        def part(first: int, last: int) -> NDArray[Any]:
            content_UV = torch.from_numpy(np.ascontiguousarray(vectors[np.arange(first, last)]))
            with torch.no_grad():
                return item.embed(ItemLookup({}, content_UV[:, :0], content_UV=content_UV)).numpy()

        return self._written("content", Rows((ids, self.recipe.model.embedding_dim), part), self.precision)

    # SIDs.

    @cached_property
    def _item_of_sid(self) -> NDArray[np.int64]:
        """Of every row of SIDs, the first item that has it, [V]; row 0: none. Writes the index.

        Rows have the order of these items, so that a SID that only new items have comes last, and no row moves.
        """
        tables, item = self.data.tables, self.ranker.item
        assert isinstance(item, SemanticRepresentation), "a kind with SIDs"
        rows_IG = tables.rows_IF[:, [tables.features.index(name) for name in item.sids]]
        with_sid = np.flatnonzero(rows_IG.any(axis=1))
        row_of_item = np.zeros(len(tables.rows_IF), dtype=np.int32)
        if item.semantic.guided or item.semantic.multiply:
            first, row_of_item[with_sid] = with_sid, np.arange(1, len(with_sid) + 1)
        else:
            # combinations of codes that training did not meet have row 0; granules tell them apart
            sid_NG = np.concatenate([rows_IG, tables.granules_IG], axis=1)[with_sid]
            _, place, number = np.unique(sid_NG, axis=0, return_index=True, return_inverse=True)
            order = np.argsort(place)
            first, row_of_item[with_sid] = with_sid[place[order]], np.argsort(order)[number.ravel()] + 1
        np.save(self.folder / f"index_{SID}.npy", row_of_item)
        return np.concatenate([[0], first])

    def _sid(self) -> Store:
        item_V = self._item_of_sid
        rows = Rows((len(item_V), self.recipe.model.embedding_dim), lambda first, last: self._fused(item_V[first:last]))
        return self._written(SID, rows, self.precision, SID)

    def write_weights(self) -> tuple[str, ...]:
        """Writes the weights of the granularities in e_sid, a row for each SID. Returns the granularities' names; none
        for a model without such weights, which gets no file."""
        item = self.ranker.item
        if item.attention is None:
            return ()
        item_V = self._item_of_sid
        rows = Rows((len(item_V), len(item.sids)), lambda first, last: self._weights(item_V[first:last]))
        write_rows(self.folder, WEIGHTS, rows, "f16")
        return item.sids

    def _weights(self, item_N: NDArray[np.int64]) -> NDArray[Any]:
        """Weights of the granularities of these items, float32 [N, G]; 0 for item 0."""
        attention, found = self.ranker.item.attention, []
        assert attention is not None, "a kind with weights"
        with attention.watch(lambda *arguments: found.append(attention.weights(*arguments))):
            self._fused(item_N)
        return found[0].numpy() * (item_N > 0)[:, None]

    def _fused(self, item_N: NDArray[np.int64]) -> NDArray[Any]:
        """e_sid of these items, float32 [N, D]; 0 for item 0."""
        item, tables = self.ranker.item, self.data.tables
        assert isinstance(item, SemanticRepresentation), "a kind with SIDs"
        names = (*item.sids, HID) if item.semantic.guided else item.sids
        embedded = {name: self._embeddings(name, tables.rows_of(name)[item_N]) for name in names}
        weights_NW, granules_NG = (torch.from_numpy(a[item_N]) for a in (tables.token_weights_IW, tables.granules_IG))
        with torch.no_grad():
            fused_ND = item.semantic.embed(ItemLookup(embedded, weights_NW, granules_NG.long())).numpy()
        return fused_ND * (item_N > 0)[:, None]

    def _embeddings(self, feature: str, row_N: NDArray[np.int32]) -> Tensor:
        table = next(name for name, of in self.data.tables.tables.items() if feature in of.features)
        found_ND: Tensor = self._whole(table)[torch.from_numpy(row_N).long()]
        return found_ND * torch.from_numpy(row_N > 0)[:, None]

    def _whole(self, table: str) -> Tensor:
        if table not in self._read:
            weight = self.tables[table].weight
            self._read[table] = weight.rows(0, weight.shape[0]).float()
        return self._read[table]

    @cached_property
    def _read(self) -> dict[str, Tensor]:
        return {}

    def _granules(self) -> Store:
        return self._written("granules", self.data.tables.granules_IG[self._item_of_sid], "i32", SID)


def table_rows(table: StoredTable, least: int = 0, unknown_is_zero: bool = True) -> Rows:
    """A stored table's rows, then copies of row 0, so that there are `least` rows at least.

    unknown_is_zero: row 0, which nothing is looked up in, becomes 0.
    """
    stored, width = table.shape[0], table.shape[1] if len(table.shape) > 1 else 1

    def part(first: int, last: int) -> NDArray[Any]:
        rows = np.zeros((last - first, width), dtype=np.float32)
        there = max(0, min(last, stored) - first)
        if there:
            rows[:there] = table.rows(first, first + there).float().reshape(there, width).numpy()
        if unknown_is_zero:
            rows[: first == 0] = 0
        elif there < len(rows):
            rows[there:] = table.rows(0, 1).float().numpy()
        return rows

    return Rows((max(stored, least), width), part)


def write_context(
    folder: Path, data: Dataset, tables: Mapping[str, CheckpointTable], precision: Precision
) -> tuple[ContextColumn, ...]:
    """Writes the tables of the context columns. Raises ValueError as `ItemStores.write`.

    Ids that came after the training have row 0; of these, only items have a number that scoring knows.
    """
    made = []
    for name in data.sizes.context_rows:
        least = data.manifest.ids[ITEM_ID] if name == ITEM_ID else 0
        write_rows(folder, name, table_rows(tables[name].weight, least, unknown_is_zero=False), precision)
        made.append(ContextColumn(name, precision, name in data.sizes.context_lists))
    return tuple(made)
