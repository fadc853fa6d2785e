"""Splits: one cut in time for all users, a share or one event of each user, cuts at stated times, or a random draw.

A split's `assign` takes a partition of events in time order: the users, times, numbers of the user's strictly earlier
events, and numbers of the events in the log.

Shapes: N events of a partition.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sidrec.errors import ContractError
from sidrec.schema import RANDOM, STATED

from .event_order import NEVER, OrderedLog
from .negatives import uniforms

SPLIT_KEY = 0x5B117  # tells these random numbers from others of the same seed and event
SPLITS = ("train", "validation", "test")
BEFORE = -1  # in place of an index in SPLITS: events before the first split, which are not written
SplitKind = Literal["global", "per-user-last", "last", "random"]


@dataclass(frozen=True)
class GlobalSplit:
    """One cut for all users: validation starts at `validation_from`, test at `test_from`, in seconds since 1970."""

    validation_from: int
    test_from: int

    @classmethod
    def of(cls, log: OrderedLog, validation_share: float, test_share: float) -> "GlobalSplit":
        """The last `test_share` of the events is test, `validation_share` before it validation.

        Events with the timestamp of a cut belong to the later split. Raises ContractError if no train row is left.
        """
        test_row = int(log.rows * (1 - test_share))
        validation_row = int(log.rows * (1 - test_share - validation_share))
        if not 0 < validation_row <= test_row < log.rows:
            raise ContractError("the log", "enough events for a train and a test split", f"{log.rows} events")
        test_from = log.timestamp_of_row(test_row)
        validation_from = min(log.timestamp_of_row(validation_row), test_from)
        if log.timestamp_of_row(0) >= validation_from:
            raise ContractError(
                "the log",
                "events at enough different times to cut off a train split",
                f"all up to {validation_from} alike",
            )
        return cls(validation_from, test_from)

    def assign(
        self, user_N: np.ndarray, timestamp_N: np.ndarray, earlier_N: np.ndarray, event_N: np.ndarray
    ) -> np.ndarray:
        """int8 [N]: index of each event's split in SPLITS."""
        is_test = timestamp_N >= self.test_from
        return np.where(is_test, 2, timestamp_N >= self.validation_from).astype(np.int8)

    def protocol(self) -> dict[str, object]:
        return {
            "kind": "global",
            "words": "one cut in time for everybody; events at the cut's own timestamp belong to the later split",
            "validation_from": self.validation_from,
            "test_from": self.test_from,
        }


@dataclass(frozen=True)
class PerUserSplit:
    """The last `test_share` of each user's events (rounded down) is test, `validation_share` before it validation."""

    user_rows: np.ndarray
    validation_share: float
    test_share: float

    def assign(
        self, user_N: np.ndarray, timestamp_N: np.ndarray, earlier_N: np.ndarray, event_N: np.ndarray
    ) -> np.ndarray:
        """int8 [N]: index in SPLITS, by the number of the user's strictly earlier events. Equal times stay together."""
        rows_N = self.user_rows[user_N]
        test_from = rows_N - np.floor(rows_N * self.test_share).astype(np.int64)
        validation_from = test_from - np.floor(rows_N * self.validation_share).astype(np.int64)
        return np.where(earlier_N >= test_from, 2, earlier_N >= validation_from).astype(np.int8)

    def protocol(self) -> dict[str, object]:
        return {
            "kind": "per-user-last",
            "words": "each user's last events are test; the splits overlap in time, so training sees other users' "
            "events that are later than a test row. Statistics and histories are strictly as-of all the same: they "
            "count earlier rows of all splits",
        }


