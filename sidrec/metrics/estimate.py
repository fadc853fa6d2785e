"""From counted pairs to AUC, GAUC and UAUC, each with how far it may be off.

Shapes: V users.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sidrec.metrics.pairs import Floats, Ints, PairCounts

NAMES = ("auc", "gauc", "uauc")


class Estimate(NamedTuple):
    """value: NaN where no group has both classes.

    ties: bound on what bins hide: the value is at most this far from that of the same rows without bins; 0 if exact.
    sampling: one standard error from measuring a sample of users; 0 if all users are measured.
    """

    value: float
    ties: float
    sampling: float


@dataclass(frozen=True)
class CountedPairs:
    """What a form has counted of one slice.

    by_user, pooled: pairs of each user's rows, and of all rows as one group.
    hidden_by_user_V, hidden: pairs of a positive and a negative that one bin holds, whose order is unknown. An AUC
    counts them as ties, so it is off by at most half their share.
    sampled: the share of users in `by_user`, in (0, 1].
    """

    by_user: PairCounts
    pooled: PairCounts
    hidden_by_user_V: Ints
    hidden: int
    sampled: float

    def estimates(self) -> dict[str, Estimate]:
        """`NAMES` -> estimate."""
        covered = self.by_user.covered
        auc_V, rows_V = self.by_user.auc(), self.by_user.rows[covered].astype(np.float64)
        pairs_V = self.by_user.positives_V[covered] * self.by_user.negatives_V[covered]
        ties_V = self.hidden_by_user_V[covered] / (2.0 * pairs_V)
        return {
            "auc": self._pooled(),
            "gauc": self._mean(self.by_user.gauc(), auc_V, ties_V, rows_V),
            "uauc": self._mean(self.by_user.uauc(), auc_V, ties_V, np.ones_like(auc_V)),
        }

    def _pooled(self) -> Estimate:
        value = self.pooled.uauc()  # the mean over a single group
        if value is None:
            return Estimate(math.nan, math.nan, math.nan)
        pairs = int(self.pooled.positives_V[0]) * int(self.pooled.negatives_V[0])
        return Estimate(value, self.hidden / (2.0 * pairs), 0.0)

    def _mean(self, value: float | None, auc_V: Floats, ties_V: Floats, weight_V: Floats) -> Estimate:
        """Standard error of a weighted mean over users drawn without replacement (ratio estimator, Cochran 1977, 6.4).

        NaN where one user alone is measured of many: one user tells nothing about the others.
        """
        if value is None:
            return Estimate(math.nan, math.nan, math.nan)
        ties = float(np.sum(weight_V * ties_V) / weight_V.sum())
        if self.sampled == 1.0:
            return Estimate(value, ties, 0.0)
        if len(auc_V) == 1:
            return Estimate(value, ties, math.nan)
        residual_V = weight_V * (auc_V - value)
        variance = (1.0 - self.sampled) * np.sum(residual_V**2) * len(auc_V) / (len(auc_V) - 1)
        return Estimate(value, ties, float(np.sqrt(variance) / weight_V.sum()))
