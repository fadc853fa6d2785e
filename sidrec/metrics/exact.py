"""Ranking and calibration metrics, exact: integer pair counts, float64 sums over all rows, no histogram or sampling.

Shapes: N rows, V users in ascending order of their ids.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sidrec.io.files import read_json, write_json
from sidrec.metrics.pairs import Floats, Ints, Reals, pair_counts
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import SLICES, ItemSlices
from sidrec.schema import ContractError
from sidrec.text import short_repr, text_table

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


# metrics.json (split -> slice -> metric) and the plain-text tables made from it.


METRICS_FILE = "metrics.json"
SliceMetrics = dict[str, Metrics]  # slice -> metric -> value
SplitMetrics = dict[str, SliceMetrics]  # split -> slice -> metric -> value
QUALITY = (*RANKING, *PROBABILITY)


def measure_slices(predictions: Predictions, slices: ItemSlices) -> SliceMetrics:
    """All metrics on all rows and on the rows of head, torso, tail and cold items; `items`: how many they are."""
    return {
        name: {
            **measure(predictions.label_N[mask_N], predictions.score_N[mask_N], predictions.user_N[mask_N]),
            "items": len(np.unique(predictions.item_N[mask_N])),
        }
        for name, mask_N in slices.masks(predictions.item_N)
    }


def undefined(metrics: SplitMetrics) -> list[str]:
    """One line per split and reason why metrics are null, naming the slices; empty when all are defined."""
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for split, slices in metrics.items():
        for name, values in slices.items():
            for reason, which in reasons(values).items():
                by_reason.setdefault((split, which, reason), []).append(name)
    return [
        f"split {split}, {', '.join(names)} items: {which} undefined, {reason}"
        for (split, which, reason), names in by_reason.items()
    ]


FEW_USERS = 30  # below these, an average over users is close to chance


def few_users(metrics: SplitMetrics) -> list[str]:
    """A line for each split with slices whose GAUC and UAUC rest on few users."""
    lines = []
    for split, slices in metrics.items():
        counts = {name: int(values.get("covered_users") or 0) for name, values in slices.items()}
        few = [f"{name} {count}" for name, count in counts.items() if 0 < count < FEW_USERS]
        if few:
            lines.append(f"warning: split {split}: gauc and uauc rest on few users with both classes: {', '.join(few)}")
    return lines


def coverage_table(metrics: SplitMetrics) -> str:
    """What the metrics rest on: a line per split and slice. "-" where an earlier version did not count it.

    gauc, uauc: the users and rows that count, those with both classes; the other metrics take all rows.
    """
    columns = {"rows": "rows", "positives": "positives", "users": "users", "items": "items"}
    columns |= {"covered_users": "users in gauc, uauc", "covered_rows": "rows in gauc, uauc"}
    lines = {
        (split, name): {shown: values.get(key) for key, shown in columns.items()}
        for split, slices in metrics.items()
        for name, values in slices.items()
    }
    return _aligned(lines, ("split", "items"))


def save_metrics(metrics: SplitMetrics, path: Path) -> None:
    """Writes metrics.json in one step; an undefined metric is null."""
    write_json(path, metrics)


def load_metrics(path: Path) -> SplitMetrics:
    """Reads metrics.json. Raises ContractError when it is not split -> slice -> metric."""
    raw: SplitMetrics = read_json(path, "a readable metrics file")
    slices = list(raw.values()) if isinstance(raw, dict) else [raw]
    if not all(isinstance(split, dict) and all(isinstance(m, dict) for m in split.values()) for split in slices):
        raise ContractError(path, "split -> slice -> metric", "another structure")
    for split, of_split in raw.items():
        for name, values in of_split.items():
            for metric, value in values.items():
                if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                    raise ContractError(f"{path}, {split}, {name}, {metric}", "a number or null", short_repr(value))
    return raw


def metrics_table(metrics: SplitMetrics) -> str:
    """One run: a line per split and slice, aligned; "-" where a metric is undefined."""
    lines = {
        (split, name): {metric: values.get(metric) for metric in ("rows", *QUALITY)}
        for split, slices in metrics.items()
        for name, values in slices.items()
    }
    return _aligned(lines, ("split", "items"))


def comparison_table(
    runs: Mapping[str, SplitMetrics], split: str, slices: Sequence[str] = SLICES, metrics: Sequence[str] = QUALITY
) -> str:
    """Several runs side by side: a block per slice, in it a line per run, aligned.

    Raises ContractError naming the run that has no such split, slice or metric.
    """
    lines = {}
    for name in slices:
        for run, run_metrics in runs.items():
            values = run_metrics.get(split, {}).get(name, {})
            missing = [metric for metric in ("rows", *metrics) if metric not in values]
            if missing:
                raise ContractError(f"metrics of {run}, split {split}, slice {name}", f"{missing}", list(values))
            lines[(name, run)] = {"rows": values["rows"], **{metric: values[metric] for metric in metrics}}
    return _aligned(lines, ("items", "run"))


def _aligned(lines: Mapping[tuple[str, str], Metrics], names: tuple[str, str]) -> str:
    if not lines:
        return "no metrics"
    header = [*names, *next(iter(lines.values()))]
    return text_table([header, *([*key, *map(_cell, values.values())] for key, values in lines.items())], left=0, gap=1)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