@dataclass(frozen=True)
class LastEventSplit:
    """The last event of each user is test, the one before it validation; users with fewer than 3 events stay in train.

    Events of a user at the same time keep the source's order.
    """

    user_rows: np.ndarray

    def assign(
        self, user_N: np.ndarray, timestamp_N: np.ndarray, earlier_N: np.ndarray, event_N: np.ndarray
    ) -> np.ndarray:
        """int8 [N]: index in SPLITS. Equal times of a user must not be divided between partitions."""
        order_N = np.lexsort((event_N, timestamp_N, user_N))
        user, timestamp = user_N[order_N], timestamp_N[order_N]
        starts = np.ones(len(order_N), dtype=bool)
        starts[1:] = (user[1:] != user[:-1]) | (timestamp[1:] != timestamp[:-1])
        place = np.arange(len(order_N))
        position_N = np.empty(len(order_N), dtype=np.int64)  # number of the user's events before this one, ties divided
        position_N[order_N] = earlier_N[order_N] + place - np.maximum.accumulate(np.where(starts, place, 0))
        rows_N = self.user_rows[user_N]
        split_N = np.maximum(position_N - rows_N + len(SPLITS), 0)
        return np.where(rows_N < len(SPLITS), 0, split_N).astype(np.int8)

    def protocol(self) -> dict[str, object]:
        return {
            "kind": "last",
            "words": "each user's last event is test, the one before it validation; users with fewer than 3 events are "
            "in train, events of a user at the same time keep the source's order. The splits overlap in time, so "
            "training sees other users' events that are later than a test row. Statistics and histories are strictly "
            "as-of all the same: they count earlier rows of all splits",
        }


@dataclass(frozen=True)
class StatedSplit:
    """Cuts at stated times for all users: each split begins at its time, in seconds since 1970, and ends at the next.

    train_from: None: at the first event; earlier events are in no split. validation_from, test_from: None: there is no
    such split.
    """

    train_from: int | None = None
    validation_from: int | None = None
    test_from: int | None = None

    @property
    def begins(self) -> tuple[int, int, int]:
        """First second of train, validation and test."""
        test = NEVER if self.test_from is None else self.test_from
        validation = test if self.validation_from is None else self.validation_from
        return -NEVER if self.train_from is None else self.train_from, validation, test

    def assign(
        self, user_N: np.ndarray, timestamp_N: np.ndarray, earlier_N: np.ndarray, event_N: np.ndarray
    ) -> np.ndarray:
        """int8 [N]: index of each event's split in SPLITS, or BEFORE."""
        return (np.asarray(self.begins) <= timestamp_N[:, None]).sum(axis=1).astype(np.int8) + np.int8(BEFORE)

    def protocol(self) -> dict[str, object]:
        stated = {f"{split}_from": getattr(self, f"{split}_from") for split in SPLITS}
        return {
            "kind": STATED,
            "words": "cuts at stated times for everybody; events at the cut's own timestamp belong to the later split. "
            "Events before train_from are not written: they count in histories, statistics and train_impressions",
            **{name: time for name, time in stated.items() if time is not None},
        }


@dataclass(frozen=True)
class RandomSplit:
    """Each event is in test with the probability `test_share`, in validation with `validation_share`.

    timed: whether the log has times.
    """

    seed: int
    validation_share: float
    test_share: float
    timed: bool

    def assign(
        self, user_N: np.ndarray, timestamp_N: np.ndarray, earlier_N: np.ndarray, event_N: np.ndarray
    ) -> np.ndarray:
        """int8 [N]: index in SPLITS, by a hash of the seed and the event's number."""
        drawn_N = uniforms(self.seed, event_N, SPLIT_KEY)
        is_test = drawn_N < self.test_share
        return np.where(is_test, 2, drawn_N < self.test_share + self.validation_share).astype(np.int8)

    def protocol(self) -> dict[str, object]:
        words = "each event is drawn to a split, whatever its time or user: "
        if self.timed:
            words += (
                "training sees events that are later than a test row, of the same users too. Statistics and histories "
                "are strictly as-of all the same: they count earlier rows of all splits"
            )
        else:
            words += (
                "the log has no times, so that no row is before another. Every timestamp is 0, histories are empty, "
                "stat_* columns are 0, and the dense columns of a user's earlier events are those of a first event"
            )
        return {"kind": RANDOM, "words": words, "seed": self.seed, "timed": self.timed}


Split = GlobalSplit | PerUserSplit | LastEventSplit | StatedSplit | RandomSplit


def make_split(
    kind: SplitKind, log: OrderedLog, validation_share: float, test_share: float, seed: int, timed: bool
) -> Split:
    """timed: whether the log has times; without, only a random split can be meant."""
    if kind == "random":
        return RandomSplit(seed, validation_share, test_share, timed)
    if kind == "global":
        return GlobalSplit.of(log, validation_share, test_share)
    if kind == "last":
        return LastEventSplit(log.user_rows)
    return PerUserSplit(log.user_rows, validation_share, test_share)
