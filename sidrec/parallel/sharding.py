"""From a ranker whose tables are on `meta` to a DistributedModelParallel whose tables are filled."""

from typing import Any

from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType

from sidrec.config.recipe import (
    AdagradTables,
    OptimizerConfig,
    RowwiseAdagradTables,
    SgdTables,
    TableOptimizer,
)
from sidrec.data.item_tables import HID
from sidrec.parallel.initial_values import fill_tables, set_empty_shards_apart
from sidrec.parallel.managed_table import ManagedTableSharder
from sidrec.parallel.process_group import Ranks
from sidrec.plans.workload import tables_of


def shard(
    ranker: nn.Module, plan: ShardingPlan, optimizer: OptimizerConfig, seed: int, ranks: Ranks
) -> DistributedModelParallel:
    """Shards the model and fills its tables, by a plan that was made for it and for as many ranks."""
    configs = tables_of(ranker)
    sharders = sharders_of(ranker, optimizer, seed)
    # torch's DDP rearranges its gradient buckets after a process's first step. More than two ranks then add gradients
    # in another order, and a resumed run would differ in the last bit. find_unused_parameters keeps the first
    # arrangement. On GPUs the order of additions is not fixed anyway.
    ordered = ranks.device.type == "cpu" and ranks.world > 2
    layers = DefaultDataParallelWrapper(static_graph=not ordered, find_unused_parameters=ordered)
    model = DistributedModelParallel(
        ranker, device=ranks.device, plan=plan, sharders=sharders, data_parallel_wrapper=layers
    )
    set_empty_shards_apart(model)
    fill_tables(model, configs, seed)
    return model


def sharders_of(ranker: nn.Module, optimizer: OptimizerConfig, seed: int) -> list[ModuleSharder[nn.Module]]:
    """The sharders that fuse `optimizer` into the tables' backward.

    A table's own optimizer reaches TorchRec's sharder through its weight, as apply_optimizer_in_backward's does.
    """
    plain = EveryTypeSharder(fused_params=fused_params(optimizer.tables))
    if optimizer.hid is not None:
        for name, weight in ranker.named_parameters():
            if name.endswith(f".embedding_bags.{HID}.weight"):
                weight._optimizer_kwargs = [fused_params(optimizer.hid)]  # type: ignore[attr-defined]
    return [plain, ManagedTableSharder(plain, seed)]


# The sharder of all tables: every sharding type, and the table optimizer fused into FBGEMM's backward.


class EveryTypeSharder(EmbeddingBagCollectionSharder):
    """TorchRec offers four sharding types on CPU although all seven train there; this one offers all."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]


def fused_params(optimizer: TableOptimizer) -> dict[str, Any]:
    """FBGEMM's arguments for the optimizer that `optimizer` names."""
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
