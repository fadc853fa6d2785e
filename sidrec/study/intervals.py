"""Intervals of differences between models: over users, over paired runs, and over both.

Over users: the percentile interval of a bootstrap, whose draws are equal for all models (sidrec/metrics/resampling.py).
Over runs: the interval of a paired t-test. Over both: a hierarchical bootstrap, which draws runs and users.

Shapes: n runs, N rows, R resamples of users, B replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypedDict

import numpy as np

from sidrec.metrics.pairs import Floats, Ints
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.resampling import SEED, Resampled
from sidrec.schema import ContractError

LEVEL = 0.95
RESAMPLES = 1000
"""Of users, where predictions are at hand."""
REPLICATES = 4096
"""Of runs and users."""


class Difference(TypedDict):
    """difference: A - B on the actual rows. low, high: ends of the interval. resamples: those that define it."""

    difference: float
    low: float
    high: float
    resamples: int


Differences = dict[str, dict[str, dict[str, dict[str, Difference | None]]]]
"""Reference -> variant -> slice -> metric -> difference, None where the metric is undefined."""


def check_same_rows(predictions: Mapping[str, Predictions]) -> None:
    """Raises ContractError naming a model whose rows are not those of the first."""
    first = next(iter(predictions.values()))
    for name, found in predictions.items():
        for column in ("row_N", "user_N", "item_N", "label_N"):
            if not np.array_equal(getattr(found, column), getattr(first, column)):
                expected = f"the rows of every other run of split {first.split}"
                raise ContractError(f"predictions of {name}", expected, f"another {column.removesuffix('_N')} column")


def resampled_differences(variant: Resampled, reference: Resampled) -> dict[str, dict[str, Difference | None]]:
    """Slice -> metric -> difference with its interval."""
    differences: dict[str, dict[str, Difference | None]] = {}
    for key, actual in variant.actual.items():
        moved_R = variant.resampled_R[key] - reference.resampled_R[key]
        moved_R = moved_R[~np.isnan(moved_R)]
        found = actual - reference.actual[key]
        known = not np.isnan(found) and len(moved_R) > 0
        differences.setdefault(key[0], {})[key[1]] = interval(found, moved_R) if known else None
    return differences


def interval(found: float, moved_R: Floats) -> Difference:
    """The difference found, with the percentile interval of those that resamples give."""
    ends = percentile_interval(moved_R)
    return Difference(difference=found, low=ends.low, high=ends.high, resamples=len(moved_R))


@dataclass(frozen=True)
class Interval:
    """Both ends."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def percentile_interval(value_B: Floats) -> Interval:
    """The interval that the middle LEVEL of the replicates span."""
    low, high = np.quantile(value_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


class PairedInterval(TypedDict):
    """difference: mean over pairs of A - B. low, high, p: of a paired t-test, None for a single pair; p also if all are
    equal.

    positive: pairs with a difference above 0.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int
    positive: int


def paired_interval(variant: Sequence[float], reference: Sequence[float]) -> PairedInterval:
    """The difference of two variants over repetitions that are paired, such as seeds, with its t interval."""
    from scipy.special import stdtr, stdtrit

    moved = np.asarray(variant) - np.asarray(reference)
    found = PairedInterval(
        difference=float(moved.mean()), low=None, high=None, p=None, pairs=len(moved), positive=int((moved > 0).sum())
    )
    if len(moved) > 1:
        error = float(moved.std(ddof=1)) / np.sqrt(len(moved))
        half = float(stdtrit(len(moved) - 1, (1 + LEVEL) / 2)) * error
        found["low"], found["high"] = float(found["difference"] - half), float(found["difference"] + half)
        found["p"] = float(2 * stdtr(len(moved) - 1, -abs(found["difference"]) / error)) if error else None
    return found


def t_interval(found_n: Floats) -> Interval | None:
    """Of the mean over independent runs; None for a single run."""
    pairs = paired_interval(found_n.tolist(), [0.0] * len(found_n))
    return None if pairs["low"] is None or pairs["high"] is None else Interval(pairs["low"], pairs["high"])


def hierarchical_interval(
    found_n: Floats, drawn_nR: Floats, replicates: int = REPLICATES, seed: int = SEED
) -> Interval:
    """Percentile interval of the mean over runs, with runs and users both drawn with replacement.

    found_n: each run's value on the actual users. drawn_nR: on the same R draws of users, all defined. Each replicate
    draws n runs and takes one of the draws of users; each of these is taken equally often. Deviations of `found_n` from
    their mean are expanded, so that few runs without noise of users have the width of the t interval (Hesterberg 2015,
    The American Statistician 69(4), for percentile intervals; its use on one of two levels is ours [I]). Of a single
    run, the interval is over users alone.
    """
    return percentile_interval(hierarchical_means(found_n, drawn_nR, replicates, seed))


def hierarchical_means(found_n: Floats, drawn_nR: Floats, replicates: int, seed: int) -> Floats:
    """float64 [B]: the mean over drawn runs at a draw of users, by replicate."""
    runs, draws = drawn_nR.shape
    wide_nR = drawn_nR + ((expansion(runs) - 1) * (found_n - found_n.mean()))[:, None]
    rounds = max(1, replicates // draws)
    times_Bn = run_multiplicities(runs, rounds * draws, seed)
    return np.asarray(np.einsum("bn,nb->b", times_Bn, np.tile(wide_nR, rounds)) / runs)


@cache
def run_multiplicities(runs: int, replicates: int, seed: int) -> Ints:
    """int64 [B, n]: how often each run is drawn; the same for all differences over as many runs."""
    return np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=replicates)


def expansion(runs: int) -> float:
    """Factor for deviations of n runs: drawn runs vary (n - 1) / n of the sample variance, and a normal quantile
    instead of that of t leaves out how uncertain the variance is."""
    from scipy.special import ndtri, stdtrit

    if runs == 1:
        return 1.0
    share = (1 + LEVEL) / 2
    return float(stdtrit(runs - 1, share) / ndtri(share) * np.sqrt(runs / (runs - 1)))
