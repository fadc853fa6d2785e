"""The rows of a stage: some files laid end to end, or the half of them that TorchRec calls val or test.

N rows asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sidrec.data.criteo_files import CriteoDay
from sidrec.schema import ContractError

Stage = Literal["train", "val", "test"]


@dataclass(frozen=True)
class StageFiles:
    """Which rows of which files. first, stop: of each file's rows.

    "train" has all rows; "val" the first half of the first file, "test" its second, and both all others.
    """

    days: tuple[CriteoDay, ...]
    first: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def of(cls, days: Sequence[CriteoDay], stage: Stage) -> "StageFiles":
        """Raises ContractError for another stage."""
        if stage not in ("train", "val", "test"):
            raise ContractError("stage", "train, val or test", repr(stage))
        half = -(-days[0].rows // 2)
        first, stop = [0] * len(days), [day.rows for day in days]
        if stage == "val":
            stop[0] = half
        elif stage == "test":
            first[0] = half
        return cls(tuple(days), tuple(first), tuple(stop))

    @property
    def rows(self) -> int:
        return sum(self.stop) - sum(self.first)


class StageRows:
    """Opened files, to take rows from; lives in one process."""

    def __init__(self, files: StageFiles) -> None:
        self.days = files.days
        self._arrays = [[np.asarray(array) for array in day.arrays()] for day in files.days]
        self._first = np.array(files.first)
        self._starts = np.concatenate([[0], np.cumsum(np.array(files.stop) - self._first)])

    def place(self, row: int) -> tuple[int, int]:
        """The number of a row's file, and the row in it."""
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return file, int(row - self._starts[file] + self._first[file])

    def take(self, rows: range | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dense [N, 13], sparse [N, 26] and labels [N, 1] of these rows, in their order; N is at least 1.

        Copies, but for sparse, which is a read-only piece of its file where the rows are neighbours in one: whoever
        turns it into columns copies it anyway.
        """
        taken = self._slices(rows) if isinstance(rows, range) else self._scattered(rows)
        dense, sparse, labels = taken
        return dense, sparse, labels

    def _slices(self, rows: range) -> list[np.ndarray]:
        """Neighbours: a slice of every file that has some of them."""
        parts = []
        for file, arrays in enumerate(self._arrays):
            first, stop = max(rows.start, int(self._starts[file])), min(rows.stop, int(self._starts[file + 1]))
            if first < stop:
                before = int(self._starts[file] - self._first[file])
                parts.append([array[first - before : stop - before] for array in arrays])
        if len(parts) > 1:
            return [np.concatenate(kind) for kind in zip(*parts, strict=True)]
        dense, sparse, labels = parts[0]
        return [dense.copy(), sparse, labels.copy()]

    def _scattered(self, row_N: np.ndarray) -> list[np.ndarray]:
        file_N = np.searchsorted(self._starts, row_N, side="right") - 1
        taken = [np.empty((len(row_N), one.shape[1]), one.dtype) for one in self._arrays[0]]
        for file in np.unique(file_N).tolist():
            own_N = np.flatnonzero(file_N == file)
            row_in_file_N = row_N[own_N] - self._starts[file] + self._first[file]
            for array, target in zip(self._arrays[file], taken, strict=True):
                target[own_N] = array[row_in_file_N]
        return taken
