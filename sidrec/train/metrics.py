"""Ranking and calibration metrics, exact: integer pair counts, float64 sums over all rows, no histogram or sampling.

Shapes: N rows, V users in ascending order of their ids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Reals = NDArray[np.floating]
Metrics = dict[str, float | int | None]

RANKING = ("auc", "gauc", "uauc")
PROBABILITY = ("ne", "log_loss", "calibration")
COUNTS = ("rows", "positives", "users", "covered_users", "covered_rows")


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


def measure(label_N: Reals, score_N: Reals, user_N: Ints) -> Metrics:
    """All metrics of a set of rows; a metric that these rows cannot define is None (`reasons` says why).

    label_N: 0 or 1. score_N: logits, finite. user_N: any int64 ids.

    auc: share of (positive, negative) pairs ranked right, ties one half: the AUC of midranks.
    gauc: users' AUCs weighted by their rows, over users with both classes (Zhu et al., KDD 2017).
    uauc: plain mean of the same users' AUCs.
    log_loss: mean cross-entropy in nats.
    ne: log_loss over the entropy of these rows' base rate (He et al., ADKDD 2014).
    calibration: mean predicted probability over mean label.
    rows, positives, users; covered_users, covered_rows: users with both classes, and their rows.
    """
    users, group_N = np.unique(user_N, return_inverse=True)
    by_user = pair_counts(label_N, score_N, group_N.astype(np.int64))
    pooled = pair_counts(label_N, score_N, np.zeros(len(label_N), dtype=np.int64))
    auc, covered = by_user.auc(), by_user.covered
    covered_rows = by_user.rows[covered]
    return {
        "auc": _mean(pooled.auc()),
        "gauc": float(np.sum(covered_rows * auc) / covered_rows.sum()) if len(auc) else None,
        "uauc": _mean(auc),
        **_probability_metrics(label_N, score_N),
        "rows": len(label_N),
        "positives": int(by_user.positives_V.sum()),
        "users": len(users),
        "covered_users": int(covered.sum()),
        "covered_rows": int(covered_rows.sum()),
    }


def _probability_metrics(label_N: Reals, score_N: Reals) -> Metrics:
    label, score = label_N.astype(np.float64), score_N.astype(np.float64)
    log_loss = _mean(np.logaddexp(0.0, np.where(label > 0, -score, score)))
    base_rate = _mean(label)
    if log_loss is None or not base_rate:
        return {"ne": None, "log_loss": log_loss, "calibration": None}
    probability = np.exp(-np.logaddexp(0.0, -score))
    calibration = float(np.mean(probability)) / base_rate
    if base_rate == 1.0:
        return {"ne": None, "log_loss": log_loss, "calibration": calibration}
    entropy = -(base_rate * np.log(base_rate) + (1.0 - base_rate) * np.log1p(-base_rate))
    return {"ne": float(log_loss / entropy), "log_loss": log_loss, "calibration": calibration}


def _mean(values: Floats) -> float | None:
    return float(np.mean(values)) if len(values) else None


def reasons(metrics: Metrics) -> dict[str, str]:
    """Why metrics of `measure` are None: reason -> the metrics it concerns, as text."""
    by_reason: dict[str, list[str]] = {}
    for name, value in metrics.items():
        if value is None:
            by_reason.setdefault(_reason(name, metrics), []).append(name)
    return {reason: ", ".join(names) for reason, names in by_reason.items()}


def _reason(name: str, metrics: Metrics) -> str:
    if metrics["rows"] == 0:
        return "no rows"
    if metrics["positives"] == 0:
        return "no positive row"
    if metrics["positives"] == metrics["rows"]:
        return "no negative row"
    assert name in ("gauc", "uauc"), f"{name} is defined on rows of both classes"
    return "no user has both classes"
