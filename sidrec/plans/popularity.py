"""How a table's looked-up ids fall on its rows."""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Popularity(Protocol):
    """Which rows a table's ids meet, for ranges of rows [first, last)."""

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in the range."""
        ...

    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of rows of the range that so many ids, drawn independently from all rows, meet."""
        ...


@dataclass(frozen=True, eq=False)
class RowFrequencies:
    """frequency_R: float64, expected share of the looked-up ids that fall on each row; sums to 1."""

    frequency_R: NDArray[np.float64]

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        return float(self.frequency_R[first:last].sum())

    def distinct(self, first: int, last: int, ids: float) -> float:
        """Expected number of rows in [first, last) that so many ids meet; exact up to Poisson's approximation."""
        before_R = self._distinct_before(ids)
        return float(before_R[last] - before_R[first])

    @cache  # noqa: B019  # a workload asks with one or two numbers of ids, for every shard of a search
    def _distinct_before(self, ids: float) -> NDArray[np.float64]:
        """float64 [R + 1]: expected number of rows below each that so many ids meet."""
        return np.concatenate([[0.0], np.cumsum(-np.expm1(-ids * self.frequency_R))])
