"""Puts a recipe's parts together on this rank: data, tables, model, shards. Training and evaluation start from here."""

from dataclasses import dataclass

import torch
from torch import distributed as dist

from sidrec.config import Recipe
from sidrec.config.item import HidItem
from sidrec.data.item_tables import ItemTables, item_tables
from sidrec.data.loader import SplitLoader, columns_of, open_split
from sidrec.data.moments import stat_moments
from sidrec.model.ranker import Ranker
from sidrec.model.sizes import Sizes
from sidrec.parallel.process_group import Ranks, together
from sidrec.parallel.shard import ShardedRanker, shard
from sidrec.schema import LOG, Manifest, load_manifest
from sidrec.sid.catalog import load_catalog


@dataclass(frozen=True)
class Data:
    """What a recipe's data folder and catalog hold. fingerprint: the catalog's, None where items are HIDs alone."""

    manifest: Manifest
    tables: ItemTables
    sizes: Sizes
    fingerprint: str | None


def open_data(recipe: Recipe, ranks: Ranks) -> Data:
    """Reads manifest and catalog and checks them against the recipe, on all ranks together.

    Raises ConfigError or ContractError, before anything is allocated.
    """
    return together(ranks, lambda: _read(recipe))


def _read(recipe: Recipe) -> Data:
    manifest = load_manifest(recipe.data.path / LOG)
    columns = columns_of(recipe.data, recipe.model, manifest)
    catalog = None if isinstance(recipe.model.item, HidItem) else load_catalog(recipe.data.catalog)
    tables = item_tables(recipe.model.item, manifest, catalog)
    mean_S, std_S = stat_moments(recipe.data.path, manifest)
    sizes = Sizes(
        item_tables=tables.tables,
        context_rows={column: manifest.ids[column] for column in recipe.model.context},
        dense=len(columns.log.dense),
        stats_mean=tuple(mean_S.tolist()),
        stats_std=tuple(std_S.tolist()),
    )
    return Data(manifest, tables, sizes, catalog.fingerprint if catalog else None)


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
    rows_per_rank = max(1, recipe.data.batch_size // dist.get_world_size())
    return shard(ranker, recipe.parallel, recipe.optimizer, rows_per_rank, recipe.seed, ranks)
