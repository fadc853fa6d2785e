"""How far a plan is behind another, round by round: what else the machine does in a round slows both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Behind:
    """Ratios of steps, 1 where both are as fast. ratio: median over rounds. low, high: 95% of what it is in bootstrap
    draws of the rounds (percentiles; Efron & Tibshirani 1993): below 1 and above 1, the plans cannot be told apart.
    slower: rounds in which the plan was slower, of `rounds` that both did."""

    ratio: float
    low: float
    high: float
    slower: int
    rounds: int


def behind(rounds: Sequence[float], other: Sequence[float]) -> Behind | None:
    """rounds: median steps of a plan's rounds; other: of the other plan's, in the same order. None without a round that
    both did; a bench that was cut short leaves unequal counts."""
    count = min(len(rounds), len(other))
    if count == 0:
        return None
    ratio_R = np.array(rounds[:count]) / np.array(other[:count])
    drawn_SR = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.quantile(np.median(ratio_R[drawn_SR], axis=1), [0.025, 0.975]).tolist()
    return Behind(float(np.median(ratio_R)), low, high, int((ratio_R > 1).sum()), count)
