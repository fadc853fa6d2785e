"""How far a plan is behind another, round by round: what else the machine does in a round slows both.

Shapes: R rounds that both plans did, S bootstrap draws of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Behind:
    """ratio_R: float64, the plan's step over the other's in each round, 1 where both are as fast."""

    ratio_R: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return float(np.median(self.ratio_R))

    @property
    def low(self) -> float:
        return self._interval[0]

    @property
    def high(self) -> float:
        return self._interval[1]

    @property
    def slower(self) -> int:
        """Rounds in which the plan was slower."""
        return int((self.ratio_R > 1).sum())

    @property
    def rounds(self) -> int:
        """Rounds that both did."""
        return len(self.ratio_R)

    @cached_property  # drawn where it is asked for, and once
    def _interval(self) -> tuple[float, float]:
        """95% of what `ratio` is in bootstrap draws of the rounds (percentiles; Efron & Tibshirani 1993): below 1 and
        above 1, the plans cannot be told apart."""
        drawn_SR = np.random.default_rng(0).integers(0, self.rounds, (RESAMPLES, self.rounds))
        low, high = np.quantile(np.median(self.ratio_R[drawn_SR], axis=1), [0.025, 0.975]).tolist()
        return low, high


def behind(rounds: Sequence[float], other: Sequence[float]) -> Behind | None:
    """rounds: median steps of a plan's rounds; other: of the other plan's, in the same order. None without a round that
    both did; a bench that was cut short leaves unequal counts."""
    count = min(len(rounds), len(other))
    return Behind(np.array(rounds[:count]) / np.array(other[:count])) if count else None
