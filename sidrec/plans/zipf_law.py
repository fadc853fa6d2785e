"""How ids whose popularity follows a power law fall on a table's rows."""

from dataclasses import dataclass
from functools import lru_cache
from math import log

import numpy as np

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
