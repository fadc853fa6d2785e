"""How ranks share a managed table: by rows, each rank dealing its share to the ids that it owns."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from sidrec.model.tables import Slots
from sidrec.parallel.initial_values import initial_rows

MANAGED = ParameterConstraints(
    sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
)
"""What TorchRec can do for a managed table."""


def managed_tables(ranker: nn.Module) -> Iterator[EmbeddingBagConfig]:
    """All managed tables in the model."""
    for module in ranker.modules():
        if isinstance(module, ManagedCollisionEmbeddingBagCollection):
            yield from module._embedding_module.embedding_bag_configs()


class ShardedManagedTable(ShardedManagedCollisionEmbeddingBagCollection):
    """TorchRec's, with rows that start anew when they go to another id.

    TorchRec draws their values from the global generator, which no checkpoint holds, keeps element-wise optimizer
    states, and has no kernel on CPU that resets row-wise ones.
    """

    def __init__(self, module: ManagedCollisionEmbeddingBagCollection, *args: Any, seed: int, **kwargs: Any) -> None:
        tables = module._embedding_module.embedding_bag_configs()
        super().__init__(module, *args, **kwargs)
        self._configs = {table.name: table for table in tables}
        self._seed = seed

    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        for name, rows in evictions_per_table.items():
            if rows is None or not len(rows):
                continue
            kernels, index = self._table_to_tbe_and_index[name]
            weight_ND = kernels.split_embedding_weights()[index]
            with torch.no_grad():
                weight_ND[rows] = self._new_rows(name, len(rows)).to(weight_ND)
                for states in kernels.split_optimizer_states()[index : index + 1]:
                    for state in states:
                        state[rows] = 0

    def _new_rows(self, name: str, count: int) -> Tensor:
        """First values of `count` rows, [count, D]: those of rows that the table would have if it went on.

        Every step of every rank has its own, a function of seed and step alone.
        """
        table = self._configs[name]
        slots = self._managed_collision_collection._managed_collision_modules[name]
        assert isinstance(slots, Slots), "managed_table makes no others"
        first = slots._current_iter * table.num_embeddings + slots._output_global_offset
        return initial_rows(self._seed, table, first, count)


class ManagedTableSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Shards managed tables; their weights and optimizer as `tables` does. seed: of the values of rows dealt anew."""

    def __init__(self, tables: EmbeddingBagCollectionSharder, seed: int) -> None:
        super().__init__(tables)
        self._seed = seed

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedTable:
        return ShardedManagedTable(
            module, params, self._e_sharder, self._mc_sharder, env=env, device=device, seed=self._seed
        )
