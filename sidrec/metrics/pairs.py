"""Counts of (positive, negative) pairs, from which AUC, GAUC and UAUC are computed. Exact integers.

Shapes: N rows, V groups (users, or all rows as one).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidrec.schema import ContractError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Reals = NDArray[np.floating]


@dataclass(frozen=True)
class PairCounts:
    """Pairs ranked right and tied, for each user or for all rows as one group.

    positives_V, negatives_V: rows of each class.
    twice_won_V: over all pairs of a positive and a negative row of the same group, 2 when the positive scores higher,
    1 when they tie, 0 otherwise. Integers, so that the order of rows cannot change the result.
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


# AUC, GAUC and UAUC with their errors.


NAMES = ("auc", "gauc", "uauc")


class Estimate(NamedTuple):
    """value: NaN where no group has both classes.

    ties: bound on the error of binning: without bins, the value would differ by at most this; 0 if exact.
    sampling: standard error of sampling users; 0 if all users are measured.
    """

    value: float
    ties: float
    sampling: float


@dataclass(frozen=True)
class CountedPairs:
    """The pairs that a form counted of one slice.

    by_user, pooled: pairs of each user's rows, and of all rows as one group.
    hidden_by_user_V, hidden: pairs within one bin, whose order is unknown. They count as ties, which changes an AUC by
    at most half their share.
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

        NaN if only one of many users is measured.
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


@dataclass(frozen=True)
class Rows:
    """Checked rows on the metric's device.

    score_N: float64. positive_N: uint8, 0 or 1. user_N: int64. slices_N: uint8, bit s is set for rows of slice s.
    """

    score_N: Tensor
    positive_N: Tensor
    user_N: Tensor
    slices_N: Tensor

    def inside(self, bit: int | None) -> Tensor:
        """bool [N]: the rows of one slice; all rows for None."""
        return torch.ones_like(self.slices_N, dtype=torch.bool) if bit is None else (self.slices_N >> bit) & 1 == 1

    def last(self, count: int) -> "Rows":
        """The last `count` rows, or all where there are fewer."""
        start = max(len(self.score_N) - count, 0)
        return Rows(self.score_N[start:], self.positive_N[start:], self.user_N[start:], self.slices_N[start:])


def checked_rows(where: str, scores: Tensor, labels: Tensor, users: Tensor, device: torch.device) -> Rows:
    """Checks and flattens a batch; the rows are in no slice yet.

    scores: floating, finite. labels: 0 or 1, any type. users: integers. All [N] or [N, 1]; N may be 0.

    Raises ContractError, which names `where` and the argument.
    """
    if not scores.is_floating_point():
        raise ContractError(f"{where}, scores", "floating point", scores.dtype)
    require_integers(f"{where}, users", users)
    for name, tensor in (("scores", scores), ("labels", labels), ("users", users)):
        if tensor.numel() != (tensor.shape[0] if tensor.ndim else 0):
            raise ContractError(f"{where}, {name}", "shape [N] or [N, 1]", list(tensor.shape))
        if tensor.numel() != scores.numel():
            raise ContractError(f"{where}, {name}", f"{scores.numel()} rows, as many as scores", tensor.numel())
    score_N = scores.detach().reshape(-1).to(device, torch.float64)
    label_N = labels.detach().reshape(-1).to(device)
    _refuse_first(f"{where}, scores", "finite numbers", score_N, ~torch.isfinite(score_N))
    _refuse_first(f"{where}, labels", "0 or 1", label_N, (label_N != 0) & (label_N != 1))
    return Rows(
        score_N,
        label_N.to(torch.uint8),
        users.detach().reshape(-1).to(device, torch.int64),
        torch.zeros(len(score_N), dtype=torch.uint8, device=device),
    )


def require_integers(where: str, ids: Tensor) -> None:
    """Raises ContractError unless the ids are of an integer type."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ContractError(where, "integers", ids.dtype)


def _refuse_first(where: str, expected: str, value_N: Tensor, wrong_N: Tensor) -> None:
    if wrong_N.any():
        row = int(wrong_N.nonzero()[0])
        raise ContractError(where, expected, f"{value_N[row].item()} in row {row} of the batch")
