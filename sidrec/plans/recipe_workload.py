"""A recipe's tables and how a rank reads them in a step, from manifest, catalog and items.parquet: what plans are made
for where no rank is there to be watched.

Shapes: I item ids, R rows of a table, F item features.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from sidrec.config import Recipe
from sidrec.config.recipe import DataConfig
from sidrec.data.dataset import Dataset
from sidrec.data.item_tables import ItemTables, impressions_by_id
from sidrec.model.ranker import Ranker
from sidrec.plans.workload import RowFrequencies, TableLoad, Workload
from sidrec.schema import HISTORY, ITEM_ID, ITEMS, LOG, Manifest

TRAIN = "train"
FILES_SAMPLED = 8


@dataclass(frozen=True)
class RecipeWorkload:
    """The workload, and what it was reckoned from: ids of targets and histories in a rank's step, unique items among
    them, and the mean length of a history."""

    workload: Workload
    ids: float
    unique_items: float
    history_length: float


def recipe_workload(recipe: Recipe, data: Dataset, world: int) -> RecipeWorkload:
    """How each of `world` ranks would read the recipe's tables in a step.

    An item is looked up once per step and rank, however many rows show it. Of n draws by train impressions, which
    targets and histories are taken for, item i is among the unique ones with a probability of 1 - (1 - p_i)^n.
    Raises ConfigError or ContractError, as training does.
    """
    rows = max(1, recipe.data.batch_size // world)
    length = mean_history(recipe.data, data.manifest)
    impressions_I = impressions_by_id(recipe.data.path / ITEMS, data.manifest.ids[ITEM_ID])
    seen_I = seen_at_least_once(impressions_I, rows * (1 + length))
    with torch.device("meta"):
        model = Ranker(recipe.model, data.sizes)
    loads: dict[str, TableLoad] = {}
    workload = Workload(recipe.name, model, loads, rows)
    for name, table in workload.tables.items():
        items = name in data.tables.tables
        loads[name] = _item_load(table, data.tables, seen_I) if items else TableLoad(rows, (1.0,))
    return RecipeWorkload(workload, rows * (1 + length), float(seen_I.sum()), length)


def seen_at_least_once(impressions_I: NDArray[np.int64], draws: float) -> NDArray[np.float64]:
    """float64 [I]: probability that an item is among `draws` draws by its share of the impressions."""
    share_I = impressions_I / max(1, impressions_I.sum())
    with np.errstate(divide="ignore"):  # an item that has all impressions is always seen
        return -np.expm1(draws * np.log1p(-share_I))


def mean_history(config: DataConfig, manifest: Manifest) -> float:
    """Mean number of history items used per train row, from the first row group of some files over the whole split."""
    files = [file for file in manifest.files(TRAIN) if file.rows]
    lengths = [np.zeros(0)]
    for file in files[:: max(1, len(files) // FILES_SAMPLED)]:
        table = pq.ParquetFile(config.path / LOG / file.path).read_row_group(0, columns=[HISTORY])
        lengths.append(pc.list_value_length(table[HISTORY]).to_numpy())
    length = np.minimum(np.concatenate(lengths), config.history_length)
    return float(length.mean()) if len(length) else 0.0


def _item_load(table: EmbeddingBagConfig, tables: ItemTables, seen_I: NDArray[np.float64]) -> TableLoad:
    """Bags: unique items. An item without a row in the table (row 0) has an empty bag there."""
    bags = max(1, round(float(seen_I.sum())))
    frequency_R: NDArray[Any] = np.zeros(table.num_embeddings)
    ids_per_bag = []
    managed = tables.tables[table.name].managed is not None
    for feature in table.feature_names:
        row_I = tables.rows_of(feature)
        looked_up_I = np.where(row_I > 0, seen_I, 0.0)
        ids_per_bag.append(float(looked_up_I.sum()) / bags)
        if not managed:
            frequency_R += np.bincount(row_I, looked_up_I, minlength=len(frequency_R))
    total = frequency_R.sum()
    return TableLoad(bags, tuple(ids_per_bag), RowFrequencies(frequency_R / total) if total else None)
