"""How a table's looked-up ids fall on its rows.

Shapes: R rows of the table; U different counts among them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln


class Popularity(Protocol):
    """Which rows a table's ids meet, for ranges of rows [first, last)."""

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in the range."""
        ...

    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of rows of the range that so many ids, drawn independently from all rows, meet."""
        ...


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
