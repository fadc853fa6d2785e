"""How ids whose popularity follows a power law fall on a table's rows."""

from dataclasses import dataclass
from math import log


@dataclass(frozen=True)
class ZipfLaw:
    """Row r of `rows` is looked up with a probability of about 1 / (r + 1)^exponent: the continuous law on
    [1, rows + 1), cut at whole numbers, which has a closed form for any number of rows."""

    rows: int
    exponent: float

    def share(self, first: int, last: int) -> float:
        """Probability that an id's row is in [first, last)."""
        return (self._mass(last) - self._mass(first)) / self._mass(self.rows)

    def _mass(self, row: int) -> float:
        """The law's integral from 1 to row + 1, up to a factor."""
        power = 1 - self.exponent
        return log(row + 1) if power == 0 else ((row + 1.0) ** power - 1) / power
