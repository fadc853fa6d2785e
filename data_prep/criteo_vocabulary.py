"""Values of a categorical column counted, those frequent enough numbered, and columns of values turned into ids.

N rows, V values in a vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.criteo_rows import MISSING

UNKNOWN, RARE, FIRST = 0, 1, 2
LEAST_MERGED = 1 << 18  # values waiting before they are merged, so that small counts are not merged for every block


class ValueCounts:
    """Distinct values of one column and how often they occur; MISSING is not counted.

    Holds 12 bytes per distinct uint32, up to twice that with those that wait, some 50 in the moment they are merged.
    """

    def __init__(self, kind: type[np.unsignedinteger] = np.uint32) -> None:
        self._values, self._counts = np.zeros(0, kind), np.zeros(0, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_values = 0

    @property
    def held(self) -> int:
        """Values in memory; some may be there more than once."""
        return len(self._values) + self._waiting_values

    def count(self, value_N: np.ndarray) -> None:
        """Takes rows of the column in: [N] of the kind."""
        values, counts = np.unique(value_N, return_counts=True)
        known = slice(1, None) if len(values) and values[0] == MISSING else slice(None)
        self.add(values[known], counts[known])

    def add(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Takes other counts in: distinct values and int64 counts."""
        self._waiting.append((values, counts))
        self._waiting_values += len(values)
        if self._waiting_values > max(len(self._values), LEAST_MERGED):  # as many as there are: merging stays linear
            self._merge()

    def total(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct values, rising, and their counts int64."""
        if self._waiting:
            self._merge()
        return self._values, self._counts

    def _merge(self) -> None:
        parts = [(self._values, self._counts), *self._waiting]
        self._waiting, self._waiting_values = [], 0
        values = np.concatenate([part[0] for part in parts])
        counts = np.concatenate([part[1] for part in parts])
        order = np.argsort(values)
        values = values[order]
        first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
        self._values = values[first]
        self._counts = np.add.reduceat(counts[order], first) if len(first) else counts


def vocabulary(values: np.ndarray, counts: np.ndarray, threshold: int) -> np.ndarray:
    """uint32 [V]: the values that occur at least `threshold` times, most frequent first, then by value. The value in
    place i has the id i + FIRST."""
    kept = counts >= threshold
    values, counts = values[kept], counts[kept]
    return values[np.lexsort((values, -counts))]


@dataclass(frozen=True)
class VocabularyIds:
    """Values to ids by a vocabulary: UNKNOWN for MISSING, RARE for values that it lacks. 8 bytes per value."""

    sorted_values: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, vocabulary_V: np.ndarray) -> "VocabularyIds":
        values = np.concatenate([[np.uint32(MISSING)], vocabulary_V])
        ids = np.concatenate([[UNKNOWN], np.arange(FIRST, FIRST + len(vocabulary_V))]).astype(np.int32)
        order = np.argsort(values)
        return cls(values[order], ids[order])

    def __call__(self, value_N: np.ndarray) -> np.ndarray:
        """int32 [N] for uint32 [N]."""
        # Distinct values are sorted: the searches walk through the vocabulary instead of jumping about in it.
        values, place_N = np.unique(value_N, return_inverse=True)
        at = np.minimum(np.searchsorted(self.sorted_values, values), len(self.sorted_values) - 1)
        return np.where(self.sorted_values[at] == values, self.ids[at], np.int32(RARE))[place_N]


def hashed_ids(value_NC: np.ndarray, rows: int) -> np.ndarray:
    """int32 ids in [0, rows): UNKNOWN for MISSING, else 1 + value mod (rows - 1). rows: at least 2."""
    return np.where(value_NC == MISSING, UNKNOWN, 1 + value_NC % np.uint32(rows - 1)).astype(np.int32)
