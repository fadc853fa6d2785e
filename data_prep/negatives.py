"""Sampled negatives for logs that hold only positives.

For every positive, `Sampler` draws `per_positive` rows of the same user and timestamp with other items and label 0.

An item is launched at the time of its first positive minus a seeded uniform(0, W) days, W being the window. A
negative's item is drawn from one of two sets: the items launched in the last W days, with equal weights, or all
launched items, weighted by their positives in the W preceding days plus a floor. Both are needed. Without launches,
the first row of an item would always be a positive; without the floor, so would the first row after W days without a
positive. "Never shown" or "not taken lately" would then give the label away.

A negative is never an item that the user took at or before its time. Items that the user takes later may be drawn:
the draw does not look ahead.

Every random number is a hash of (seed, event, negative, attempt), so partition sizes and restarts change nothing.

Shapes: N positives of a partition, M negatives being drawn.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .event_order import SECONDS_PER_DAY, DayWindow, day_slices

ATTEMPTS = 30  # draws for a negative; it is given up when all of them are items that the user has taken


@dataclass
class Sampler:
    """Draws the negatives of partitions, which must come in time order.

    per_positive: negatives for each positive. floor_weight, launch_draws: see `Pool`. window: the positives of
    the last days.
    """

    per_positive: int
    floor_weight: float
    launch_draws: float
    seed: int
    window: DayWindow
    launches: "Launches"
    taken: "Taken"

    def draw(
        self, user_N: np.ndarray, item_N: np.ndarray, timestamp_N: np.ndarray, event_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Negatives for the positives of a partition. event_N: numbers of these events in the log.

        Returns the index of each negative's positive in the partition, and its item; both int64 [M]. M is less than
        N * per_positive where the pool held only items that the user had taken.
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

    def _pool(self, day: int) -> "Pool":
        fresh, launched = self.launches.since(day - self.window.days, day), self.launches.until(day)
        return Pool(fresh, self.window.items, launched, self.floor_weight, self.launch_draws)


@dataclass(frozen=True)
class Pool:
    """The items from which negatives of one day are drawn.

    fresh: items launched in the window. popular: an item for each positive in the window. launched: all launched items.
    floor_weight: weight of a launched item without positives; a positive weighs 1. launch_draws: draws that an item
    gets while it is fresh, per negative per positive.
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
        """Share of draws that go to fresh items: at most half, or all if there are no others."""
        if not self._weight:
            return 1.0
        return min(0.5, self.launch_draws * len(self.fresh) / max(len(self.popular), 1))

    def pick(self, uniform_M: np.ndarray) -> np.ndarray:
        """int64 [M]: an item for each number in [0, 1)."""
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


@dataclass(frozen=True)
class Launches:
    """Items that have a positive, sorted by launch day."""

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


@dataclass
class Taken:
    """The (user, item) pairs of earlier partitions: a sorted, memory-mapped file of keys per partition."""

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
        """bool [N]: whether the pair was taken in an earlier partition."""
        held_N = np.zeros(len(key_N), dtype=bool)
        for run in self.runs:
            place = np.minimum(np.searchsorted(run, key_N), len(run) - 1)
            held_N |= run[place] == key_N
        return held_N


@dataclass(frozen=True)
class _FirstTimes:
    """Time of each key's first event in a partition."""

    keys: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, key_N: np.ndarray, timestamp_N: np.ndarray) -> "_FirstTimes":
        keys, first = np.unique(key_N, return_index=True)
        return cls(keys, timestamp_N[first])

    def at_or_before(self, key_M: np.ndarray, timestamp_M: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self.keys, key_M), len(self.keys) - 1)
        return (self.keys[place] == key_M) & (self.times[place] <= timestamp_M)


def uniforms(seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1) for each tuple of broadcast keys: splitmix64 (Steele et al., OOPSLA 2014) of seed and keys."""
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
