"""Puts a recipe's parts together on this rank: loaders, model, shards. Training and evaluation start from here."""

from functools import cache

import torch
from torchrec.distributed.types import ShardingPlan

from sidrec.config import Recipe
from sidrec.data.loader import SplitLoader, open_split
from sidrec.model.ranker import Ranker
from sidrec.parallel.hardware import hardware_of
from sidrec.parallel.process_group import Ranks, together
from sidrec.parallel.shard import ShardedRanker, shard, sharders_of
from sidrec.plans.hardware import Hardware
from sidrec.preflight.planned_run import PlannedRun
from sidrec.preflight.start import check_start
from sidrec.train.data import Data
from sidrec.train.workload import RecipeWorkload, recipe_workload


def open_loader(recipe: Recipe, data: Data, split: str, shuffle: bool, ranks: Ranks) -> SplitLoader:
    """This rank's batches of a split. Raises ConfigError or ContractError on all ranks together."""
    return together(
        ranks,
        lambda: open_split(
            recipe.data,
            recipe.model,
            split,
            rank=ranks.rank,
            world=ranks.world,
            seed=recipe.seed,
            shuffle=shuffle,
            tables=data.tables,
            manifest=data.manifest,
        ),
    )


def build_model(recipe: Recipe, data: Data, ranks: Ranks, *, preflight: bool = False) -> ShardedRanker:
    """The ranker, sharded and filled. Dense layers start alike on every rank, seeded by the recipe.

    preflight: check the planned run before a table is allocated. Raises what `check_start` raises then, and PlanError
    or ContractError as `make_plan` does.
    """
    torch.manual_seed(recipe.seed)
    ranker = Ranker(recipe.model, data.sizes)
    reckoned = cache(lambda: recipe_workload(recipe, data, ranks.world))

    def check(plan: ShardingPlan) -> None:
        if preflight:
            check_start(recipe, lambda: planned_run(recipe, data, reckoned(), hardware_of(ranks), plan), ranks)

    return shard(
        ranker, recipe.parallel, recipe.optimizer, lambda: reckoned().workload, recipe.seed, ranks, check=check
    )


def planned_run(
    recipe: Recipe, data: Data, reckoned: RecipeWorkload, hardware: Hardware, plan: ShardingPlan
) -> PlannedRun:
    """A run on `hardware` by `plan`, of which nothing is allocated."""
    return PlannedRun(
        recipe=recipe,
        manifest=data.manifest,
        tables=data.tables,
        sizes=data.sizes,
        workload=reckoned.workload,
        unique_items=reckoned.unique_items,
        hardware=hardware,
        plan=plan,
        sharders=sharders_of(reckoned.workload.model, recipe.optimizer, recipe.seed),
    )
