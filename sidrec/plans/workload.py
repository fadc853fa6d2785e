"""The workload of a plan: a model's tables, and how one rank reads each of them in a training step.

`recipe_workload` derives it from a recipe's manifest, catalog and items, so that plans can be made for ranks that do
not exist yet. Tables files (`sidrec.plans.tables_file`) and benches give other workloads.

Shapes: R rows of a table, U distinct counts among them, I item ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import log
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config import Recipe
from sidrec.config.recipe import DataConfig
from sidrec.data.dataset import Dataset
from sidrec.data.item_tables import ItemTables, impressions_by_id
from sidrec.io.parquet_places import open_parquet
from sidrec.model.ranker import Ranker
from sidrec.schema import HISTORY, ITEM_ID, ITEMS, LOG, Manifest


class Popularity(Protocol):
    """Distribution of a table's looked-up ids over its rows."""

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        ...

    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of distinct rows in [first, last) among `ids` independent draws from all rows."""
        ...


@dataclass(frozen=True)
class TableLoad:
    """How one rank reads a table in a step.

    bags: bags per feature. ids_per_bag: mean ids in a bag, one value per feature of the table.
    popularity: None if unknown.
    """

    bags: int
    ids_per_bag: tuple[float, ...]
    popularity: Popularity | None = None


@dataclass(frozen=True)
class Workload:
    """A model and how it reads its tables.

    model: any module whose EmbeddingBagCollections are on `meta`. loads: one for every table, by name.
    rows_per_rank: rows of the log that one rank trains on in a step.
    """

    name: str
    model: nn.Module
    loads: Mapping[str, TableLoad]
    rows_per_rank: int

    @cached_property  # a search reads it for every layout of every table
    def dense_parameters(self) -> int:
        """Parameters outside the tables: multiplications per row and pass, if all layers are linear."""
        tables = {id(weight) for tables in self.collections.values() for weight in tables.parameters()}
        return sum(weight.numel() for weight in self.model.parameters() if id(weight) not in tables)

    @property
    def tables(self) -> dict[str, EmbeddingBagConfig]:
        """Table name -> its TorchRec config, for all collections, in order."""
        return tables_of(self.model)

    @property
    def collections(self) -> dict[str, EmbeddingBagCollection]:
        """Path in the model -> collection."""
        return {
            path: module for path, module in self.model.named_modules() if isinstance(module, EmbeddingBagCollection)
        }


def tables_of(model: nn.Module) -> dict[str, EmbeddingBagConfig]:
    """Table name -> its TorchRec config, for all collections of an unsharded model, in order."""
    return {
        table.name: table
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for table in module.embedding_bag_configs()
    }


# The workload of a recipe.

TRAIN = "train"
FILES_SAMPLED = 8


@dataclass(frozen=True)
class RecipeWorkload:
    """The workload, and the numbers that it was derived from.

    ids: ids of targets and histories in one rank's step. unique_items: distinct items among them.
    history_length: mean number of items in a history.
    """

    workload: Workload
    ids: float
    unique_items: float
    history_length: float


def recipe_workload(recipe: Recipe, data: Dataset, world: int) -> RecipeWorkload:
    """How each of `world` ranks reads the recipe's tables in a step.

    An item is looked up once per step and rank, however many rows show it. Targets and histories are modelled as n
    draws in proportion to train impressions: item i is among the unique items with probability 1 - (1 - p_i)^n.
    Raises ConfigError or ContractError, as training does.
    """
    rows = max(1, recipe.data.batch_size // world)
    length = mean_history(recipe.data, data.manifest)
    length = min(length, recipe.model.history_pooling.kept(recipe.data.history_length))
    impressions_I = impressions_by_id(recipe.data.path / ITEMS, data.manifest.ids[ITEM_ID])
    seen_I = seen_at_least_once(impressions_I, rows * (1 + length))
    with torch.device("meta"):
        model = Ranker(recipe.model, data.sizes, precision=recipe.precision)
    loads: dict[str, TableLoad] = {}
    workload = Workload(recipe.name, model, loads, rows)
    for name, table in workload.tables.items():
        items = name in data.tables.tables
        ids = data.sizes.context_lists.get(name, 1.0)
        loads[name] = _item_load(table, data.tables, seen_I) if items else TableLoad(rows, (ids,))
    return RecipeWorkload(workload, rows * (1 + length), float(seen_I.sum()), length)


def mean_history(config: DataConfig, manifest: Manifest) -> float:
    """Mean history items used per train row, from the first row group of up to FILES_SAMPLED files of the split.

    A log that is only evaluated may have no train split; then of its first split.
    """
    split = TRAIN if TRAIN in manifest.splits else next(iter(manifest.splits), TRAIN)
    files = [file for file in manifest.files(split) if file.rows]
    lengths = [np.zeros(0)]
    for file in files[:: max(1, len(files) // FILES_SAMPLED)]:
        table = open_parquet(config.path / LOG / file.path).read_row_group(0, columns=[HISTORY])
        lengths.append(pc.list_value_length(table[HISTORY]).to_numpy())
    length = np.minimum(np.concatenate(lengths), config.history_length)
    return float(length.mean()) if len(length) else 0.0


def seen_at_least_once(impressions_I: NDArray[np.int64], draws: float) -> NDArray[np.float64]:
    """float64 [I]: probability that an item is among `draws` draws in proportion to the impressions."""
    share_I = impressions_I / max(1, impressions_I.sum())
    with np.errstate(divide="ignore"):  # log(0) for an item with all impressions: probability 1
        return -np.expm1(draws * np.log1p(-share_I))


def _item_load(table: EmbeddingBagConfig, tables: ItemTables, seen_I: NDArray[np.float64]) -> TableLoad:
    """The bags are unique items. An item without a row in the table (row 0) has an empty bag."""
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


# Popularity known for each row.


@dataclass(frozen=True, eq=False)
class _RowByRow(ABC):
    """Caches cumulative sums over rows, since a search asks for many row ranges."""

    _expected_before: dict[float, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False)

    @abstractmethod
    def _drawn(self, ids: float) -> NDArray[np.float64]:
        """float64 [R]: probability that each row is among `ids` draws."""

    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of distinct rows in [first, last) among `ids` draws."""
        if ids not in self._expected_before:
            self._expected_before[ids] = np.concatenate([[0.0], np.cumsum(self._drawn(ids))])
        before_R = self._expected_before[ids]
        return float(before_R[last] - before_R[first])


