"""A run whose catalog was fitted again starts from a checkpoint of the old one: `start.old_catalog`.

SID tables are carried over by the items that both catalogs hold (`sidrec.sid.carried_rows`). A new row's weights are
the mean of its items' old rows. Sums over training, which are Adagrad's squared gradients and a fusion's impressions,
are divided: a new row takes of an old row's sum the share of the old row's items that it has, as if these items had
trained the new row from the beginning. So codes that only have other names keep every value, and the sum of a row that
is split or joined is neither lost nor counted twice. Rows without a shared item keep their initial values, and no sum.

The old catalog may be extended from the checkpoint's: items of the extension are shared too, with the codes that the
old tokenizer gave them.

Shapes: N rows of a shard or a stored part, C saved shards of the columns, W width.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sidrec.checkpoint.rowwise_adagrad_reshard import column_shards, column_weights
from sidrec.checkpoint.state import belongs_to, invalidate_caches, state_shards
from sidrec.checkpoint.stored_tables import StoredCheckpoint, StoredTable
from sidrec.checkpoint.tensor_shard import MODEL, ROW_SUM, TensorShard, Weight, is_table, parameter_of, table_of
from sidrec.config import ConfigError, Recipe
from sidrec.data.dataset import Dataset, check_item_ids
from sidrec.data.item_tables import ItemTables, item_tables
from sidrec.errors import CheckpointError
from sidrec.model.fusion_and_gate import IMPRESSIONS
from sidrec.parallel.process_group import Ranks, run_on_all_ranks
from sidrec.schema import ITEM_ID, ContractError
from sidrec.sid.carried_rows import CarriedRows, carried_text
from sidrec.sid.catalog import Catalog, load_catalog, read_codebook_sizes

KEY = "start.old_catalog"


@dataclass(frozen=True)
class Refit:
    """How SID tables are filled from a checkpoint of another catalog.

    catalog: the old one. items: that both catalogs hold. rows: SID table -> its rows and theirs.
    """

    catalog: Path
    checkpoint: StoredCheckpoint
    items: int
    rows: Mapping[str, CarriedRows]

    @property
    def facts(self) -> dict[str, object]:
        """The entry "refit" of run.json's entry "start"."""
        tables = {
            name: {"rows": rows.rows - 1, "carried": rows.carried, "anew": rows.rows - 1 - rows.carried}
            for name, rows in self.rows.items()
        }
        return {"old_catalog": str(self.catalog), "shared_items": self.items, "tables": tables}

    def __str__(self) -> str:
        return (
            f"carried from the catalog {self.catalog} by {self.items:,} items that both hold: {carried_text(self.rows)}"
        )

    def fill(self, model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> None:
        """Fills SID tables, their optimizer states and impressions, on every rank the rows of its own shards.

        Every rank reads the old tables once for each of its shards, a few MB at a time, and holds a copy of one shard.
        optimizer: whose states exist; None to leave them out. All ranks call it. Raises CheckpointError on all.
        """
        weights = model.state_dict()
        shards = [shard for shard in state_shards(model, optimizer, ranks) if belongs_to(shard.key, self.rows)]
        run_on_all_ranks(ranks, lambda: self._fill_shards(shards, weights))
        invalidate_caches(model)

    def _fill_shards(self, shards: list[TensorShard], weights: Mapping[str, Weight]) -> None:
        for shard in shards:
            self._fill_shard(shard, weights)

    def _fill_shard(self, shard: TensorShard, weights: Mapping[str, Weight]) -> None:
        if shard.key not in self.checkpoint.index.tensors:
            return
        name = parameter_of(shard.key)
        rows = self.rows[table_of(name) if is_table(name) else name.rpartition(f".{IMPRESSIONS}")[2]]
        first, last = shard.offset[0], shard.offset[0] + len(shard.values)
        embeds = shard.key.startswith(f"{MODEL}/") and is_table(name)
        sources = rows.means(first, last) if embeds else rows.parts(first, last)
        carried_NW = torch.zeros(shard.values.shape)
        stored, cut = StoredTable(self.checkpoint.path, shard.key, self.checkpoint.index), self._cut(shard, weights)
        for old_first, old_NW in stored.parts():
            sources.add(old_first, cut(old_NW.float()), carried_NW)
        sources.replace(shard.values, carried_NW)

    def _cut(self, shard: TensorShard, weights: Mapping[str, Weight]) -> Callable[[Tensor], Tensor]:
        """Cuts the shard's columns from stored rows."""
        column, width = shard.offset[1], shard.values.shape[1]
        if not shard.key.endswith(f"/{ROW_SUM}"):
            return lambda rows_NW: rows_NW[:, column : column + width]
        name = parameter_of(shard.key)
        saved = column_shards(self.checkpoint.index.tensors[f"{MODEL}/{name}"])
        share_C = column_weights(column_shards(weights[name])[column], saved)
        return lambda sums_NC: (sums_NC * share_C).sum(dim=1, keepdim=True)


def find_refit(found: StoredCheckpoint, recipe: Recipe, data: Dataset, without: Collection[str], ranks: Ranks) -> Refit:
    """Opens the old catalog and checks that SID tables of the checkpoint can be carried over, before any is allocated.

    without: tables that take nothing from the checkpoint. All ranks call it, and raise together: ConfigError if there
    is nothing to carry; ContractError for an old catalog that is not the checkpoint's, numbers items otherwise, has
    another number of levels or no item in common; CheckpointError for other SID tables.
    """
    path = recipe.start.old_catalog
    assert path is not None, "callers ask for it"
    names = [name for name in data.tables.sid_tables if name not in without]
    run_on_all_ranks(ranks, lambda: _check_use(found, recipe, data, names))
    old = run_on_all_ranks(ranks, lambda: _old_catalog(found, recipe, path))
    as_old = replace(recipe, data=replace(recipe.data, catalog=path))
    run_on_all_ranks(ranks, lambda: check_item_ids(as_old, data.manifest, old) if ranks.first else None)
    return run_on_all_ranks(ranks, lambda: _refit(found, path, old, data, names))


def _check_use(found: StoredCheckpoint, recipe: Recipe, data: Dataset, names: Sequence[str]) -> None:
    """names: SID tables to carry over."""
    if not names:
        raise ConfigError(f"{KEY}: expected SID tables that start from the checkpoint, got none")
    if found.position.catalog in data.sid_rows:
        expected = f"{KEY}: expected a data.catalog that was fitted again since {found.path}"
        raise ConfigError(f"{expected}, got its own or one extended from it, whose tables fit without this key")
    before, now = found.recipe.model.item.sids, recipe.model.item.sids
    if before is None:
        raise CheckpointError(f"{found.path}: expected SID tables, got item kind {found.recipe.model.item.kind}")
    if before.subwords is not None or (now is not None and now.subwords is not None):
        where = found.path if before.subwords is not None else "the recipe"
        raise ConfigError(
            f"{KEY}: expected granularities, got tokens of kind spm in {where}: subwords of two catalogs cut SIDs at "
            f"other places; start.without: [{', '.join(names)}] starts them anew"
        )


def _old_catalog(found: StoredCheckpoint, recipe: Recipe, path: Path) -> Catalog:
    old = load_catalog(path)
    trained = found.position.catalog
    if trained not in old.fingerprints:
        expected = f"the catalog {trained} that {found.path} was trained with, or one extended from it"
        raise ContractError(path, expected, old.fingerprint)
    levels = len(read_codebook_sizes(recipe.data.catalog))
    if levels != old.levels:
        got = f"{levels}, with which a granularity is another part of the item"
        raise ContractError(recipe.data.catalog, f"{old.levels} levels, as {path} has, to carry tables over", got)
    return old


def _refit(found: StoredCheckpoint, path: Path, old: Catalog, data: Dataset, names: Sequence[str]) -> Refit:
    ids = data.manifest.ids[ITEM_ID]
    tables = item_tables(found.recipe.model.item, data.manifest, old)
    by_extension = tables.sid_rows(old.extension_by_id(ids), len(old.fingerprints))
    trained_rows = by_extension[old.fingerprints.index(str(found.position.catalog))]
    rows = {name: _carried(name, found, (data.tables, tables), trained_rows) for name in names}
    feature = data.tables.tables[names[0]].features[0]
    items = int(((data.tables.rows_of(feature) > 0) & (tables.rows_of(feature) > 0)).sum())
    if not items:
        raise ContractError(path, "items that data.catalog holds too", "none")
    return Refit(path, found, items, rows)


def _carried(
    name: str, found: StoredCheckpoint, tables: tuple[ItemTables, ItemTables], trained_rows: Mapping[str, int]
) -> CarriedRows:
    """tables: of the new catalog and of the old one."""
    new, old = tables
    features = new.tables[name].features
    if name not in old.sid_tables or old.tables[name].features != features:
        there = ", ".join(feature for table in old.sid_tables for feature in old.tables[table].features)
        raise CheckpointError(
            f"{found.path}: expected SID tables of its features, {there}, and with its index, got the table {name} of "
            f"{', '.join(features)}; start.without: [{name}] starts it anew"
        )
    stored_rows = found.tables[name].weight.shape[0]
    if stored_rows != trained_rows[name]:
        raise CheckpointError(
            f"{found.path}: expected {trained_rows[name]:,} rows of {name}, as its catalog has with this log, got "
            f"{stored_rows:,}: this log has other items of the catalog than the log it was trained on"
        )
    rows_IF, old_rows_IF = (np.stack([of.rows_of(feature) for feature in features], axis=1) for of in tables)
    return CarriedRows.of(rows_IF, old_rows_IF, new.tables[name].rows, stored_rows)
