"""Puts a recipe's parts together on this rank: loaders, model, shards. Training and evaluation start from here."""

import torch

from sidrec.config import Recipe
from sidrec.data.loader import SplitLoader, open_split
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks, together
from sidrec.parallel.shard import ShardedRanker, shard
from sidrec.plans.workload import Workload
from sidrec.train.data import Data
from sidrec.train.workload import recipe_workload


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


def build_model(recipe: Recipe, data: Data, ranks: Ranks) -> ShardedRanker:
    """The ranker, sharded and filled. Dense layers start alike on every rank, seeded by the recipe."""
    torch.manual_seed(recipe.seed)
    ranker = Ranker(recipe.model, data.sizes)

    def workload() -> Workload:
        return recipe_workload(recipe, data, ranks.world).workload

    return shard(ranker, recipe.parallel, recipe.optimizer, workload, recipe.seed, ranks)
