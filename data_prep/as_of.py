"""Counts of strictly earlier rows for a log that is read in order of time, part by part.

`Totals` are carried from one part to the next; within a part `Runs` counts. Rows with the same time do not see each
other.

Shapes: N rows of a part, sorted by time.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Totals:
    """Rows and positives of each key so far; int64 [keys]."""

    rows: np.ndarray
    clicks: np.ndarray

    @classmethod
    def empty(cls, keys: int) -> "Totals":
        return cls(np.zeros(keys, dtype=np.int64), np.zeros(keys, dtype=np.int64))

    def add(self, key_N: np.ndarray, label_N: np.ndarray) -> None:
        """Counts the rows of a partition. Call it after reading the totals before them."""
        keys = len(self.rows)
        self.rows += np.bincount(key_N, minlength=keys)
        self.clicks += np.bincount(key_N[label_N > 0], minlength=keys)


@dataclass(frozen=True)
class Runs:
    """Rows of a partition grouped by a key (user or item), sorted by time within a key.

    order_N: row numbers, sorted by key, then time. key_start_N, run_start_N: for each position in that order, where
    its key starts and where its run of equal (key, timestamp) starts. Rows between the two are strictly earlier.
    """

    order_N: np.ndarray
    key_start_N: np.ndarray
    run_start_N: np.ndarray

    @classmethod
    def of(cls, key_N: np.ndarray, timestamp_N: np.ndarray) -> "Runs":
        order_N = np.argsort(key_N, kind="stable")
        key, timestamp = key_N[order_N], timestamp_N[order_N]
        new_key = np.ones(len(key), dtype=bool)
        new_key[1:] = key[1:] != key[:-1]
        new_run = new_key.copy()
        new_run[1:] |= timestamp[1:] != timestamp[:-1]
        place = np.arange(len(key))
        key_start = np.maximum.accumulate(np.where(new_key, place, 0))
        return cls(order_N, key_start, np.maximum.accumulate(np.where(new_run, place, 0)))

    def _by_row(self, by_place_N: np.ndarray) -> np.ndarray:
        result = np.empty_like(by_place_N)
        result[self.order_N] = by_place_N
        return result

    def earlier_rows(self) -> np.ndarray:
        """int64 [N]: number of strictly earlier rows of the same key."""
        return self._by_row(self.run_start_N - self.key_start_N)

    def earlier_sum(self, amount_N: np.ndarray) -> np.ndarray:
        """int64 [N]: sum of `amount` over the strictly earlier rows of the same key."""
        total = np.concatenate([[0], np.cumsum(amount_N[self.order_N], dtype=np.int64)])
        return self._by_row(total[self.run_start_N] - total[self.key_start_N])
