"""A recipe's ranker on plans that force a sharding type, columns cut, and the optimizers that it is trained with."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingType

from sidrec.checkpoint.rowwise_adagrad_reshard import Columns, column_shards
from sidrec.config import Recipe
from sidrec.config.recipe import AdagradTables, DenseOptimizer, OptimizerConfig, RowwiseAdagradTables, SgdTables
from sidrec.data.batch import Batch
from sidrec.data.dataset import Dataset
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.sharding import shard, sharders_of
from sidrec.plans.workload import tables_of
from sidrec.train.optimizers import ScheduledOptimizer, build_optimizer

TYPES = tuple(kind.value for kind in ShardingType)
MIXED = "mixed"  # each table another type than the one before
EPS = 1e-4  # above what rounding makes of a gradient of zero, which plans round differently
OPTIMIZERS: Mapping[str, OptimizerConfig] = {
    "adagrad": OptimizerConfig(tables=AdagradTables(lr=0.05, eps=EPS), dense=DenseOptimizer(kind="adam", lr=0.002)),
    "rowwise_adagrad": OptimizerConfig(
        tables=RowwiseAdagradTables(lr=0.05, eps=EPS), dense=DenseOptimizer(kind="adamw", lr=0.002, weight_decay=0.1)
    ),
    "sgd": OptimizerConfig(tables=SgdTables(lr=0.5), dense=DenseOptimizer(kind="adagrad", lr=0.01)),
    "sgd, hid adagrad": OptimizerConfig(tables=SgdTables(lr=0.5), hid=AdagradTables(lr=0.02, eps=EPS)),
}
"""By name. Between them they have every optimizer of tables and of dense layers that a recipe can name."""


@dataclass(frozen=True)
class ShardedRanker:
    """A ranker on this rank and its optimizer."""

    model: DistributedModelParallel
    optimizer: ScheduledOptimizer

    def train(self, batches: list[Batch]) -> list[float]:
        """One step for each batch. Returns the losses, means over all rows of the step."""
        return [self._step(batch) for batch in batches]

    def _step(self, batch: Batch) -> float:
        self.optimizer.zero_grad()
        loss, _ = self.model(batch)
        loss.backward()
        self.optimizer.step()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        return float(mean)

    def columns(self) -> dict[str, list[Columns]]:
        """How each table's columns are cut, by the table's name in the state_dict."""
        weights = self.model.state_dict()
        return {name: column_shards(weight) for name, weight in weights.items() if ".embedding_bags." in name}


def build_ranker(recipe: Recipe, data: Dataset, optimizer: str, sharding: str, ranks: Ranks) -> ShardedRanker:
    """The recipe's ranker with that one of OPTIMIZERS, all tables sharded as `sharding`, of TYPES or MIXED, says.

    Columns are cut into two shards where the type cuts any, into four by table_column_wise.
    """
    recipe = replace(recipe, optimizer=OPTIMIZERS[optimizer])
    torch.manual_seed(recipe.seed)
    ranker = Ranker(recipe.model, data.sizes)
    planner = EmbeddingShardingPlanner(
        topology=Topology(ranks.world, ranks.device.type, local_world_size=int(os.environ["LOCAL_WORLD_SIZE"])),
        constraints={
            table: _constraint(TYPES[number % len(TYPES)] if sharding == MIXED else sharding, recipe)
            for number, table in enumerate(tables_of(ranker))
        },
    )
    plan = planner.plan(ranker, sharders_of(ranker, recipe.optimizer, recipe.seed))
    model = shard(ranker, plan, recipe.optimizer, recipe.seed, ranks)
    return ShardedRanker(model, build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim))


def _constraint(kind: str, recipe: Recipe) -> ParameterConstraints:
    shards = 4 if kind == ShardingType.TABLE_COLUMN_WISE.value else 2
    return ParameterConstraints(sharding_types=[kind], min_partition=recipe.model.embedding_dim // shards)


def machines_of(each: int, world: int) -> None:
    """Has TorchRec see machines of `each` ranks: two sharding types tell them apart."""
    os.environ["LOCAL_WORLD_SIZE"] = str(min(each, world))
