"""Paired bootstrap over users for AUC, GAUC and UAUC (Efron & Tibshirani 1993, percentile intervals).

Users are drawn with replacement and bring all their rows along; the same draws serve every model, seed, slice and
metric, so that what models have in common cancels in a difference. Nothing is sorted again: pooled AUC comes from
cumulated multiplicities over rows sorted once, GAUC and UAUC from each user's AUC.

Shapes: N rows, V users, R resamples, P positive and M negative rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sidrec.metrics.pairs import Floats, Ints, Reals, pair_counts

CHUNK = 50  # resamples at a time: R x N intermediate values stay small


def user_multiplicities(users: int, resamples: int, seed: int) -> Iterator[Ints]:
    """Yields int64 [r, V] with r up to CHUNK: how often each user is drawn, each row summing to V."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        yield np.stack(
            [
                np.bincount(random.integers(0, users, users), minlength=users)
                for _ in range(min(CHUNK, resamples - start))
            ]
        ).astype(np.int64)


@dataclass(frozen=True)
class PooledAuc:
    """AUC over all rows, each counted as often as its user is drawn; ties one half.

    positive_users_P, negative_users_M: users of the rows, negatives ascending by score.
    below_P, upto_P: per positive row, how many negatives score lower, and lower or equal.
    """

    positive_users_P: Ints
    negative_users_M: Ints
    below_P: Ints
    upto_P: Ints

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, user_N: Ints) -> "PooledAuc":
        """user_N: int64 in [0, V)."""
        positive_N = label_N > 0
        order_M = np.argsort(score_N[~positive_N], kind="stable")
        negatives_M = score_N[~positive_N][order_M]
        positives_P = score_N[positive_N]
        return cls(
            user_N[positive_N],
            user_N[~positive_N][order_M],
            np.searchsorted(negatives_M, positives_P, side="left").astype(np.int64),
            np.searchsorted(negatives_M, positives_P, side="right").astype(np.int64),
        )

    def resampled(self, multiplicity_RV: Ints) -> Floats:
        """float64 [R]; NaN where a resample lacks a class."""
        weight_RP = np.take(multiplicity_RV, self.positive_users_P, axis=1)
        cumulated_RM = np.zeros((len(multiplicity_RV), len(self.negative_users_M) + 1), dtype=np.int64)
        np.cumsum(np.take(multiplicity_RV, self.negative_users_M, axis=1), axis=1, out=cumulated_RM[:, 1:])
        twice_won_RP = np.take(cumulated_RM, self.below_P, axis=1) + np.take(cumulated_RM, self.upto_P, axis=1)
        pairs_R = weight_RP.sum(axis=1) * cumulated_RM[:, -1]
        return _ratio(np.einsum("rp,rp->r", weight_RP, twice_won_RP), 2 * pairs_R)


@dataclass(frozen=True)
class MeanAuc:
    """A mean of covered users' AUCs, each counted as often as drawn. weight_V: 0 for users without both classes."""

    weight_V: Floats
    auc_V: Floats

    @classmethod
    def gauc(cls, label_N: Reals, score_N: Reals, user_N: Ints, users: int) -> "MeanAuc":
        """Users weighted by their rows. user_N: int64 in [0, users); users without rows are allowed."""
        rows_V, auc_V = np.zeros(users), np.zeros(users)
        present, group_N = np.unique(user_N, return_inverse=True)
        counts = pair_counts(label_N, score_N, group_N.astype(np.int64))
        covered = present[counts.covered]
        rows_V[covered] = counts.rows[counts.covered]
        auc_V[covered] = counts.auc()
        return cls(rows_V, auc_V)

    def uauc(self) -> "MeanAuc":
        """The same users, all weighted alike."""
        return MeanAuc((self.weight_V > 0).astype(np.float64), self.auc_V)

    def resampled(self, multiplicity_RV: Ints) -> Floats:
        """float64 [R]; NaN where no covered user is drawn."""
        return _ratio(multiplicity_RV @ (self.weight_V * self.auc_V), multiplicity_RV @ self.weight_V)


def _ratio(numerator_R: Floats | Ints, denominator_R: Floats | Ints) -> Floats:
    undefined_R = np.full(len(numerator_R), np.nan)
    return np.divide(numerator_R, denominator_R, out=undefined_R, where=denominator_R > 0)
