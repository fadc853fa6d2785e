"""Collections of embedding tables: of items and context, beside other people's tables, and as the shape of a model."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx
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
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sidrec.data.item_tables import ItemTable

META = torch.device("meta")
NO_INITS: Mapping[str, float | None] = {}


def embedding_tables(
    tables: Mapping[str, ItemTable],
    dim: int,
    inits: Mapping[str, float | None] = NO_INITS,
    data_type: DataType = DataType.FP32,
    device: torch.device | None = META,
) -> EmbeddingBagCollection:
    """One collection with a table of width `dim` per entry, summing the ids of a bag.

    inits: a table's initial range, TorchRec's 1/sqrt(rows) where there is none. On `meta` nothing is allocated.
    """
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                feature_names=list(table.features),
                num_embeddings=table.rows,
                embedding_dim=dim,
                pooling=PoolingType.SUM,
                data_type=data_type,
                weight_init_min=None if init is None else -init,
                weight_init_max=init,
            )
            for name, table, init in ((name, table, inits.get(name)) for name, table in tables.items())
        ],
        device=device,
    )


def one_feature_each(rows: Mapping[str, int]) -> dict[str, ItemTable]:
    """Name -> a table of so many rows that the feature of the same name is read from."""
    return {name: ItemTable(count, (name,)) for name, count in rows.items()}


# Tables that deal their rows to ids as training meets them: TorchRec's managed collision (ZCH).
#
# An id's row is its slot. Ids met in training are remembered; at the end of every `eviction_interval` steps those
# without a slot get one, free or taken from the id that the eviction policy thinks least worth it. Until then, and
# again after it has lost its slot, an id reads and trains the last row of its rank's share, and so do ids that only
# evaluation meets: that row is what the model knows of unknown items. In evaluation no slot moves.
#
# Shapes: N ids met since the last eviction.


POLICIES = {"lru": LRU_EvictionPolicy, "lfu": LFU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}
BY_MODULO = 0  # TorchRec's sign that id modulo ranks says who owns an id; its default would give all to the first rank


class Slots(MCHManagedCollisionModule):
    """TorchRec's slots, with a memory that holds all of an interval and can be saved in the middle of it.

    TorchRec sizes the memory by the first batch and ignores ids beyond it, and a checkpoint lacks it.
    """

    _input_history_buffer_size: int
    _history_accumulator: Tensor

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Remembers the ids, and moves slots where an interval ends. In evaluation it does nothing."""
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
            setattr(self, f"_history_{name}", self._history_metadata[name])  # where TorchRec registers it
        self._input_history_buffer_size = size

    def interval(self) -> dict[str, Tensor]:
        """What this rank remembers of the interval that has begun: int64 [N] ids, and what the policy keeps of each."""
        if self._input_history_buffer_size == -1:
            self._init_history_buffers({})
        met = {"ids": self._history_accumulator, **self._history_metadata}
        return {name: values[: self._current_history_buffer_offset].clone() for name, values in met.items()}

    def resume(self, interval: dict[str, Tensor]) -> None:
        """Goes on in the middle of an interval, once the slots themselves are loaded."""
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
    name: str, table: ItemTable, dim: int, init: float | None, device: torch.device = META
) -> ManagedCollisionEmbeddingBagCollection:
    """A collection of the one table, which `table.managed` manages. Its forward returns a pair: the KeyedTensor first.

    init: as for `embedding_tables`. Only ranks as many as divide the table's rows can share it.
    """
    assert table.managed is not None, "other tables need no slots"
    collection = embedding_tables({name: table}, dim, {name: init}, device=device)
    slots = Slots(
        zch_size=table.rows,
        device=device,
        eviction_policy=POLICIES[table.managed.eviction](),
        eviction_interval=table.managed.eviction_interval,
        input_hash_size=BY_MODULO,
        buckets=table.rows,  # what a rank's share is a multiple of
        name=name,
    )
    return ManagedCollisionEmbeddingBagCollection(
        collection, ManagedCollisionCollection({name: slots}, collection.embedding_bag_configs())
    )


def with_managed(embedded: dict[str, Tensor], managed: KeyedTensor) -> dict[str, Tensor]:
    """The embeddings by feature, those of the managed table among them."""
    return _joined(embedded, managed)


@fx.wrap  # the pipelines trace the ranker, and fx does not know which features a lookup has
def _joined(embedded: dict[str, Tensor], managed: KeyedTensor) -> dict[str, Tensor]:
    return {**embedded, **managed.to_dict()}
