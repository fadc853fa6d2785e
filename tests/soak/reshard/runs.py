"""Rankers on forced plans: runs that save in the middle, and runs that go on from there on another plan."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingType

from sidrec.checkpoint.dcp_storage import save_shards
from sidrec.checkpoint.rowwise_adagrad_reshard import Columns, column_shards
from sidrec.checkpoint.state import load_model, state_shards
from sidrec.config import Recipe
from sidrec.config.recipe import AdagradTables, DenseOptimizer, OptimizerConfig, RowwiseAdagradTables, SgdTables
from sidrec.data.batch import Batch
from sidrec.data.dataset import Dataset
from sidrec.errors import SidrecError
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.sharding import shard, sharders_of
from sidrec.plans.workload import tables_of
from sidrec.train.assembly import open_dataset, open_loader
from sidrec.train.optimizers import ScheduledOptimizer, build_optimizer
from sidrec.train.stopping import synced_batches

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
    sharders = sharders_of(ranker, recipe.optimizer, recipe.seed)
    plan = planner.plan(ranker, sharders)
    model = shard(ranker, plan, sharders, recipe.seed, ranks)
    return ShardedRanker(model, build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim))


def _constraint(kind: str, recipe: Recipe) -> ParameterConstraints:
    shards = 4 if kind == ShardingType.TABLE_COLUMN_WISE.value else 2
    return ParameterConstraints(sharding_types=[kind], min_partition=recipe.model.embedding_dim // shards)


def machines_of(each: int, world: int) -> None:
    """Has TorchRec see machines of `each` ranks: two sharding types tell them apart."""
    os.environ["LOCAL_WORLD_SIZE"] = str(min(each, world))


# Runs that save in the middle, and runs that load and continue on another plan.

SAVED_AFTER, STEPS = 3, 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """An optimizer, a sharding type and a number of ranks."""

    optimizer: str
    sharding: str
    world: int

    def checkpoint(self, folder: Path) -> Path:
        """Where its run saves."""
        return folder / f"{self.optimizer}-{self.sharding}-{self.world}"


@dataclass(frozen=True)
class Run:
    """A run's losses after it has saved, or has loaded. columns: how each table's are cut.

    start: the plan that saved what it has loaded, if it has. refusal: why it could not.
    """

    plan: Plan
    start: Plan | None
    losses: tuple[float, ...]
    columns: dict[str, list[Columns]]
    refusal: str | None = None


def save_runs(recipe: Recipe, optimizers: Sequence[str], kinds: Sequence[str], folder: Path, ranks: Ranks) -> list[Run]:
    """Trains each optimizer with each sharding type from the start; saves after SAVED_AFTER steps, and trains on."""
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, STEPS, ranks)
    runs = []
    for optimizer in optimizers:
        for sharding in kinds:
            ranker = build_ranker(recipe, data, optimizer, sharding, ranks)
            ranker.train(batches[:SAVED_AFTER])
            plan = Plan(optimizer, sharding, ranks.world)
            path = plan.checkpoint(folder)
            if ranks.first:
                path.mkdir(parents=True)
            dist.barrier(group=ranks.control)
            save_shards(path, state_shards(ranker.model, ranker.optimizer, ranks), ranks.rank, ranks.control)
            runs.append(Run(plan, None, tuple(ranker.train(batches[SAVED_AFTER:])), ranker.columns()))
    return runs


def load_runs(recipe: Recipe, saved: Sequence[Run], kinds: Sequence[str], folder: Path, ranks: Ranks) -> list[Run]:
    """Goes on from each saved run with each sharding type, on these ranks."""
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, STEPS, ranks)[SAVED_AFTER:]
    runs: list[Run] = []
    began = time.monotonic()
    for optimizer in dict.fromkeys(run.plan.optimizer for run in saved):
        starts = [run.plan for run in saved if run.plan.optimizer == optimizer]
        for sharding in kinds:
            ranker = build_ranker(recipe, data, optimizer, sharding, ranks)
            plan, columns = Plan(optimizer, sharding, ranks.world), ranker.columns()
            for start in starts:
                try:
                    load_model(start.checkpoint(folder), ranker.model, ranker.optimizer, ranks)
                    runs.append(Run(plan, start, tuple(ranker.train(batches)), columns))
                except SidrecError as refusal:
                    runs.append(Run(plan, start, (), columns, str(refusal)))
            if ranks.first:
                _log_progress(len(runs), len(saved) * len(kinds), began, ranks)
    return runs


def first_batches(recipe: Recipe, data: Dataset, steps: int, ranks: Ranks) -> list[Batch]:
    """This rank's first batches of the train split."""
    batches = open_loader(recipe, data, "train", shuffle=True, ranks=ranks).packed_batches(0)
    return [batch.to(ranks.device) for batch in synced_batches(islice(batches, steps), steps, ranks)]


def _log_progress(done: int, cases: int, began: float, ranks: Ranks) -> None:
    left = (time.monotonic() - began) * (cases - done) / done
    log.info("loaded on %d rank(s): %d of %d cases, %.0f s left", ranks.world, done, cases, left)
