"""From a ranker whose tables are on `meta` to a DistributedModelParallel whose tables are filled."""

from collections.abc import Callable
from dataclasses import dataclass
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
    ParallelConfig,
    RowwiseAdagradTables,
    SgdTables,
    TableOptimizer,
)
from sidrec.data.item_tables import HID
from sidrec.parallel.initial_values import fill_tables, set_empty_shards_apart
from sidrec.parallel.managed_table import ManagedTableSharder
from sidrec.parallel.planning import local_world, make_plan
from sidrec.parallel.process_group import Ranks
from sidrec.plans.plan_file import PlanFile, plan_file_of
from sidrec.plans.workload import Workload, tables_of


@dataclass(frozen=True)
class ShardedRanker:
    """The model as the ranks hold it, and the plan that says who holds what, as a file keeps it."""

    model: DistributedModelParallel
    plan: ShardingPlan
    plan_file: PlanFile


def shard(
    ranker: nn.Module,
    config: ParallelConfig,
    optimizer: OptimizerConfig,
    workload: Callable[[], Workload],
    seed: int,
    ranks: Ranks,
    check: Callable[[ShardingPlan], None] = lambda plan: None,
) -> ShardedRanker:
    """Plans, shards and fills the model; rank 0 is asked for the workload where there is something to plan.

    check: is shown the plan on every rank, before a table is allocated. Raises what it raises, and PlanError or
    ContractError as make_plan does.
    """
    plan = make_plan(ranker, sharders_of(ranker, optimizer, seed), config, workload, ranks)
    plan_file = plan_file_of(plan, ranker, ranks.world, local_world(ranks), ranks.device.type)
    check(plan)
    return ShardedRanker(shard_as_planned(ranker, plan, optimizer, seed, ranks), plan, plan_file)


def shard_as_planned(
    ranker: nn.Module, plan: ShardingPlan, optimizer: OptimizerConfig, seed: int, ranks: Ranks
) -> DistributedModelParallel:
    """Shards and fills the model by a plan that was made for it and for as many ranks."""
    configs = tables_of(ranker)
    sharders = sharders_of(ranker, optimizer, seed)
    # torch's DDP lays gradients out anew after a process's first step, and more than two ranks then add them in another
    # order: a resumed run would differ in the last bit. Looking for unused layers, it keeps the first layout. GPUs add
    # in any order as it is.
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
