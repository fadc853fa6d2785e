"""From a ranker whose tables are on `meta` to a DistributedModelParallel whose tables are filled."""

from dataclasses import dataclass

from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.tree import OptimizerConfig, ParallelConfig
from sidrec.data.item_tables import HID
from sidrec.parallel.initial import fill_tables
from sidrec.parallel.plan import make_plan
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.sharders import EveryTypeSharder, fused_params


@dataclass(frozen=True)
class ShardedRanker:
    """The model as the ranks hold it, and the plan that says who holds what."""

    model: DistributedModelParallel
    plan: ShardingPlan


def shard(
    ranker: nn.Module,
    config: ParallelConfig,
    optimizer: OptimizerConfig,
    rows_per_rank: int,
    seed: int,
    ranks: Ranks,
) -> ShardedRanker:
    """Plans, shards and fills the model. Raises PlanError.

    A table's own optimizer reaches TorchRec's sharder through its weight, as apply_optimizer_in_backward's does.
    """
    configs = {
        table.name: table
        for module in ranker.modules()
        if isinstance(module, EmbeddingBagCollection)
        for table in module.embedding_bag_configs()
    }
    sharders = [EveryTypeSharder(fused_params=fused_params(optimizer.tables))]
    if optimizer.hid is not None:
        for name, weight in ranker.named_parameters():
            if name.endswith(f".embedding_bags.{HID}.weight"):
                weight._optimizer_kwargs = [fused_params(optimizer.hid)]  # type: ignore[attr-defined]
    plan = make_plan(ranker, sharders, config, rows_per_rank, ranks)
    model = DistributedModelParallel(ranker, device=ranks.device, plan=plan, sharders=sharders)
    fill_tables(model, configs, seed)
    return ShardedRanker(model, plan)
