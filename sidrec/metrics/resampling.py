"""Metrics on resamples: users drawn with replacement bring all their rows along (Efron & Tibshirani 1993, chapter 8).

Where items are drawn too, a row counts as often as its user times as often as its item (the pigeonhole bootstrap: Owen
2007, Annals of Applied Statistics 1(2)). No resample is sorted again: pooled AUC comes from cumulated multiplicities
over rows sorted once, GAUC and UAUC from each user's AUC. Equal rows have equal draws, so that noise that models share
cancels in a difference.

Shapes: N rows, V users, I items, R resamples, P positive and M negative rows.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidrec.metrics.pairs import Floats, Ints, Reals, pair_counts
from sidrec.metrics.predictions import Predictions

SEED, ITEM_SEED = 0, 1
CHUNK = 50
"""Resamples at a time, at most."""
MOST_VALUES = 5_000_000
"""Rows times resamples at a time, at most."""
METRICS = ("auc", "gauc", "uauc", "ne", "log_loss")

Scored = tuple[str, str]  # slice, metric


@dataclass(frozen=True)
class Resampled:
    """Metrics on the actual rows, and [R] on the resamples; NaN where undefined."""

    actual: dict[Scored, float]
    resampled_R: dict[Scored, Floats]


def resample(
    predictions: Predictions,
    masks: Mapping[str, NDArray[np.bool_]],
    resamples: int,
    items_drawn: Collection[str] = (),
) -> Resampled:
    """The metrics METRICS of each slice on resamples of users.

    masks: slice -> bool [N]. items_drawn: slices in which items are drawn too, from those that have rows in it.
    """
    users, user_N = np.unique(predictions.user_N, return_inverse=True)
    user_N = user_N.astype(np.int64)
    slices: dict[str, UserSlice | CrossedSlice] = {}
    for name, mask_N in masks.items():
        rows = predictions.label_N[mask_N], predictions.score_N[mask_N], user_N[mask_N]
        crossed = name in items_drawn
        item_N = predictions.item_N[mask_N]
        slices[name] = CrossedSlice.of(*rows, item_N) if crossed else UserSlice.of(*rows, len(users))
    chunk = chunk_of(len(user_N))
    item_draws = {name: multiplicities(part.items, resamples, ITEM_SEED, chunk) for name, part in slices.items()}
    chunks: dict[Scored, list[Floats]] = {}
    for times_RV in multiplicities(len(users), resamples, SEED, chunk):
        for name, part in slices.items():
            for metric, values_R in part.resampled(times_RV, next(item_draws[name])).items():
                chunks.setdefault((name, metric), []).append(values_R)
    actual = {
        (name, metric): float(value_R[0])
        for name, part in slices.items()
        for metric, value_R in part.resampled(_once(len(users)), _once(part.items)).items()
    }
    return Resampled(actual, {key: np.concatenate(values) for key, values in chunks.items()})


def _once(units: int) -> Ints:
    """int64 [1, units]: the actual rows."""
    return np.ones((1, units), dtype=np.int64)


def chunk_of(rows: int) -> int:
    """Resamples at a time, so that intermediate values fit in memory."""
    return max(1, min(CHUNK, MOST_VALUES // max(1, rows)))


def multiplicities(units: int, resamples: int, seed: int, chunk: int = CHUNK) -> Iterator[Ints]:
    """Yields int64 [r, units] with r up to `chunk`: how often each unit is drawn, each row summing to `units`.

    The draws do not depend on `chunk`.
    """
    random = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        times_RV = np.zeros((min(chunk, resamples - start), units), dtype=np.int64)
        for number in range(len(times_RV) if units else 0):
            times_RV[number] = np.bincount(random.integers(0, units, units), minlength=units)
        yield times_RV


@dataclass(frozen=True)
class UserSlice:
    """A slice whose rows count as often as their user is drawn."""

    pooled: "PooledAuc"
    gauc: "MeanAuc"
    ne: "LogLoss"
    items = 0
    """Items are not drawn."""

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, user_N: Ints, users: int) -> "UserSlice":
        """user_N: int64 in [0, users)."""
        rows = label_N, score_N, user_N
        return cls(PooledAuc.of(*rows), MeanAuc.gauc(*rows, users), LogLoss.of(*rows, users))

    def resampled(self, times_RV: Ints, items_RI: Ints) -> dict[str, Floats]:
        """Metric -> float64 [R], NaN where undefined."""
        del items_RI
        values = {"auc": self.pooled.resampled(times_RV), "gauc": self.gauc.resampled(times_RV)}
        values["uauc"] = self.gauc.uauc().resampled(times_RV)
        values["ne"], values["log_loss"] = self.ne.resampled(times_RV)
        return values


@dataclass(frozen=True)
class CrossedSlice:
    """A slice whose rows count as often as their user is drawn times as often as their item is.

    pooled, ne: with each row as a unit of its own. user_N, item_N: positions of users and of the slice's items.
    """

    pooled: "PooledAuc"
    by_user: "WeightedUserAuc"
    ne: "LogLoss"
    user_N: Ints
    item_N: Ints
    items: int

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, user_N: Ints, item_N: Ints) -> "CrossedSlice":
        """user_N: int64 positions in the draws of users. item_N: any ids."""
        row_N = np.arange(len(label_N))
        items, item_N = np.unique(item_N, return_inverse=True)
        return cls(
            PooledAuc.of(label_N, score_N, row_N),
            WeightedUserAuc.of(label_N, score_N, user_N),
            LogLoss.of(label_N, score_N, row_N, len(row_N)),
            user_N,
            item_N.astype(np.int64),
            len(items),
        )

    def resampled(self, times_RV: Ints, items_RI: Ints) -> dict[str, Floats]:
        """Metric -> float64 [R], NaN where undefined. items_RI: how often each item of the slice is drawn."""
        items_RN = np.take(items_RI, self.item_N, axis=1)
        rows_RN = np.take(times_RV, self.user_N, axis=1) * items_RN
        values = {"auc": self.pooled.resampled(rows_RN)}
        values["gauc"], values["uauc"] = self.by_user.resampled(times_RV, items_RN)
        values["ne"], values["log_loss"] = self.ne.resampled(rows_RN)
        return values


@dataclass(frozen=True)
class PooledAuc:
    """AUC over all rows, each counted as often as its unit (its user, or the row) is drawn; ties one half.

    positive_units_P, negative_units_M: units of the rows, negatives ascending by score.
    below_P, upto_P: per positive row, how many negatives score lower, and lower or equal.
    """

    positive_units_P: Ints
    negative_units_M: Ints
    below_P: Ints
    upto_P: Ints

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, unit_N: Ints) -> "PooledAuc":
        """unit_N: int64 in [0, V)."""
        positive_N = label_N > 0
        order_M = np.argsort(score_N[~positive_N], kind="stable")
        negatives_M = score_N[~positive_N][order_M]
        positives_P = score_N[positive_N]
        return cls(
            unit_N[positive_N],
            unit_N[~positive_N][order_M],
            np.searchsorted(negatives_M, positives_P, side="left").astype(np.int64),
            np.searchsorted(negatives_M, positives_P, side="right").astype(np.int64),
        )

    def resampled(self, times_RV: Ints) -> Floats:
        """float64 [R]; NaN where a resample lacks a class."""
        weight_RP = np.take(times_RV, self.positive_units_P, axis=1)
        cumulated_RM = np.zeros((len(times_RV), len(self.negative_units_M) + 1), dtype=np.int64)
        np.cumsum(np.take(times_RV, self.negative_units_M, axis=1), axis=1, out=cumulated_RM[:, 1:])
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

    def resampled(self, times_RV: Ints) -> Floats:
        """float64 [R]; NaN where no covered user is drawn."""
        return _ratio(times_RV @ (self.weight_V * self.auc_V), times_RV @ self.weight_V)


@dataclass(frozen=True)
class WeightedUserAuc:
    """GAUC and UAUC where rows have weights within their user. Rows ascending by user and score.

    Only rows of users with both classes: others have no AUC, whatever the weights. U: these users.
    row_N: their positions in the slice. user_U: positions in the draws of users. start_U: the first row of each.
    user_N: positions in user_U. below_N, upto_N: rows before a row's run of equal scores, and up to its end.
    """

    row_N: Ints
    positive_N: NDArray[np.bool_]
    user_U: Ints
    start_U: Ints
    user_N: Ints
    below_N: Ints
    upto_N: Ints

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, user_N: Ints) -> "WeightedUserAuc":
        """user_N: int64 positions in the draws of users."""
        present, group_N = np.unique(user_N, return_inverse=True)
        positive_N = label_N > 0
        both_U = np.isin(np.arange(len(present)), group_N[positive_N]) & np.isin(
            np.arange(len(present)), group_N[~positive_N]
        )
        kept_N = np.flatnonzero(both_U[group_N])
        row_N = kept_N[np.lexsort((score_N[kept_N], group_N[kept_N]))]
        user_U, sorted_N = np.unique(user_N[row_N], return_inverse=True)
        new_N = np.ones(len(row_N), dtype=bool)
        new_N[1:] = (sorted_N[1:] != sorted_N[:-1]) | (score_N[row_N][1:] != score_N[row_N][:-1])
        tie_starts = np.append(np.flatnonzero(new_N), len(row_N))
        tie_N = np.cumsum(new_N) - 1
        return cls(
            row_N,
            positive_N[row_N],
            user_U,
            np.searchsorted(sorted_N, np.arange(len(user_U))),
            sorted_N,
            tie_starts[tie_N],
            tie_starts[tie_N + 1],
        )

    def resampled(self, times_RV: Ints, weight_RN: Ints) -> tuple[Floats, Floats]:
        """GAUC and UAUC, float64 [R]; NaN where no drawn user has both classes. weight_RN: of all rows of the slice."""
        if not len(self.row_N):
            return np.full(len(times_RV), np.nan), np.full(len(times_RV), np.nan)
        weight_RN = weight_RN[:, self.row_N]
        positive_RN = weight_RN * self.positive_N
        before_RN = np.zeros((len(weight_RN), weight_RN.shape[1] + 1), dtype=np.int64)
        np.cumsum(weight_RN - positive_RN, axis=1, out=before_RN[:, 1:])
        beaten_RN = before_RN[:, self.below_N] + before_RN[:, self.upto_N]
        beaten_RN -= 2 * before_RN[:, self.start_U[self.user_N]]
        twice_won_RU = np.add.reduceat(positive_RN * beaten_RN, self.start_U, axis=1)
        positives_RU = np.add.reduceat(positive_RN, self.start_U, axis=1)
        rows_RU = np.add.reduceat(weight_RN, self.start_U, axis=1)
        pairs_RU = positives_RU * (rows_RU - positives_RU)
        times_RU = times_RV[:, self.user_U] * (pairs_RU > 0)
        auc_RU = twice_won_RU / np.maximum(2 * pairs_RU, 1)
        gauc_R = _ratio((times_RU * rows_RU * auc_RU).sum(axis=1), (times_RU * rows_RU).sum(axis=1))
        return gauc_R, _ratio((times_RU * auc_RU).sum(axis=1), times_RU.sum(axis=1))


@dataclass(frozen=True)
class LogLoss:
    """Mean log loss in nats, and that over the entropy of the rows' base rate. Sums by unit (user, or row)."""

    loss_V: Floats
    positives_V: Floats
    rows_V: Floats

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, unit_N: Ints, units: int) -> "LogLoss":
        """unit_N: int64 in [0, units)."""
        score = score_N.astype(np.float64)
        loss_N = np.logaddexp(0.0, np.where(label_N > 0, -score, score))
        positive_N, rows_N = (label_N > 0).astype(np.float64), np.ones(len(loss_N))
        return cls(
            *(
                np.bincount(unit_N, weights, minlength=units).astype(np.float64)
                for weights in (loss_N, positive_N, rows_N)
            )
        )

    def resampled(self, times_RV: Ints) -> tuple[Floats, Floats]:
        """Normalised entropy and log loss, float64 [R]; NaN without rows and, normalised, where a class is lacking."""
        rows_R = times_RV @ self.rows_V
        loss_R = _ratio(times_RV @ self.loss_V, rows_R)
        base_R = _ratio(times_RV @ self.positives_V, rows_R)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy_R = -(base_R * np.log(base_R) + (1 - base_R) * np.log1p(-base_R))
        return _ratio(loss_R, np.nan_to_num(entropy_R)), loss_R


def _ratio(numerator_R: Floats | Ints, denominator_R: Floats | Ints) -> Floats:
    undefined_R = np.full(len(numerator_R), np.nan)
    return np.divide(numerator_R, denominator_R, out=undefined_R, where=denominator_R > 0)
