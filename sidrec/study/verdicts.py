"""Verdicts on differences between variants: won, lost, tied or cannot tell, and how many runs would tell.

Two noises move a difference of means over n paired runs. Training: the spread s of the runs' paired differences, which
shrinks with n. Data: the users (and cold items) of the split, common to all runs, which more runs cannot shrink. The
half-width after n runs is predicted as sqrt(t(n - 1)^2 s^2 / n + z^2 (I / n + U)), that of the hierarchical interval.
U: variance over draws of users that all runs share. I: variance over draws that is a run's own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from sidrec.metrics.pairs import Floats
from sidrec.study.intervals import LEVEL, Interval

Verdict = Literal["won", "lost", "tied", "cannot tell"]

MARGINS: Mapping[str, float] = {"auc": 0.002, "gauc": 0.002, "uauc": 0.002, "ne": 0.01, "log_loss": 0.005}
"""Metric -> the largest difference that counts as none: an interval within plus or minus this is a tie."""
LOWER_IS_BETTER = ("ne", "log_loss")
PILOT = 10
"""Runs that the number of runs of a claim is planned from, before the further runs are trained."""
MOST_RUNS = 1000
"""More runs than these are not suggested."""
POWER = 0.8


def verdict(metric: str, interval: Interval | None, margin: float) -> Verdict:
    """Of a variant against a reference, from the interval of variant - reference. Won: the interval excludes 0."""
    if interval is None:
        return "cannot tell"
    if interval.low > 0 or interval.high < 0:
        return "won" if (interval.low > 0) != (metric in LOWER_IS_BETTER) else "lost"
    return "tied" if -margin <= interval.low and interval.high <= margin else "cannot tell"


@dataclass(frozen=True)
class Noise:
    """What moves a mean paired difference. runs_sd: sample standard deviation over runs on the actual users.

    users_sd: standard deviation over draws of users of what all runs share: its share of the noise is the same for any
    number of runs. own_sd: over draws of users, of a run's own part. Both 0 where no draws are recorded.
    """

    runs_sd: float
    users_sd: float
    own_sd: float

    @classmethod
    def of(cls, found_n: Floats, drawn_nR: Floats | None) -> "Noise":
        """found_n: paired differences of at least two runs. drawn_nR: the same on R draws of users, all defined."""
        runs_sd = float(np.std(found_n, ddof=1))
        if drawn_nR is None:
            return cls(runs_sd, 0.0, 0.0)
        offset_nR = drawn_nR - found_n[:, None]
        own = float(np.mean(np.var(offset_nR, axis=0, ddof=1)))
        shared = float(np.var(offset_nR.mean(axis=0), ddof=1)) - own / len(found_n)
        return cls(runs_sd, math.sqrt(max(0.0, shared)), math.sqrt(own))

    def half_widths(self) -> Floats:
        """The half-width of the interval that 2, 3, ... MOST_RUNS paired runs will have."""
        runs = np.arange(2, MOST_RUNS + 1)
        over_users = self.own_sd**2 / runs + self.users_sd**2
        return np.asarray(np.sqrt((_t_quantiles() * self.runs_sd) ** 2 / runs + _z() ** 2 * over_users))


def _z(share: float = (1 + LEVEL) / 2) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


@cache
def _t_quantiles() -> Floats:
    """Of the t interval over 2, 3, ... MOST_RUNS runs."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(np.arange(1, MOST_RUNS), (1 + LEVEL) / 2), dtype=np.float64)


@dataclass(frozen=True)
class Power:
    """How many runs or users decide on a difference.

    detectable: the difference that this many runs and users find with probability POWER.
    runs: paired runs whose half-width is at most half the difference; None where there are none up to MOST_RUNS.
    planned_runs: the same, from the first PILOT runs alone; None for fewer runs, too.
    tie_runs: paired runs whose interval lies within the margin around 0; None where there are none up to MOST_RUNS.
    users_factor: how many times the users would be needed, even with unlimited runs, for a half-width of half the
    difference; None where the users of the split are enough.
    """

    noise: Noise
    detectable: float
    runs: int | None
    planned_runs: int | None
    tie_runs: int | None
    users_factor: float | None

    @classmethod
    def of(cls, found_n: Floats, drawn_nR: Floats | None, half_width: float, margin: float) -> "Power":
        """half_width: of the interval that these runs have. Else as `Noise.of`."""
        noise, difference = Noise.of(found_n, drawn_nR), abs(float(found_n.mean()))
        users_half, wanted = _z() * noise.users_sd, difference / 2
        factor = (users_half / wanted) ** 2 if wanted > 0 else math.inf
        return cls(
            noise,
            detectable=half_width * (1 + _z(POWER) / _z()),
            runs=_first_within(noise, wanted),
            planned_runs=_planned(found_n, drawn_nR),
            tie_runs=_first_within(noise, margin - difference),
            users_factor=factor if 1 < factor < math.inf else None,
        )


def _first_within(noise: Noise, wanted: float) -> int | None:
    within = np.flatnonzero(noise.half_widths() <= wanted)
    return int(within[0]) + 2 if wanted > 0 and len(within) else None


def _planned(found_n: Floats, drawn_nR: Floats | None) -> int | None:
    if len(found_n) < PILOT:
        return None
    first_n, first_nR = found_n[:PILOT], None if drawn_nR is None else drawn_nR[:PILOT]
    return _first_within(Noise.of(first_n, first_nR), abs(float(first_n.mean())) / 2)


def more_runs(power: Power, runs: int) -> int | None:
    """Runs to add before the verdict is a lead or a tie; None if up to MOST_RUNS cannot decide."""
    enough = [needed for needed in (power.runs, power.tie_runs) if needed is not None]
    return max(1, min(enough) - runs) if enough else None


def advice(power: Power | None, runs: int) -> str:
    """What would tell a difference that cannot be told yet, for a reader."""
    if power is None:
        return "more runs would tell how much of it is the runs' own noise"
    more = more_runs(power, runs)
    if more is not None:
        return f"{more} more {'run' if more == 1 else 'runs'} would tell"
    if power.users_factor is not None:
        return f"more runs cannot tell; {power.users_factor:.1f} times as many users could"
    return f"{MOST_RUNS} runs would not tell"
