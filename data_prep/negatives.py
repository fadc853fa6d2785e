"""Negatives for logs that hold only positives: sampled from what was popular in the preceding days.

For every positive, N rows of the same user and timestamp with other items. Items are drawn in proportion to their positives
in the preceding `window_days` whole days, plus a launch weight: an item is launched at its first positive's time minus a
seeded uniform(0, window) of days and keeps that weight for the window. Without it, an item's first row would always be a
positive, and "never shown before" would give the label away.
Never an item that the user took at or before that time. What the user takes later may be drawn: nothing looks ahead.

Every random number is a hash of (seed, event, which negative, attempt), so results do not depend on partition sizes or restarts.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.day_window import SECONDS_PER_DAY, DayWindow, day_slices

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

    def live(self, day: int, window_days: int) -> np.ndarray:
        """Items launched in the `window_days` days up to and including `day`."""
        begin = np.searchsorted(self.days, day - window_days)
        return self.items[begin : np.searchsorted(self.days, day, side="right")]


@dataclass
class Sampler:
    """Draws negatives, partition after partition in time order. per_positive: N. launch_weight: in positives."""

    per_positive: int
    launch_weight: float
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
            launched = self.launches.live(day, self.window.days)
            place = np.repeat(np.arange(begin, end), self.per_positive)
            which = np.tile(np.arange(self.per_positive), end - begin)
            for attempt in range(ATTEMPTS if len(self.window.items) + len(launched) else 0):
                drawn = self._pick(launched, uniforms(self.seed, event_N[place], which, attempt))
                key = self.taken.keys(user_N[place], drawn)
                has = self.taken.holds(key) | here.at_or_before(key, timestamp_N[place])
                places.append(place[~has])
                items.append(drawn[~has])
                place, which = place[has], which[has]
                if not len(place):
                    break
            self.window.add(item_N[begin:end])
        return np.concatenate(places), np.concatenate(items)

    def _pick(self, launched: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        popular = self.window.items
        weight = self.launch_weight * len(launched)
        point = uniform * (len(popular) + weight)
        items = np.empty(len(point), dtype=np.int64)
        is_popular = point < len(popular)
        items[is_popular] = popular[point[is_popular].astype(np.int64)]
        if not is_popular.all():
            share = (point[~is_popular] - len(popular)) / weight
            items[~is_popular] = launched[np.minimum((share * len(launched)).astype(np.int64), len(launched) - 1)]
        return items


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
