"""Ranking and calibration metrics, exact: integer pair counts, float64 sums over all rows, no histogram or sampling.

Shapes: N rows, V users in ascending order of their ids.
"""

import numpy as np

from sidrec.metrics.pairs import Floats, Ints, Reals, pair_counts

Metrics = dict[str, float | int | None]

RANKING = ("auc", "gauc", "uauc")
PROBABILITY = ("ne", "log_loss", "calibration")
COUNTS = ("rows", "positives", "users", "covered_users", "covered_rows")


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
    covered = by_user.covered
    return {
        "auc": _mean(pooled.auc()),
        "gauc": by_user.gauc(),
        "uauc": by_user.uauc(),
        **_probability_metrics(label_N, score_N),
        "rows": len(label_N),
        "positives": int(by_user.positives_V.sum()),
        "users": len(users),
        "covered_users": int(covered.sum()),
        "covered_rows": int(by_user.rows[covered].sum()),
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
