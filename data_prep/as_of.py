"""What was known strictly before each row: earlier rows, positives and histories, for a whole partition at once.

Rows of a partition are sorted by time. Rows with the same timestamp do not see each other.

N rows of a partition, H history length.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """Rows of a partition grouped by a key (user or item), in time order within a key.

    order_N: row numbers, by key, then time. key_start_N, run_start_N: for each place in that order, where its key
    starts and where its run of equal (key, timestamp) starts. What lies between the two is strictly earlier.
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
        """int64 [N]: rows of the same key strictly before."""
        return self._by_row(self.run_start_N - self.key_start_N)

    def earlier_sum(self, amount_N: np.ndarray) -> np.ndarray:
        """int64 [N]: sum of `amount` over the rows of the same key strictly before."""
        total = np.concatenate([[0], np.cumsum(amount_N[self.order_N], dtype=np.int64)])
        return self._by_row(total[self.run_start_N] - total[self.key_start_N])

    def latest_earlier(self, value_N: np.ndarray, without_N: np.ndarray) -> np.ndarray:
        """[N]: `value` of the latest strictly earlier row of the same key, or the row's `without`."""
        previous = value_N[self.order_N][np.maximum(self.run_start_N - 1, 0)]
        has = self.run_start_N > self.key_start_N
        return self._by_row(np.where(has, previous, without_N[self.order_N]))


def gather_ranges(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenates values[start : start + length] for every pair, without a loop."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return values[np.repeat(starts - (ends - lengths), lengths) + np.arange(total)]


@dataclass
class Totals:
    """Rows and positives of each key (user or item) so far, and when its latest row was (-1: never). int64 [keys]."""

    rows: np.ndarray
    clicks: np.ndarray
    latest: np.ndarray

    @classmethod
    def empty(cls, keys: int) -> "Totals":
        zeros = np.zeros(keys, dtype=np.int64)
        return cls(zeros, zeros.copy(), np.full(keys, -1, dtype=np.int64))

    def add(self, key_N: np.ndarray, label_N: np.ndarray, timestamp_N: np.ndarray) -> None:
        """Takes a partition in, once its rows have been looked up."""
        keys = len(self.rows)
        self.rows += np.bincount(key_N, minlength=keys)
        self.clicks += np.bincount(key_N[label_N > 0], minlength=keys)
        self.latest[key_N] = timestamp_N  # time-sorted, and numpy keeps the last of repeated assignments


@dataclass
class Histories:
    """The latest `length` positives of every user so far.

    User u's are items[offsets[u] : offsets[u + 1]], oldest first.
    """

    offsets: np.ndarray
    items: np.ndarray
    length: int

    @classmethod
    def empty(cls, users: int, length: int) -> "Histories":
        return cls(np.zeros(users + 1, dtype=np.int64), np.zeros(0, dtype=np.int32), length)

    def advance(self, user_N: np.ndarray, item_N: np.ndarray, label_N: np.ndarray, runs: Runs) -> "PartitionHistories":
        """Histories of a partition's rows; takes the partition in."""
        stored_U = np.diff(self.offsets)
        liked = label_N > 0
        fresh_U = np.bincount(user_N[liked], minlength=len(stored_U))
        touched = np.flatnonzero(np.bincount(user_N, minlength=len(stored_U)))
        by_user = runs.order_N[liked[runs.order_N]]

        # One block per user of the partition: what was stored, then what the partition adds.
        block = stored_U[touched] + fresh_U[touched]
        ends = np.cumsum(block)
        values = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int32)
        is_stored = np.zeros(len(values) + 1, dtype=np.int64)
        np.add.at(is_stored, ends - block, 1)
        np.add.at(is_stored, ends - block + stored_U[touched], -1)
        stored_mask = np.cumsum(is_stored)[:-1] > 0
        values[stored_mask] = gather_ranges(self.items, self.offsets[touched], stored_U[touched])
        values[~stored_mask] = item_N[by_user]

        start_U = np.zeros(len(stored_U), dtype=np.int64)
        start_U[touched] = ends - block
        end_N = start_U[user_N] + stored_U[user_N] + runs.earlier_sum(liked)
        start_N = np.maximum(start_U[user_N], end_N - self.length)
        self._keep(values, touched, ends, block)
        return PartitionHistories(values, start_N, end_N - start_N)

    def _keep(self, values: np.ndarray, touched: np.ndarray, ends: np.ndarray, block: np.ndarray) -> None:
        lengths = np.diff(self.offsets)
        starts = self.offsets[:-1].copy()
        lengths[touched] = np.minimum(block, self.length)
        starts[touched] = len(self.items) + ends - lengths[touched]
        self.items = gather_ranges(np.concatenate([self.items, values]), starts, lengths)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])


@dataclass(frozen=True)
class PartitionHistories:
    """Row n's history is items[start_N[n] : start_N[n] + length_N[n]]; materialised only a few rows at a time."""

    items: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray

    def rows(self, row_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets int32 [M + 1] and item ids int64 of these rows, as an arrow list array wants them."""
        lengths = self.length_N[row_M]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return offsets, gather_ranges(self.items, self.start_N[row_M], lengths).astype(np.int64)
