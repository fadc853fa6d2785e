"""Shards a ranker whose tables are on `meta` into a DistributedModelParallel with filled tables.

Shapes: N rows of a table, D its width.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Tables
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.types import (
    ModuleSharder,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from sidrec.config.recipe import (
    AdagradTables,
    OptimizerConfig,
    RowwiseAdagradTables,
    SgdTables,
    TableOptimizer,
)
from sidrec.data.item_tables import HID
from sidrec.model.tables import ManagedCollisionRows, UpdateCounts
from sidrec.parallel.initial_values import fill_tables, initial_rows
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.update_counts import RowUpdates, count_updates, share_counts, updates_of
from sidrec.plans.workload import tables_of

NO_PARAMS: Mapping[str, Any] = {}


def shard(
    ranker: nn.Module,
    plan: ShardingPlan,
    sharders: list[ModuleSharder[nn.Module]],
    seed: int,
    ranks: Ranks,
) -> DistributedModelParallel:
    """Shards the model and fills its tables. plan: made for this model and this number of ranks. sharders: of
    `sharders_of` this model."""
    configs = tables_of(ranker)
    # torch's DDP rearranges its gradient buckets after a process's first step. More than two ranks then add gradients
    # in another order, and a resumed run would differ in the last bit. find_unused_parameters keeps the first
    # arrangement. On GPUs the order of additions is not fixed anyway.
    ordered = ranks.device.type == "cpu" and ranks.world > 2
    layers = DefaultDataParallelWrapper(static_graph=not ordered, find_unused_parameters=ordered)
    model = DistributedModelParallel(
        ranker, device=ranks.device, plan=plan, sharders=sharders, data_parallel_wrapper=layers
    )
    set_empty_shards_apart(model)
    count_updates(lookups_of(model), ranks.device)
    share_counts(updates_read_by(model), row_updates(model))
    fill_tables(model, configs, seed)
    return model


def sharders_of(
    ranker: nn.Module,
    optimizer: OptimizerConfig,
    seed: int,
    params: Mapping[str, Any] = NO_PARAMS,
    codecs: dict[str, QuantizedCommCodecs] | None = None,
) -> list[ModuleSharder[nn.Module]]:
    """The sharders, with `optimizer` fused into the tables' backward.

    params, codecs: formats of tables and exchanges (`sidrec.parallel.precision`); float32 without them.
    Sets an attribute on the HID table's weight if it has an optimizer of its own: TorchRec reads it there, as it reads
    what apply_optimizer_in_backward sets.
    """
    plain = EveryTypeSharder(fused_params=fused_params(optimizer.tables) | dict(params), qcomm_codecs_registry=codecs)
    if optimizer.hid is not None:
        for name, weight in ranker.named_parameters():
            if name.endswith(f".embedding_bags.{HID}.weight"):
                weight._optimizer_kwargs = [fused_params(optimizer.hid) | dict(params)]  # type: ignore[attr-defined]
    return [plain, ManagedTableSharder(plain, seed)]


class EveryTypeSharder(EmbeddingBagCollectionSharder):
    """Offers all seven sharding types on CPU, which all train there; TorchRec's own offers four."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]


