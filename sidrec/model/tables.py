"""Embedding tables: collections of plain tables, and tables with managed collisions.

Shapes: D width, N ids met since the last eviction.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from sidrec.data.item_tables import HID, ItemTable

META = torch.device("meta")
NO_INITS: Mapping[str, float | None] = {}


def embedding_tables(
    tables: Mapping[str, ItemTable],
    dim: int,
    inits: Mapping[str, float | None] = NO_INITS,
    data_type: DataType = DataType.FP32,
    device: torch.device | None = META,
    averaged: Collection[str] = (),
) -> EmbeddingBagCollection:
    """One collection with a table of width `dim` per entry, which sums the ids of a bag, or averages them.

    averaged: tables whose bags are means.
    inits: table -> a; weights start uniform in [-a, a], with TorchRec's a = 1/sqrt(rows) for None. On `meta` nothing is
    allocated.
    """
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                feature_names=list(table.features),
                num_embeddings=table.rows,
                embedding_dim=dim,
                pooling=PoolingType.MEAN if name in averaged else PoolingType.SUM,
                data_type=data_type,
                weight_init_min=None if init is None else -init,
                weight_init_max=init,
            )
            for name, table, init in ((name, table, inits.get(name)) for name, table in tables.items())
        ],
        device=device,
    )


def one_feature_each(rows: Mapping[str, int]) -> dict[str, ItemTable]:
    """Name -> a table of that many rows, read by the feature of the same name."""
    return {name: ItemTable(count, (name,)) for name, count in rows.items()}


class UpdateCounts(nn.Module):
    """How many training steps have updated each row of the HID table, as an input of the model.

    The counts lie with the table's shards, which count and save them (`sidrec.parallel.update_counts`); every rank has
    all of them here. After a step they are those of all steps so far, and evaluation leaves them as they are.

    counts_R: int32, one per row of the table, and a last element that is not read.
    """

    counts_R: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("counts_R", torch.zeros(rows + 1, dtype=torch.int32), persistent=False)

    def forward(self, rows: Any) -> Tensor:
        """Updates of the row of each bag's HID, float32 [U]; 0 for a bag without one.

        rows: a KeyedJaggedTensor as in Batch, of table rows, or TorchRec's awaitable of one.
        """
        return _updates_of_bags(rows, self.counts_R)


@fx.wrap  # TorchRec's pipelines trace the ranker, and fx cannot trace a search among keys
def _updates_of_bags(rows: Any, counts_R: Tensor) -> Tensor:
    """Reads nothing from the device to the host: a bag has at most one id, and its place is the sum of lengths."""
    items: KeyedJaggedTensor = rows.wait() if hasattr(rows, "wait") else rows
    feature, bags = list(items.keys()).index(HID), items.stride()
    bag_U = slice(feature * bags, (feature + 1) * bags)
    values_P, place_U = items.values(), items.offsets()[:-1][bag_U]
    if not len(values_P):
        return place_U.float() * 0
    rows_U = values_P.index_select(0, place_U.clamp(max=len(values_P) - 1))
    known_U = (items.lengths()[bag_U] > 0) & (rows_U < len(counts_R) - 1)
    return counts_R.index_select(0, rows_U.where(known_U, 0)).float() * known_U


# Managed collisions (TorchRec's ZCH): a table assigns its rows to ids during training.
#
# The row of an id is its slot. Training records the ids it meets. At the end of every `eviction_interval` steps, ids
# without a slot get a free one, or that of the id which the eviction policy ranks lowest. An id without a slot reads
# and trains the last row of its rank's share, which therefore represents unknown items; so do ids first met in
# evaluation. Evaluation moves no slots.


POLICIES = {"lru": LRU_EvictionPolicy, "lfu": LFU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}
BY_MODULO = 0  # TorchRec's value for "rank = id modulo ranks"; its default gives all ids to the first rank


class ManagedCollisionRows(MCHManagedCollisionModule):
    """TorchRec's managed collision module, with an id history that grows as needed and can be checkpointed.

    TorchRec sizes the history by the first batch, drops ids beyond that size, and does not checkpoint the history.
    """

    _input_history_buffer_size: int
    _history_accumulator: Tensor

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Records the ids, and moves slots at the end of an interval. No-op in evaluation."""
        if self.training:
            if self._input_history_buffer_size == -1:
                self._init_history_buffers(features)
            self._reserve(sum(feature.values().numel() for feature in features.values()))
        return super().profile(features)

    def _reserve(self, ids: int) -> None:
        missing = self._current_history_buffer_offset + ids - self._input_history_buffer_size
        if missing > 0:
            self._resize(self._input_history_buffer_size + max(missing, self._input_history_buffer_size // 2))

    def _resize(self, size: int) -> None:
        more = size - self._input_history_buffer_size
        self._history_accumulator = functional.pad(self._history_accumulator, (0, more))
        for name, values_N in self._history_metadata.items():
            self._history_metadata[name] = functional.pad(values_N, (0, more))
            setattr(self, f"_history_{name}", self._history_metadata[name])  # as TorchRec registers it
        self._input_history_buffer_size = size

    def interval(self) -> dict[str, Tensor]:
        """This rank's history since the last eviction: int64 [N] `ids`, and the policy's record of each."""
        if self._input_history_buffer_size == -1:
            self._init_history_buffers({})
        met = {"ids": self._history_accumulator, **self._history_metadata}
        return {name: values[: self._current_history_buffer_offset].clone() for name, values in met.items()}

    def resume(self, interval: dict[str, Tensor]) -> None:
        """Restores the history that `interval` returned. Call it after the slots are loaded."""
        size = len(interval["ids"])
        self._init_history_buffers({})
        self._resize(size)
        self._history_accumulator.copy_(interval["ids"])
        for name, values_N in self._history_metadata.items():
            values_N.copy_(interval[name])
        self._current_history_buffer_offset = size
        self._current_iter = int(self._current_iter_tensor)
        self._last_eviction_iter = self._current_iter - self._current_iter % self._eviction_interval


def managed_table(
    name: str,
    table: ItemTable,
    dim: int,
    init: float | None,
    device: torch.device = META,
    rows: bool = False,
    data_type: DataType = DataType.FP32,
) -> ManagedCollisionEmbeddingBagCollection:
    """A collection of one managed table. Its forward returns a pair: a KeyedTensor, and with `rows` the ids' rows.

    init: as in `embedding_tables`. The number of ranks must divide the table's rows.
    """
    assert table.managed is not None, "a managed table has a managed section"
    collection = embedding_tables({name: table}, dim, {name: init}, data_type, device)
    slots = ManagedCollisionRows(
        zch_size=table.rows,
        device=device,
        eviction_policy=POLICIES[table.managed.eviction](),
        eviction_interval=table.managed.eviction_interval,
        input_hash_size=BY_MODULO,
        buckets=table.rows,  # a rank's share is a multiple of this
        name=name,
    )
    return ManagedCollisionEmbeddingBagCollection(
        collection, ManagedCollisionCollection({name: slots}, collection.embedding_bag_configs()), rows
    )


def with_managed(embedded: dict[str, Tensor], managed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embeddings by feature, with those of the managed table."""
    return _joined(embedded, managed)


@fx.wrap  # TorchRec's pipelines trace the ranker, and fx cannot trace a dictionary of unknown keys
def _joined(embedded: dict[str, Tensor], managed: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**embedded, **managed}
