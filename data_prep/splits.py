"""Splits: one cut in time for all users, a share or one event of each user, cuts at stated times, or a random draw.

Each split is a query over the relation `ordered` (`data_prep.ordered_events`): all of its columns, and `split`, the
index in SPLITS or BEFORE.

Shapes: N events.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from sidrec.errors import ContractError
from sidrec.schema import RANDOM, STATED

from .draws import uniforms
from .engine import Engine
from .ordered_events import NEVER, OrderedEvents

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
    def of(cls, log: OrderedEvents, validation_share: float, test_share: float) -> "GlobalSplit":
        """The last `test_share` of the events is test, `validation_share` before it validation.

        Events with the timestamp of a cut belong to the later split. Raises ContractError if no train row is left.
        """
        test_row = int(log.rows * (1 - test_share))
        validation_row = int(log.rows * (1 - test_share - validation_share))
        if not 0 < validation_row <= test_row < log.rows:
            raise ContractError("the log", "enough events for a train and a test split", f"{log.rows} events")
        test_from = log.time_of(test_row)
        validation_from = min(log.time_of(validation_row), test_from)
        if log.time_of(0) >= validation_from:
            raise ContractError(
                "the log",
                "events at enough different times to cut off a train split",
                f"all up to {validation_from} alike",
            )
        return cls(validation_from, test_from)

    def query(self, engine: Engine) -> str:
        later = f"WHEN moment >= {self.test_from} THEN 2 WHEN moment >= {self.validation_from} THEN 1"
        return f"SELECT *, CASE {later} ELSE 0 END AS split FROM ordered"

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

    validation_share: float
    test_share: float

    def query(self, engine: Engine) -> str:
        """By the number of the user's strictly earlier events. Equal times stay together."""
        test_from = f"events - FLOOR(events * {self.test_share:.17e})"
        validation_from = f"{test_from} - FLOOR(events * {self.validation_share:.17e})"
        later = f"WHEN earlier >= {test_from} THEN 2 WHEN earlier >= {validation_from} THEN 1"
        earlier = "RANK() OVER (PARTITION BY user_id ORDER BY moment) - 1 AS earlier"
        counted = f"SELECT *, {earlier}, COUNT(*) OVER (PARTITION BY user_id) AS events FROM ordered"
        return f"SELECT *, CASE {later} ELSE 0 END AS split FROM ({counted}) AS c"

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

    def query(self, engine: Engine) -> str:
        position = "ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY event) AS position"
        counted = f"SELECT *, {position}, COUNT(*) OVER (PARTITION BY user_id) AS events FROM ordered"
        last = f"WHEN events >= {len(SPLITS)} AND position = events THEN 2"
        before = f"WHEN events >= {len(SPLITS)} AND position = events - 1 THEN 1"
        return f"SELECT *, CASE {last} {before} ELSE 0 END AS split FROM ({counted}) AS c"

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

    def query(self, engine: Engine) -> str:
        train, validation, test = self.begins
        later = f"WHEN moment >= {test} THEN 2 WHEN moment >= {validation} THEN 1 WHEN moment >= {train} THEN 0"
        return f"SELECT *, CASE {later} ELSE {BEFORE} END AS split FROM ordered"

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

    def query(self, engine: Engine) -> str:
        if not engine.stored("drawn_splits"):
            arrow = pa.schema([("event", pa.int64()), ("split", pa.int32())])
            engine.map("drawn_splits", "SELECT event FROM ordered", self._draw, arrow)
        return "SELECT o.*, s.split FROM ordered AS o JOIN drawn_splits AS s ON s.event = o.event"

    def _draw(self, events: pa.RecordBatch) -> pa.RecordBatch:
        split_N = self.assign(events.column(0).to_numpy())
        return pa.RecordBatch.from_arrays([events.column(0), pa.array(split_N)], ["event", "split"])

    def assign(self, event_N: np.ndarray) -> np.ndarray:
        """int32 [N]: index in SPLITS, by a hash of the seed and the event's number."""
        drawn_N = uniforms(self.seed, event_N, SPLIT_KEY)
        is_test = drawn_N < self.test_share
        return np.where(is_test, 2, drawn_N < self.test_share + self.validation_share).astype(np.int32)

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
    kind: SplitKind, log: OrderedEvents, validation_share: float, test_share: float, seed: int, timed: bool
) -> Split:
    """timed: whether the log has times; without, only a random split can be meant."""
    if kind == "random":
        return RandomSplit(seed, validation_share, test_share, timed)
    if kind == "global":
        return GlobalSplit.of(log, validation_share, test_share)
    if kind == "last":
        return LastEventSplit()
    return PerUserSplit(validation_share, test_share)
