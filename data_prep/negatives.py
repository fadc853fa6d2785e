"""Negatives for logs that hold only positives: sampled from what was popular in the preceding days.

For every positive, N rows of the same user and timestamp with other items. An item is launched at its first
positive's time minus a seeded uniform(0, W) of days, W being the window. A negative's item is either one of those
launched in the window, all alike, or any launched item, in proportion to its positives in the W preceding days plus
a floor.

Why both: without launches an item's first row would always be a positive, and without the floor so would the row of
an item that has had no positive for W days. "Never shown" or "not taken lately" would then give the label away.

Never an item that the user took at or before that time. What the user takes later may be drawn: nothing looks ahead.

Every random number is a hash of (seed, event, which negative, attempt): partition sizes and restarts change nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .event_order import SECONDS_PER_DAY, DayWindow, day_slices

ATTEMPTS = 30  # redraws of items that the user already has, before the negative is given up


def uniforms(seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1), one per broadcast key tuple: splitmix64 (Steele et al., OOPSLA 2014) over seed and keys."""
    state = _mix(np.asarray(seed, dtype=np.uint64))
    for key in keys:
        state = _mix(state ^ np.asarray(key).astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(state ^ (state >> np.uint64(31)))


@dataclass
class Taken:
    """Which user took which item in earlier partitions: one sorted file of keys per partition, mapped, not held."""

    folder: Path
    items: int
    runs: list[np.ndarray] = field(default_factory=list)

    def add(self, partition: int, user_N: np.ndarray, item_N: np.ndarray) -> None:
        path = self.folder / f"taken-{partition:05d}.npy"
        np.save(path, np.unique(self.keys(user_N, item_N)))
        self.runs.append(np.load(path, mmap_mode="r"))

    def resume(self, partitions: int) -> None:
        """Maps the files of the first `partitions` partitions."""
        self.runs = [np.load(self.folder / f"taken-{n:05d}.npy", mmap_mode="r") for n in range(partitions)]

    def keys(self, user_N: np.ndarray, item_N: np.ndarray) -> np.ndarray:
        return user_N.astype(np.int64) * self.items + item_N

    def holds(self, key_N: np.ndarray) -> np.ndarray:
        """bool [N]: taken in an earlier partition."""
        held_N = np.zeros(len(key_N), dtype=bool)
        for run in self.runs:
            place = np.minimum(np.searchsorted(run, key_N), len(run) - 1)
            held_N |= run[place] == key_N
        return held_N


@dataclass(frozen=True)
class Launches:
    """Items by launch day, for items with a positive."""

    items: np.ndarray
    days: np.ndarray

    @classmethod
    def of(cls, first_click: np.ndarray, never: int, window_days: int, seed: int) -> "Launches":
        """first_click: time of each item's first positive, `never` where there is none."""
        items = np.flatnonzero(first_click != never)
        ahead = uniforms(seed, items, 0xA11) * window_days * SECONDS_PER_DAY
        days = np.floor((first_click[items] - ahead) / SECONDS_PER_DAY).astype(np.int64)
        order = np.argsort(days, kind="stable")
        return cls(items[order].astype(np.int32), days[order])

    def until(self, day: int) -> np.ndarray:
        """Items launched up to and including `day`."""
        return self.items[: np.searchsorted(self.days, day, side="right")]

    def since(self, begin: int, end: int) -> np.ndarray:
        """Items launched from day `begin` up to and including `end`."""
        return self.items[np.searchsorted(self.days, begin) : np.searchsorted(self.days, end, side="right")]


@dataclass(frozen=True)
class Pool:
    """What negatives of one day are drawn from. fresh: launched in the window; popular: one entry per positive in it.

    launch_draws: draws that a launched item gets in its window, per negative per positive.
    """

    fresh: np.ndarray
    popular: np.ndarray
    launched: np.ndarray
    floor_weight: float
    launch_draws: float

    @property
    def empty(self) -> bool:
        return not len(self.fresh) and not self._weight

    @property
    def _weight(self) -> float:
        return len(self.popular) + self.floor_weight * len(self.launched)

    @property
    def _fresh_share(self) -> float:
        """Of all draws; at most half, and all of them only when there is nothing else."""
        if not self._weight:
            return 1.0
        return min(0.5, self.launch_draws * len(self.fresh) / max(len(self.popular), 1))

    def pick(self, uniform_M: np.ndarray) -> np.ndarray:
        """int64 [M]: an item per number in [0, 1)."""
        share = self._fresh_share
        items = np.empty(len(uniform_M), dtype=np.int64)
        is_fresh = uniform_M < share
        items[is_fresh] = _at(self.fresh, uniform_M[is_fresh] / share) if is_fresh.any() else 0
        point = (uniform_M - share) / (1 - share) * self._weight if share < 1 else uniform_M
        is_popular = ~is_fresh & (point < len(self.popular))
        items[is_popular] = self.popular[point[is_popular].astype(np.int64)]
        rest = ~is_fresh & ~is_popular
        if rest.any():
            items[rest] = _at(self.launched, (point[rest] - len(self.popular)) / (self._weight - len(self.popular)))
        return items


def _at(items: np.ndarray, share: np.ndarray) -> np.ndarray:
    return items[np.minimum((share * len(items)).astype(np.int64), len(items) - 1)]


@dataclass
class Sampler:
    """Draws negatives, partition after partition in time order. per_positive: N. The weights are Pool's."""

    per_positive: int
    floor_weight: float
    launch_draws: float
    seed: int
    window: DayWindow
    launches: Launches
    taken: Taken

    def draw(
        self, user_N: np.ndarray, item_N: np.ndarray, timestamp_N: np.ndarray, event_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Negatives of a partition of positives, whose numbers in the log are `event_N`.

        Returns: place in the partition of the positive that each negative belongs to, and its item. Fewer than
        N * per_positive rows come back where the pool had nothing that the user did not have already.
        """
        here = _FirstTimes.of(self.taken.keys(user_N, item_N), timestamp_N)
        places, items = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for day, begin, end in day_slices(timestamp_N):
            self.window.move_to(day)
            pool = self._pool(day)
            place = np.repeat(np.arange(begin, end), self.per_positive)
            which = np.tile(np.arange(self.per_positive), end - begin)
            for attempt in range(0 if pool.empty else ATTEMPTS):
                drawn = pool.pick(uniforms(self.seed, event_N[place], which, attempt))
                key = self.taken.keys(user_N[place], drawn)
                has = self.taken.holds(key) | here.at_or_before(key, timestamp_N[place])
                places.append(place[~has])
                items.append(drawn[~has])
                place, which = place[has], which[has]
                if not len(place):
                    break
            self.window.add(item_N[begin:end])
        return np.concatenate(places), np.concatenate(items)

    def _pool(self, day: int) -> Pool:
        fresh, launched = self.launches.since(day - self.window.days, day), self.launches.until(day)
        return Pool(fresh, self.window.items, launched, self.floor_weight, self.launch_draws)


@dataclass(frozen=True)
class _FirstTimes:
    """When each key first came up in this partition."""

    keys: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, key_N: np.ndarray, timestamp_N: np.ndarray) -> "_FirstTimes":
        keys, first = np.unique(key_N, return_index=True)
        return cls(keys, timestamp_N[first])

    def at_or_before(self, key_M: np.ndarray, timestamp_M: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self.keys, key_M), len(self.keys) - 1)
        return (self.keys[place] == key_M) & (self.times[place] <= timestamp_M)
