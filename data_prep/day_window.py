"""What happened to each item in the preceding days: a multiset of item ids, day by day, and its counts.

Granularity: whole UTC days. A row of day d sees the days d - W ... d - 1, never its own day.
"""

from dataclasses import dataclass

import numpy as np

SECONDS_PER_DAY = 86_400


@dataclass
class DayWindow:
    """Items of the preceding `days` whole days.

    items, item_days: one entry per event of the window, oldest first. counts: events per item, int64 [items].
    today_items: events of the current `day`, which nobody sees yet.
    Memory: the events of `days` + 1 days, and one number per item.
    """

    days: int
    counts: np.ndarray
    items: np.ndarray
    item_days: np.ndarray
    today_items: np.ndarray
    day: int = -1

    @classmethod
    def empty(cls, items: int, days: int) -> "DayWindow":
        none = np.zeros(0, dtype=np.int32)
        return cls(days, np.zeros(items, dtype=np.int64), none, none, none)

    def move_to(self, day: int) -> None:
        """Closes the current day when `day` is a later one, and forgets the days that leave the window."""
        if day <= self.day:
            return
        kept = int(np.searchsorted(self.item_days, day - self.days))
        np.subtract.at(self.counts, self.items[:kept], 1)
        self.items, self.item_days = self.items[kept:], self.item_days[kept:]
        if self.day >= day - self.days:
            np.add.at(self.counts, self.today_items, 1)
            self.items = np.concatenate([self.items, self.today_items])
            self.item_days = np.concatenate([self.item_days, np.full_like(self.today_items, self.day)])
        self.today_items = self.today_items[:0]
        self.day = day

    def add(self, items: np.ndarray) -> None:
        """Events of the current day."""
        self.today_items = np.concatenate([self.today_items, items.astype(np.int32)])

    def counts_of(self, item_N: np.ndarray, happened_N: np.ndarray, timestamp_N: np.ndarray) -> np.ndarray:
        """int64 [N]: events of each row's item in the days before it; then takes in the rows where `happened`."""
        counts_N = np.empty(len(item_N), dtype=np.int64)
        for day, begin, end in day_slices(timestamp_N):
            self.move_to(day)
            counts_N[begin:end] = self.counts[item_N[begin:end]]
            self.add(item_N[begin:end][happened_N[begin:end]])
        return counts_N


def day_slices(timestamp_N: np.ndarray) -> list[tuple[int, int, int]]:
    """(day, first row, row after the last) for every day of time-sorted rows."""
    day_N = timestamp_N // SECONDS_PER_DAY
    begins = np.flatnonzero(np.concatenate([[True], day_N[1:] != day_N[:-1]])) if len(day_N) else np.zeros(0, int)
    ends = np.append(begins[1:], len(day_N))
    return [(int(day_N[begin]), int(begin), int(end)) for begin, end in zip(begins, ends, strict=True)]
