"""Names of the files that `data_prep.criteo` writes, and their rows: the days laid end to end, a range at a time.

N rows, X = 13 dense and C = 26 categorical columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.criteo_npy import rows_of
from data_prep.criteo_rows import CATEGORICAL
from data_prep.progress import rows_bar
from sidrec import schema
from sidrec.schema import ContractError

VOCABULARY = "vocabulary"
KINDS = ("dense", "sparse", "labels")
COUNTED_ROWS = 1 << 16  # rows counted at a time


def day_file(day: int, kind: str) -> str:
    """kind: one of KINDS."""
    return f"day_{day}_{kind}.npy"


def vocabulary_file(column: str) -> str:
    """column: C1 to C26."""
    return f"{VOCABULARY}/{column}.npy"


@dataclass(frozen=True)
class RowRange:
    """Neighbouring rows of a day, read when they are asked for; nothing is mapped, as mapped pages count as memory.

    first: number of the first row over all days. first_in_day: its number in its day.
    """

    folder: Path
    day: int
    first: int
    first_in_day: int
    rows: int

    @property
    def stop(self) -> int:
        """Number of the row after the last, over all days."""
        return self.first + self.rows

    def dense(self) -> np.ndarray:
        """float32 [N, X]."""
        return self._read("dense")

    def ids(self) -> np.ndarray:
        """int32 [N, C]."""
        return self._read("sparse")

    def labels(self) -> np.ndarray:
        """int32 [N]."""
        return self._read("labels")[:, 0]

    def _read(self, kind: str) -> np.ndarray:
        return rows_of(self.folder / day_file(self.day, kind), self.first_in_day, self.rows)


@dataclass(frozen=True)
class CriteoLayout:
    """days: number and rows of each, in order. table_rows: ids of each of the C columns lie below."""

    folder: Path
    days: tuple[tuple[int, int], ...]
    table_rows: tuple[int, ...]
    ids_in_words: str

    @classmethod
    def open(cls, folder: Path) -> "CriteoLayout":
        """Raises ContractError for a folder without manifest, or with files that are not as it says."""
        path = folder / schema.MANIFEST
        told = schema.read_json(path, "the manifest of a folder that data_prep.criteo wrote")
        try:
            days = tuple((int(day["day"]), int(day["rows"])) for day in told["days"])
            tables = tuple(int(rows) for rows in told["categorical"]["table_rows"])
            _check_sizes(folder, told["files"])
            return cls(folder, days, tables, str(told["categorical"]["ids"]))
        except ContractError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(path, "a manifest as data_prep.criteo writes it", repr(error)) from None

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.days)

    @property
    def files(self) -> tuple[Path, ...]:
        """The manifest, and those of every day."""
        names = [schema.MANIFEST, *(day_file(day, kind) for day, _ in self.days for kind in KINDS)]
        return tuple(self.folder / name for name in names)

    def ranges(self, start: int, stop: int, size: int) -> Iterator[RowRange]:
        """The rows [start, stop), `size` of them at a time; a range ends with its day."""
        before = 0
        for day, rows in self.days:
            last = min(stop, before + rows)
            for begin in range(max(start, before), last, size):
                yield RowRange(self.folder, day, begin, begin - before, min(size, last - begin))
            before += rows

    def counts(self, columns: Sequence[int], start: int, stop: int) -> list[np.ndarray]:
        """How often every id occurs in the rows [start, stop): int64 [table rows] for each of the columns."""
        counts = [np.zeros(self.table_rows[column], np.int64) for column in columns]
        with rows_bar("counting", stop - start) as bar:
            for part in self.ranges(start, stop, COUNTED_ROWS):
                id_NC = part.ids()
                for column, count in zip(columns, counts, strict=True):
                    np.add.at(count, id_NC[:, column], 1)
                bar.update(part.rows)
        return counts

    def values(self, column: int) -> np.ndarray | None:
        """The 32-bit value of every id from 2 on, uint32; None for hashed ids."""
        path = self.folder / vocabulary_file(CATEGORICAL[column])
        return np.load(path) if path.is_file() else None


def _check_sizes(folder: Path, files: dict[str, Any]) -> None:
    for name, facts in files.items():
        path = folder / name
        found = f"{path.stat().st_size}" if path.is_file() else "no such file"
        if found != str(facts["bytes"]):
            raise ContractError(path, f"{facts['bytes']} bytes, as {schema.MANIFEST} says", found)
