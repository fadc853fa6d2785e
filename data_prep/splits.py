"""Train, validation and test by time: one cut for everybody, or one per user."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.event_order import OrderedLog
from sidrec.schema import ContractError

SPLITS = ("train", "validation", "test")
SplitKind = Literal["global", "per-user-last"]


@dataclass(frozen=True)
class GlobalSplit:
    """Events from `validation_from` (seconds) on are validation, from `test_from` on test."""

    validation_from: int
    test_from: int

    @classmethod
    def of(cls, log: OrderedLog, validation_share: float, test_share: float) -> "GlobalSplit":
        """Cuts so that the last `test_share` of the events is test and `validation_share` before it validation.

        Events that share the timestamp at a cut all go to the later split. Raises ContractError when no train row is
        left.
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

    def assign(self, user_N: np.ndarray, timestamp_N: np.ndarray, earlier_N: np.ndarray) -> np.ndarray:
        """int8 [N]: place of each event's split in SPLITS."""
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

    def assign(self, user_N: np.ndarray, timestamp_N: np.ndarray, earlier_N: np.ndarray) -> np.ndarray:
        """int8 [N], from how many of the user's events are strictly earlier: events at one timestamp stay together."""
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


Split = GlobalSplit | PerUserSplit


def make_split(kind: SplitKind, log: OrderedLog, validation_share: float, test_share: float) -> Split:
    if kind == "global":
        return GlobalSplit.of(log, validation_share, test_share)
    return PerUserSplit(log.user_rows, validation_share, test_share)
