"""Puts a recipe's parts together on this rank: loaders, model, shards. Training and evaluation start from here."""

from functools import cache

import torch
from torch import distributed as dist
from torchrec.distributed.types import ShardingPlan

from sidrec.config import Recipe
from sidrec.data.dataset import Dataset, assemble_dataset, fit_item_subwords, read_contracts
from sidrec.data.loader import SplitLoader, open_split
from sidrec.model.ranker import Ranker
from sidrec.parallel.planning import hardware_of
from sidrec.parallel.process_group import Ranks, run_on_all_ranks
from sidrec.parallel.sharding import ShardedRanker, shard, sharders_of
from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import RecipeWorkload, recipe_workload
from sidrec.preflight.planned_run import PlannedRun
from sidrec.preflight.run_checks import check_run


def open_dataset(recipe: Recipe, ranks: Ranks) -> Dataset:
    """Reads manifest and catalog and checks them against the recipe, on all ranks together.

    Rank 0 learns the subwords and all ranks get them: machines that round differently must not disagree.
    Raises ConfigError or ContractError, before anything is allocated.
    """
    manifest, catalog = run_on_all_ranks(ranks, lambda: read_contracts(recipe))
    fitted = [run_on_all_ranks(ranks, lambda: fit_item_subwords(recipe, manifest, catalog) if ranks.first else None)]
    if ranks.world > 1:
        dist.broadcast_object_list(fitted, src=0, group=ranks.control)
    return run_on_all_ranks(ranks, lambda: assemble_dataset(recipe, manifest, catalog, fitted[0]))


def open_loader(recipe: Recipe, data: Dataset, split: str, shuffle: bool, ranks: Ranks) -> SplitLoader:
    """This rank's batches of a split. Raises ConfigError or ContractError on all ranks together."""
    return run_on_all_ranks(
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


def build_model(recipe: Recipe, data: Dataset, ranks: Ranks, *, preflight: bool = False) -> ShardedRanker:
    """The ranker, sharded and filled. Dense layers start alike on every rank, seeded by the recipe.

    preflight: check the planned run before a table is allocated. Raises what `check_run` raises then, and PlanError
    or ContractError as `make_plan` does.
    """
    torch.manual_seed(recipe.seed)
    ranker = Ranker(recipe.model, data.sizes)
    reckoned = cache(lambda: recipe_workload(recipe, data, ranks.world))

    def check(plan: ShardingPlan) -> None:
        if preflight:
            check_run(recipe, lambda: planned_run(recipe, data, reckoned(), hardware_of(ranks), plan), ranks)

    return shard(
        ranker, recipe.parallel, recipe.optimizer, lambda: reckoned().workload, recipe.seed, ranks, check=check
    )


def planned_run(
    recipe: Recipe, data: Dataset, reckoned: RecipeWorkload, hardware: Hardware, plan: ShardingPlan
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
