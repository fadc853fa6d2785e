"""How a table's looked-up ids fall on its rows."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Popularity(Protocol):
    """Which rows a table's ids meet, for ranges of rows [first, last)."""

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in the range."""
        ...


@dataclass(frozen=True, eq=False)
class RowFrequencies:
    """frequency_R: float64, expected share of the looked-up ids that fall on each row; sums to 1."""

    frequency_R: NDArray[np.float64]

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        return float(self.frequency_R[first:last].sum())