def fused_params(optimizer: TableOptimizer) -> dict[str, Any]:
    """FBGEMM's arguments for a table optimizer."""
    match optimizer:
        case AdagradTables():
            kind = EmbOptimType.EXACT_ADAGRAD
        case RowwiseAdagradTables():
            kind = EmbOptimType.EXACT_ROWWISE_ADAGRAD
        case SgdTables():
            return {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": optimizer.lr}
    return {
        "optimizer": kind,
        "learning_rate": optimizer.lr,
        "eps": optimizer.eps,
    }


# Managed-collision tables: sharded by rows; each rank assigns its rows to the ids that it owns.


MANAGED = ParameterConstraints(
    sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
)
"""The only sharding of a managed table that TorchRec supports."""


def managed_tables(ranker: nn.Module) -> Iterator[EmbeddingBagConfig]:
    """All managed tables in the model."""
    for module in ranker.modules():
        if isinstance(module, ManagedCollisionEmbeddingBagCollection):
            yield from module._embedding_module.embedding_bag_configs()


class ShardedManagedTable(ShardedManagedCollisionEmbeddingBagCollection):
    """TorchRec's collection, except that it resets evicted rows: new first values, optimizer state 0.

    TorchRec's own draws the values from the global generator, whose state no checkpoint holds, keeps element-wise
    optimizer states, and has no CPU kernel that resets row-wise ones.
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
                weight_ND[rows] = self._new_rows(name, len(rows), weight_ND.device).to(weight_ND)
                for states in kernels.split_optimizer_states()[index : index + 1]:
                    for state in states:
                        state[rows] = 0
            for updates in row_updates(self):
                updates.restart(rows)

    def _new_rows(self, name: str, count: int, device: torch.device) -> Tensor:
        """First values of `count` evicted rows, [count, D]: the initial values of rows beyond the table's end.

        Which rows is a function of step and rank, so that no values repeat and a resumed run draws the same.
        """
        table = self._configs[name]
        rows = self._managed_collision_collection._managed_collision_modules[name]
        assert isinstance(rows, ManagedCollisionRows), "sidrec.model.tables makes no others"
        first = rows._current_iter * table.num_embeddings + rows._output_global_offset
        return initial_rows(self._seed, table, first, count, device)


class ManagedTableSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Shards managed tables. tables: the sharder of their weights. seed: for the first values of evicted rows."""

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


# Empty shards: five rows over four ranks are shards of 2, 2, 1 and 0 rows.


def set_empty_shards_apart(sharded: nn.Module) -> None:
    """Makes FBGEMM's CPU kernels treat a shard without rows as a table of one row that no id refers to.

    The kernels recognize a table by the offset of its first row among all rows (hash_size_cumsum). A shard without rows
    has the offset of the next one, so both are updated as one table, of the first one's width. If it is the last shard,
    the kernels read past the end of the offsets (get_hash_size in FBGEMM's
    embedding_backward_split_cpu_template.cpp). The offsets have no other use on a CPU. If no shard has rows, FBGEMM
    would call the GPU kernel (use_cpu in its split_embedding_codegen_lookup_invoker.template).
    """
    together = (part for lookup in lookups_of(sharded) for part in lookup.modules() if isinstance(part, Tables))
    for tables in together:
        rows = [spec[0] for spec in tables.embedding_specs]
        if tables.use_cpu and 0 in rows:
            first = [0, *accumulate(max(count, 1) for count in rows)]
            counted = [first[table] for table in tables.feature_table_map] + [first[-1]]
            tables.hash_size_cumsum.copy_(torch.tensor(counted))
            if not any(rows):
                tables.weights_host.data = tables.weights_host.new_zeros(tables.max_D)


def row_updates(sharded: nn.Module) -> list[RowUpdates]:
    """The update counts of this rank's rows of the HID table."""
    return [updates for lookup in lookups_of(sharded) for updates in updates_of(lookup)]


def updates_read_by(sharded: nn.Module) -> UpdateCounts | None:
    """The copy of all update counts in a model that reads them, None in others."""
    return next((module for module in sharded.modules() if isinstance(module, UpdateCounts)), None)


def lookups_of(sharded: nn.Module) -> Iterator[GroupedPooledEmbeddingsLookup]:
    """TorchRec's lookups in a sharded model: each holds tables that FBGEMM looks up together on this rank.

    TorchRec keeps them in a plain list, which `modules()` does not visit, and wraps those of replicated tables in DDP.
    """
    for collection in sharded.modules():
        if isinstance(collection, ShardedEmbeddingBagCollection):
            for lookup in collection._lookups:
                inner = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
                assert isinstance(inner, GroupedPooledEmbeddingsLookup), type(inner)
                yield inner
