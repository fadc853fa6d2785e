"""Differences between variants, with intervals from a paired bootstrap over users.

The interval of a difference A - B is that of the mean over seeds: it says how far other users could move it.
The spread over seeds is reported beside it as a standard deviation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.bootstrap import MeanAuc, PooledAuc, user_multiplicities
from sidrec.metrics.pairs import Floats, Ints
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import ItemSlices
from sidrec.schema import ContractError

SLICES = ("all", "tail", "cold")
RESAMPLES = 1000
SEED = 0
LEVEL = 0.95

Scored = tuple[str, str]  # slice, metric


class Difference(TypedDict):
    """difference: A - B on the actual rows. low, high: ends of the interval. resamples: those that define it."""

    difference: float
    low: float
    high: float
    resamples: int


Differences = dict[str, dict[str, dict[str, dict[str, Difference | None]]]]
"""Reference -> variant -> slice -> metric -> difference, None where the metric is undefined."""


@dataclass(frozen=True)
class Resampled:
    """One variant's metrics, mean over seeds: on the actual rows, and [R] on the resamples; NaN where undefined."""

    actual: dict[Scored, float]
    resampled_R: dict[Scored, Floats]


def bootstrap_differences(
    predictions: Mapping[str, Sequence[Predictions]], slices: ItemSlices, references: Sequence[str]
) -> Differences:
    """Differences of every variant to every reference, in pooled AUC, GAUC and UAUC on all, tail and cold items.

    predictions: variant -> one per seed, all of the same rows. Raises ContractError naming a variant with other rows.
    """
    _check_same_rows(predictions)
    variants = _resample(predictions, slices)
    return {
        reference: {name: _differences(variants[name], variants[reference]) for name in variants if name != reference}
        for reference in references
        if reference in variants
    }


def _check_same_rows(predictions: Mapping[str, Sequence[Predictions]]) -> None:
    first = next(iter(predictions.values()))[0]
    for name, seeds in predictions.items():
        for found in seeds:
            for column in ("row_N", "user_N", "item_N", "label_N"):
                if not np.array_equal(getattr(found, column), getattr(first, column)):
                    expected = f"the rows of every other run of split {first.split}"
                    raise ContractError(
                        f"predictions of {name}", expected, f"another {column.removesuffix('_N')} column"
                    )


def _resample(predictions: Mapping[str, Sequence[Predictions]], slices: ItemSlices) -> dict[str, Resampled]:
    first = next(iter(predictions.values()))[0]
    users, user_N = np.unique(first.user_N, return_inverse=True)
    user_N = user_N.astype(np.int64)
    masks = {name: mask_N for name, mask_N in slices.masks(first.item_N) if name in SLICES}
    statistics = {
        name: [_statistics(run, user_N, len(users), masks) for run in seeds] for name, seeds in predictions.items()
    }
    actual_1V = np.ones((1, len(users)), dtype=np.int64)
    actual = {name: _mean_over_seeds(seeds, actual_1V) for name, seeds in statistics.items()}
    chunks: dict[str, list[dict[Scored, Floats]]] = {name: [] for name in predictions}
    for multiplicity_RV in user_multiplicities(len(users), RESAMPLES, SEED):
        for name, seeds in statistics.items():
            chunks[name].append(_mean_over_seeds(seeds, multiplicity_RV))
    return {
        name: Resampled(
            {key: float(values[0]) for key, values in actual[name].items()},
            {key: np.concatenate([chunk[key] for chunk in chunks[name]]) for key in actual[name]},
        )
        for name in predictions
    }


Statistics = dict[Scored, PooledAuc | MeanAuc]


def _statistics(run: Predictions, user_N: Ints, users: int, masks: Mapping[str, NDArray[np.bool_]]) -> Statistics:
    statistics: Statistics = {}
    for name, mask_N in masks.items():
        rows = run.label_N[mask_N], run.score_N[mask_N], user_N[mask_N]
        statistics[(name, "auc")] = PooledAuc.of(*rows)
        gauc = MeanAuc.gauc(*rows, users)
        statistics[(name, "gauc")] = gauc
        statistics[(name, "uauc")] = gauc.uauc()
    return statistics


def _mean_over_seeds(seeds: Sequence[Statistics], multiplicity_RV: Ints) -> dict[Scored, Floats]:
    return {
        key: np.asarray(np.mean([statistics[key].resampled(multiplicity_RV) for statistics in seeds], axis=0))
        for key in seeds[0]
    }


def _differences(variant: Resampled, reference: Resampled) -> dict[str, dict[str, Difference | None]]:
    differences: dict[str, dict[str, Difference | None]] = {}
    for key, actual in variant.actual.items():
        moved_R = variant.resampled_R[key] - reference.resampled_R[key]
        moved_R = moved_R[~np.isnan(moved_R)]
        found = actual - reference.actual[key]
        differences.setdefault(key[0], {})[key[1]] = None if np.isnan(found) else interval(found, moved_R)
    return differences


def interval(found: float, moved_R: Floats) -> Difference:
    """The difference found, with the percentile interval of those that resamples give."""
    low, high = np.quantile(moved_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(difference=found, low=float(low), high=float(high), resamples=len(moved_R))
