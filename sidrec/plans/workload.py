"""What a plan is made of: a model's tables, and how they are read in a step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import log
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

# How a table's looked-up ids fall on its rows.
#
# Shapes: R rows of the table; U different counts among them.


class Popularity(Protocol):
    """Which rows a table's ids meet, for ranges of rows [first, last)."""

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in the range."""
        ...

    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of rows of the range that so many ids, drawn independently from all rows, meet."""
        ...


@dataclass(frozen=True)
class TableLoad:
    """How one rank reads a table in a step.

    bags: bags per feature. ids_per_bag: mean ids in a bag, one value per feature of the table.
    popularity: how the ids fall on the table's rows; None where that is not known.
    """

    bags: int
    ids_per_bag: tuple[float, ...]
    popularity: Popularity | None = None


@dataclass(frozen=True)
class Workload:
    """model: any module whose EmbeddingBagCollections are on `meta`. loads: table name -> load, one for every table.

    rows_per_rank: rows that one rank trains on in a step.
    """

    name: str
    model: nn.Module
    loads: Mapping[str, TableLoad]
    rows_per_rank: int

    @cached_property  # a search asks for every layout of every table
    def dense_parameters(self) -> int:
        """Parameters outside of the tables: as many multiplications per row and pass, in layers that are linear."""
        tables = {id(weight) for tables in self.collections.values() for weight in tables.parameters()}
        return sum(weight.numel() for weight in self.model.parameters() if id(weight) not in tables)

    @property
    def tables(self) -> dict[str, EmbeddingBagConfig]:
        """Table name -> TorchRec's description, of all collections, in their order."""
        return tables_of(self.model)

    @property
    def collections(self) -> dict[str, EmbeddingBagCollection]:
        """Path of a collection in the model -> collection."""
        return {
            path: module for path, module in self.model.named_modules() if isinstance(module, EmbeddingBagCollection)
        }


def tables_of(model: nn.Module) -> dict[str, EmbeddingBagConfig]:
    """Table name -> TorchRec's description, of all collections in a model that is not sharded yet, in their order."""
    return {
        table.name: table
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for table in module.embedding_bag_configs()
    }


@dataclass(frozen=True, eq=False)
class _RowByRow(ABC):
    """What is known of each row; sums over the rows before each are kept, as searches ask for many ranges."""

    _met_before: dict[float, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False)

    @abstractmethod
    def _met(self, ids: float) -> NDArray[np.float64]:
        """float64 [R]: probability that so many ids meet the row."""

    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of rows in [first, last) that so many ids meet."""
        if ids not in self._met_before:
            self._met_before[ids] = np.concatenate([[0.0], np.cumsum(self._met(ids))])
        before_R = self._met_before[ids]
        return float(before_R[last] - before_R[first])


@dataclass(frozen=True, eq=False)
class RowFrequencies(_RowByRow):
    """frequency_R: float64, expected share of the looked-up ids that fall on each row; sums to 1."""

    frequency_R: NDArray[np.float64]

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        return float(self.frequency_R[first:last].sum())

    def _met(self, ids: float) -> NDArray[np.float64]:
        return -np.expm1(-ids * self.frequency_R)


@dataclass(frozen=True, eq=False)
class CountedRows(_RowByRow):
    """count_R: int64, how often each row was met by ids that were read, at least one.

    `distinct` is that of so many of the ids that were read (rarefaction, Hurlbert 1971): unlike what was read, taken
    for frequencies, it does not take ids that come once in a while for ids that come again and again. More ids than
    were read meet no more rows than these.
    """

    count_R: NDArray[np.int64]

    @cached_property
    def _read(self) -> int:
        """Ids that were read."""
        return int(self.count_R.sum())

    def share(self, first: int, last: int) -> float:
        """Share of the ids that were read whose row is in [first, last)."""
        return float(self.count_R[first:last].sum() / self._read)

    def _met(self, ids: float) -> NDArray[np.float64]:
        count_U, of_R = np.unique(self.count_R, return_inverse=True)
        read = self._read
        left = max(0.0, read - ids)
        rare_U = count_U <= left  # a row met more often than ids are left out is among any others
        rare = count_U[rare_U]
        missed_U = np.zeros(len(count_U))
        ways, all_ways = gammaln(left + 1) - gammaln(left - rare + 1), gammaln(read + 1) - gammaln(read - rare + 1)
        missed_U[rare_U] = np.exp(ways - all_ways)
        met_R: NDArray[np.float64] = (1 - missed_U)[of_R]
        return met_R


# How ids whose popularity follows a power law fall on a table's rows.


RANGES = 200
"""Ranges of rows in which a law's probabilities are taken as even, where each row counts by itself."""
EVEN = 0.0
"""The exponent with which all rows are alike."""


@dataclass(frozen=True)
class ZipfLaw:
    """Row r of `rows` is looked up with a probability of about 1 / (r + 1)^exponent: the continuous law on
    [1, rows + 1), cut at whole numbers, which has a closed form for any number of rows."""

    rows: int
    exponent: float

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        return (self._mass(last) - self._mass(first)) / self._mass(self.rows)

    @lru_cache(maxsize=1 << 17)  # noqa: B019  # by value: a search asks for the same shards over and over
    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of rows in [first, last) that so many ids meet, up to Poisson's approximation.

        The rows are taken in ranges that each are about as much longer than the last, in which they are alike.
        """
        edge_B = np.unique(np.geomspace(first + 1, last + 1, RANGES + 1).round()) - 1
        mass_B = np.array([self._mass(int(row)) for row in edge_B]) / self._mass(self.rows)
        rows_B = np.diff(edge_B)
        return float((rows_B * -np.expm1(-ids * np.diff(mass_B) / rows_B)).sum())

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """int64 [count] rows, by inversion of the law's distribution: any number of rows costs the same."""
        uniform = random.random(count)
        end = self.rows + 1.0
        if self.exponent == 1:
            place = end**uniform
        else:
            power = 1 - self.exponent
            place = (1 + uniform * (end**power - 1)) ** (1 / power)
        return np.minimum(place.astype(np.int64) - 1, self.rows - 1)

    def _mass(self, row: int) -> float:
        """The law's integral from 1 to row + 1, up to a factor."""
        power = 1 - self.exponent
        return log(row + 1) if power == 0 else ((row + 1.0) ** power - 1) / power