@dataclass(frozen=True, eq=False)
class RowFrequencies(_RowByRow):
    """frequency_R: float64, expected share of the looked-up ids that fall on each row; sums to 1."""

    frequency_R: NDArray[np.float64]

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        return float(self.frequency_R[first:last].sum())

    def _drawn(self, ids: float) -> NDArray[np.float64]:
        return -np.expm1(-ids * self.frequency_R)


@dataclass(frozen=True, eq=False)
class CountedRows(_RowByRow):
    """count_R: int64, how often each row occurs in ids that were read; at least one id.

    `distinct` draws without replacement from the ids that were read (rarefaction, Hurlbert 1971). Counts taken as
    frequencies would be biased: they repeat ids that occur once. More draws than ids read give no further rows.
    """

    count_R: NDArray[np.int64]

    @cached_property
    def _ids_read(self) -> int:
        return int(self.count_R.sum())

    def share(self, first: int, last: int) -> float:
        """Share of the ids read whose row is in [first, last)."""
        return float(self.count_R[first:last].sum() / self._ids_read)

    def _drawn(self, ids: float) -> NDArray[np.float64]:
        count_U, index_R = np.unique(self.count_R, return_inverse=True)
        read = self._ids_read
        left = max(0.0, read - ids)
        missable_U = count_U <= left  # a row with more ids than are left out is always drawn
        missable = count_U[missable_U]
        missed_U = np.zeros(len(count_U))
        ways = gammaln(left + 1) - gammaln(left - missable + 1)
        all_ways = gammaln(read + 1) - gammaln(read - missable + 1)
        missed_U[missable_U] = np.exp(ways - all_ways)
        drawn_R: NDArray[np.float64] = (1 - missed_U)[index_R]
        return drawn_R


# Popularity by a power law.

RANGES = 200
"""Row ranges in which the law is taken as uniform. The first rows are ranges of one row."""
UNIFORM = 0.0
"""The exponent under which all rows are equally popular."""


@dataclass(frozen=True)
class ZipfLaw:
    """Row r of `rows` is looked up with probability about 1 / (r + 1)^exponent.

    It is the continuous law on [1, rows + 1), rounded down, which has a closed form for any number of rows.
    """

    rows: int
    exponent: float

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        return (self._mass(last) - self._mass(first)) / self._mass(self.rows)

    @lru_cache(maxsize=1 << 17)  # noqa: B019  # laws hash by value; a search asks for the same shards repeatedly
    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of distinct rows in [first, last) among `ids` draws, in Poisson's approximation.

        The rows are split into RANGES ranges of geometrically growing length, uniform within each.
        """
        edge_B = np.unique(np.geomspace(first + 1, last + 1, RANGES + 1).round()) - 1
        mass_B = np.array([self._mass(int(row)) for row in edge_B]) / self._mass(self.rows)
        rows_B = np.diff(edge_B)
        return float((rows_B * -np.expm1(-ids * np.diff(mass_B) / rows_B)).sum())

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """int64 [count] rows, by inversion of the distribution function; memory does not grow with the rows."""
        uniform = random.random(count)
        end = self.rows + 1.0
        if self.exponent == 1:
            row = end**uniform
        else:
            power = 1 - self.exponent
            row = (1 + uniform * (end**power - 1)) ** (1 / power)
        return np.minimum(row.astype(np.int64) - 1, self.rows - 1)

    def _mass(self, row: int) -> float:
        """The law's integral from 1 to row + 1, up to a constant factor."""
        power = 1 - self.exponent
        return log(row + 1) if power == 0 else ((row + 1.0) ** power - 1) / power
