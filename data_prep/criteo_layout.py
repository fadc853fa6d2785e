"""The files that `data_prep.criteo` writes: their names, their rows in ranges over all days, and .npy files that grow.

Shapes: N rows, X = 13 dense and C = 26 categorical columns.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sidrec import schema
from sidrec.errors import ContractError
from sidrec.io.files import read_json, replaced_file

from .command import rows_bar
from .criteo_rows import CATEGORICAL

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
class CriteoLayout:
    """A folder that `data_prep.criteo` wrote.

    days: number and rows of each, in order. table_rows: rows of the embedding table of each of the C columns.
    """

    folder: Path
    days: tuple[tuple[int, int], ...]
    table_rows: tuple[int, ...]
    ids_in_words: str

    @classmethod
    def open(cls, folder: Path) -> "CriteoLayout":
        """Reads the manifest. Raises ContractError if it is missing or invalid, or the files' sizes differ from it."""
        path = folder / schema.MANIFEST
        facts = read_json(path, "the manifest of a folder that data_prep.criteo wrote")
        try:
            days = tuple((int(day["day"]), int(day["rows"])) for day in facts["days"])
            tables = tuple(int(rows) for rows in facts["categorical"]["table_rows"])
            _check_sizes(folder, facts["files"])
            return cls(folder, days, tables, str(facts["categorical"]["ids"]))
        except ContractError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(path, "a manifest as data_prep.criteo writes it", repr(error)) from None

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.days)

    @property
    def files(self) -> tuple[Path, ...]:
        """The manifest, and the files of every day."""
        names = [schema.MANIFEST, *(day_file(day, kind) for day, _ in self.days for kind in KINDS)]
        return tuple(self.folder / name for name in names)

    def ranges(self, start: int, stop: int, size: int) -> Iterator["RowRange"]:
        """The rows [start, stop) in ranges of at most `size` rows; no range spans two days."""
        before = 0
        for day, rows in self.days:
            last = min(stop, before + rows)
            for begin in range(max(start, before), last, size):
                yield RowRange(self.folder, day, begin, begin - before, min(size, last - begin))
            before += rows

    def counts(self, columns: Sequence[int], start: int, stop: int) -> list[np.ndarray]:
        """Occurrences of every id in the rows [start, stop): int64 [table rows] for each of the columns."""
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


@dataclass(frozen=True)
class EarlierVocabulary:
    """The vocabulary of a folder that an earlier preparation wrote."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "EarlierVocabulary":
        """Raises ContractError for a folder without a vocabulary, and for one whose files have changed."""
        layout = CriteoLayout.open(folder)
        stated = read_json(folder / schema.MANIFEST, "the manifest of prepared Criteo files")["files"]
        for name in map(vocabulary_file, CATEGORICAL):
            if name not in stated:
                expected = "a folder whose ids are by a vocabulary"
                raise ContractError(f"--vocabulary {folder}", expected, f"ids {layout.ids_in_words}")
            if fingerprint(folder / name) != stated[name]:
                raise ContractError(folder / name, f"the file that {schema.MANIFEST} states", "another SHA-256")
        return cls(folder)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.folder / schema.MANIFEST, *(self.folder / vocabulary_file(column) for column in CATEGORICAL))

    def values(self, column: str) -> np.ndarray:
        """uint32 values of a column in order of their ids."""
        return np.asarray(np.load(self.folder / vocabulary_file(column)))


def _check_sizes(folder: Path, files: dict[str, Any]) -> None:
    for name, facts in files.items():
        path = folder / name
        found = f"{path.stat().st_size}" if path.is_file() else "no such file"
        if found != str(facts["bytes"]):
            raise ContractError(path, f"{facts['bytes']} bytes, as {schema.MANIFEST} says", found)


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of a day. Each method reads them from disk.

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


# .npy files: written row by row, read in parts. Nothing is memory-mapped, as mapped pages count as memory.


@contextmanager
def growing_npy(path: Path, width: int, dtype: type[np.generic]) -> Iterator["NpyRows"]:
    """Yields what rows are appended to. The file appears under `path` when the block ends without error.

    Its bytes are those of np.save on all rows together: numpy pads the header so that the number of rows can grow.
    """
    with (
        replaced_file(path, durable=True, one_writer=True) as partial,
        partial.open("wb") as file,
    ):
        rows = NpyRows(file, width, np.dtype(dtype))
        rows.write_header()
        yield rows
        file.seek(0)
        rows.write_header()


@dataclass
class NpyRows:
    """The open file of `growing_npy`."""

    file: IO[bytes]
    width: int
    dtype: np.dtype
    count: int = 0

    def append(self, rows: np.ndarray) -> None:
        """rows: [N, width] of the file's type."""
        assert (rows.shape[1], rows.dtype) == (self.width, self.dtype), (rows.shape, rows.dtype)
        self.file.write(np.ascontiguousarray(rows).data)
        self.count += len(rows)

    def write_header(self) -> None:
        """Writes the .npy header for the rows so far, at the file's position."""
        facts = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, self.width)}
        np.lib.format.write_array_header_1_0(self.file, facts)


def parts_of(path: Path, rows: int) -> Iterator[np.ndarray]:
    """The rows of a file that `growing_npy` wrote, `rows` at a time."""
    with path.open("rb") as file:
        width, dtype = _read_header(file)
        while len(part := np.fromfile(file, dtype, rows * width)):
            yield part.reshape(-1, width)


def rows_of(path: Path, first: int, rows: int) -> np.ndarray:
    """The rows [first, first + rows) of a file that `growing_npy` wrote."""
    with path.open("rb") as file:
        width, dtype = _read_header(file)
        skipped = first * width * dtype.itemsize
        return np.fromfile(file, dtype, rows * width, offset=skipped).reshape(rows, width)


def _read_header(file: IO[bytes]) -> tuple[int, np.dtype]:
    """Width and type. Leaves the file at its first row."""
    np.lib.format.read_magic(file)
    (_, width), _, dtype = np.lib.format.read_array_header_1_0(file)
    return width, dtype


def fingerprint(path: Path) -> dict[str, object]:
    """Size and sha256 of a file, for a manifest."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
