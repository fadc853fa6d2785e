"""Pairs of a positive and a negative row, and who outranks whom: what AUC, GAUC and UAUC are made of. Exact integers.

Shapes: N rows, V groups (users, or all rows as one).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Reals = NDArray[np.floating]


@dataclass(frozen=True)
class PairCounts:
    """Who outranks whom, for each user or for all rows as one group.

    positives_V, negatives_V: rows of each class.
    twice_won_V: over all pairs of a positive and a negative row of the same group, 2 when the positive scores higher,
    1 when they tie, 0 otherwise. Whole numbers, so the result cannot depend on the order of rows.
    """

    positives_V: Ints
    negatives_V: Ints
    twice_won_V: Ints

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Groups with both classes: the only ones that have an AUC."""
        return (self.positives_V > 0) & (self.negatives_V > 0)

    @property
    def rows(self) -> Ints:
        return self.positives_V + self.negatives_V

    def auc(self) -> Floats:
        """The AUC of each covered group; ties count one half."""
        covered = self.covered
        pairs = self.positives_V[covered] * self.negatives_V[covered]
        return self.twice_won_V[covered] / (2.0 * pairs)

    def gauc(self) -> float | None:
        """Groups' AUCs weighted by their rows (Zhu et al., KDD 2017); None where no group is covered."""
        auc, covered_rows = self.auc(), self.rows[self.covered]
        return float(np.sum(covered_rows * auc) / covered_rows.sum()) if len(auc) else None

    def uauc(self) -> float | None:
        """Plain mean of groups' AUCs; None where no group is covered."""
        auc = self.auc()
        return float(np.mean(auc)) if len(auc) else None


def pair_counts(label_N: Reals, score_N: Reals, group_N: Ints) -> PairCounts:
    """Counts the pairs within each group. group_N: int64 in [0, V); every group has at least one row.

    Exact while positives times negatives of a group stays below 2**62.
    """
    order_N = np.lexsort((score_N, group_N))
    group_N, score_N = group_N[order_N], score_N[order_N]
    positive_N = (label_N[order_N] > 0).astype(np.int64)
    new_group_N = _starts(group_N)
    tie_starts = np.flatnonzero(new_group_N | _starts(score_N))
    group_starts = np.flatnonzero(new_group_N)
    if len(group_starts) == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return PairCounts(nothing, nothing, nothing)

    negatives_before_N = np.cumsum(1 - positive_N) - (1 - positive_N)
    positives_V = np.add.reduceat(positive_N, group_starts)
    negatives_V = np.add.reduceat(1 - positive_N, group_starts)
    # Per run of equal scores T in a group: its positives beat every negative before the run and tie with those in it.
    positives_T = np.add.reduceat(positive_N, tie_starts)
    negatives_T = np.add.reduceat(1 - positive_N, tie_starts)
    beaten_T = negatives_before_N[tie_starts] - negatives_before_N[group_starts][group_N[tie_starts]]
    twice_won_V = np.add.reduceat(positives_T * (2 * beaten_T + negatives_T), _runs_per_group(tie_starts, group_starts))
    return PairCounts(positives_V, negatives_V, twice_won_V)


def _starts(values: Ints | Reals) -> NDArray[np.bool_]:
    """True where a run of equal values begins."""
    starts = np.ones(len(values), dtype=bool)
    starts[1:] = values[1:] != values[:-1]
    return starts


def _runs_per_group(tie_starts: Ints, group_starts: Ints) -> Ints:
    """The position, among the runs of ties, at which each group begins."""
    return np.searchsorted(tie_starts, group_starts).astype(np.int64)
