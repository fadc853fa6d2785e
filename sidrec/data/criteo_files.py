"""Criteo as .npy files: dense float32 [N, 13], sparse int32 or int64 [N, 26], labels int32 [N, 1] for each day.

Opening them checks their headers, the manifest of `data_prep.criteo` if there is one, and some or all of their rows.

Shapes: N rows.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np

from sidrec.schema import MANIFEST, ContractError, read_json

DENSE_COLUMNS, SPARSE_COLUMNS = 13, 26
KINDS = ("dense", "sparse", "labels")
SAMPLES, SAMPLE_ROWS = 64, 64  # per day, evenly spread, first and last rows included
FULL_ROWS = 1 << 16  # read at a time with look = "full"
Look = Literal["sample", "full"]
_WIDTHS = {"dense": DENSE_COLUMNS, "sparse": SPARSE_COLUMNS, "labels": 1}
_TYPES = {"dense": (np.float32,), "sparse": (np.int32, np.int64), "labels": (np.int32,)}


def criteo_paths(folder: Path, days: Iterable[int] | None = None) -> tuple[list[str], list[str], list[str]]:
    """Paths of the dense, sparse and labels files of the days, as TorchRec's data pipe takes them.

    days: their numbers; None for all days of the folder, in order. Raises ContractError if there are none.
    """
    if days is None:
        found = (re.fullmatch(r"day_(\d+)_dense\.npy", path.name) for path in folder.glob("day_*_dense.npy"))
        days = sorted(int(name[1]) for name in found if name)
    numbers = tuple(days)
    if not numbers:
        raise ContractError(folder, "files day_K_dense.npy, day_K_sparse.npy and day_K_labels.npy", "none")
    dense, sparse, labels = ([str(folder / f"day_{number}_{kind}.npy") for number in numbers] for kind in KINDS)
    return dense, sparse, labels


@dataclass(frozen=True)
class CriteoDay:
    """The three files of a day, their number of rows, and the type of the ids."""

    dense: Path
    sparse: Path
    labels: Path
    rows: int
    id_type: np.dtype

    @classmethod
    def open(cls, dense: Path, sparse: Path, labels: Path) -> "CriteoDay":
        """Raises ContractError for a file that is missing or truncated, or of another type, width or length."""
        headers = {path: _header(path, kind) for path, kind in zip((dense, sparse, labels), KINDS, strict=True)}
        rows = headers[dense][0]
        for path in (sparse, labels):
            if headers[path][0] != rows:
                raise ContractError(path, f"{rows} rows, as {dense.name} has", headers[path][0])
        return cls(dense, sparse, labels, rows, headers[sparse][1])

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dense, sparse, labels: memory-mapped, read-only."""
        dense, sparse, labels = (np.load(path, mmap_mode="r") for path in (self.dense, self.sparse, self.labels))
        return dense, sparse, labels

    def look(self, how: Look, table_rows: Sequence[int] | None) -> None:
        """Raises ContractError for the first value that is not finite, not a label, or beyond its table.

        how: "sample" checks 64 times 64 rows; "full" checks all rows and the manifest's checksums.
        """
        length, starts = FULL_ROWS, list(range(0, self.rows, FULL_ROWS))
        if how == "sample":
            length, last = SAMPLE_ROWS, max(0, self.rows - SAMPLE_ROWS)
            starts = sorted({sample * last // (SAMPLES - 1) for sample in range(SAMPLES)})
        else:
            for path in (self.dense, self.sparse, self.labels):
                _check_sum(path)
        dense, sparse, labels = self.arrays()
        for start in starts:
            part = slice(start, start + length)
            _refuse(~np.isfinite(dense[part]), dense, self.dense, part, "finite numbers")
            _refuse((labels[part] != 0) & (labels[part] != 1), labels, self.labels, part, "0 or 1")
            if table_rows is not None:
                check_ids(sparse[part], table_rows, partial(_row_of, self.sparse, start))


def _row_of(path: Path, first_row: int, row: int) -> str:
    return f"{path}, row {first_row + row}"


def check_ids(sparse_NC: np.ndarray, table_rows: Sequence[int], where: Callable[[int], str]) -> None:
    """Raises ContractError for the first id outside [0, table_rows of its column).

    where: row number -> its place, for the message.
    """
    bad = (sparse_NC < 0) | (sparse_NC >= np.asarray(table_rows))
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        place = f"{where(row)}, column {column} (C{column + 1})"
        raise ContractError(place, f"ids in [0, {table_rows[column]})", sparse_NC[row, column])


def check_tables(days: Iterable[CriteoDay], table_rows: Sequence[int]) -> None:
    """Raises ContractError if there are not 26 tables, or a manifest says that ids need larger ones."""
    if len(table_rows) != SPARSE_COLUMNS:
        raise ContractError("table_rows", f"{SPARSE_COLUMNS} numbers, one per column", len(table_rows))
    for folder in sorted({day.sparse.parent for day in days}):
        for column, (given, least) in enumerate(zip(table_rows, _least_rows(folder), strict=True)):
            if given < least:
                expected = f"at least {least} rows for column {column} (C{column + 1}), as {folder / MANIFEST} says"
                raise ContractError("table_rows", expected, given)


def _least_rows(folder: Path) -> list[int]:
    """Rows that each table needs, from the folder's manifest; zeros if it does not say."""
    entry = _manifest(folder).get("categorical", {})
    least = entry.get("table_rows", [0] * SPARSE_COLUMNS) if isinstance(entry, dict) else entry
    numbers = isinstance(least, list) and all(isinstance(rows, int) for rows in least)
    if not numbers or len(least) != SPARSE_COLUMNS:
        expected = f"{SPARSE_COLUMNS} whole numbers, one per column"
        raise ContractError(f"{folder / MANIFEST}, categorical.table_rows", expected, least)
    return least


def _header(path: Path, kind: str) -> tuple[int, np.dtype]:
    """Checks a file's header and size; returns its rows and type."""
    if not path.is_file():
        raise ContractError(path, f"a .npy file of {kind}", "no such file")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            data = path.stat().st_size - file.tell()
    except (
        ValueError,
        SyntaxError,
        TokenError,
        TypeError,
        RecursionError,
        OSError,
    ) as error:  # headers are Python
        raise ContractError(path, "a .npy file", error) from None
    if dtype not in _TYPES[kind]:
        raise ContractError(path, " or ".join(np.dtype(one).name for one in _TYPES[kind]), dtype)
    if len(shape) != 2 or shape[1] != _WIDTHS[kind] or by_columns:
        got = f"shape {list(shape)}{' stored by columns' if by_columns else ''}"
        raise ContractError(path, f"shape [rows, {_WIDTHS[kind]}] stored by rows", got)
    needed = shape[0] * shape[1] * dtype.itemsize
    if data != needed:
        raise ContractError(path, f"{needed} bytes of data for the {shape[0]} rows of its header", f"{data} bytes")
    if not shape[0]:
        raise ContractError(path, "at least one row", "none")
    return int(shape[0]), dtype


def _refuse(bad: np.ndarray, values: np.ndarray, path: Path, part: slice, expected: str) -> None:
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        found = values[part.start + row, column]
        raise ContractError(f"{path}, row {part.start + row}, column {column}", expected, found)


def _check_sum(path: Path) -> None:
    entry = _manifest(path.parent).get("files", {}).get(path.name)
    if entry is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry["sha256"]:
        raise ContractError(path, f"the sha256 that {MANIFEST} says, {entry['sha256']}", found)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of data_prep.criteo; empty if there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    manifest = read_json(path, "a manifest as data_prep.criteo writes it")
    return manifest if isinstance(manifest, dict) else {}


# The rows of a stage: TorchRec's split of some files, laid end to end.


Stage = Literal["train", "val", "test"]


@dataclass(frozen=True)
class StageFiles:
    """Which rows of which files belong to a stage: rows [first, stop) of each file.

    As in TorchRec: "train" has all rows; "val" has the first half of the first file, "test" its second half, and both
    have all other files.
    """

    days: tuple[CriteoDay, ...]
    first: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def of(cls, days: Sequence[CriteoDay], stage: Stage) -> "StageFiles":
        """Raises ContractError for an unknown stage."""
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
    """Opened files to take rows from; not to be shared between processes."""

    def __init__(self, files: StageFiles) -> None:
        self.days = files.days
        self._arrays = [[np.asarray(array) for array in day.arrays()] for day in files.days]
        self._first = np.array(files.first)
        self._starts = np.concatenate([[0], np.cumsum(np.array(files.stop) - self._first)])

    def place(self, row: int) -> tuple[int, int]:
        """The number of a row's file, and the row number in it."""
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return file, int(row - self._starts[file] + self._first[file])

    def take(self, rows: range | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dense [N, 13], sparse [N, 26] and labels [N, 1] of these rows, in their order; N is at least 1.

        Arrays are copies, except sparse if the rows are adjacent in one file: then it is a read-only view, which the
        caller copies when it transposes.
        """
        taken = self._slices(rows) if isinstance(rows, range) else self._scattered(rows)
        dense, sparse, labels = taken
        return dense, sparse, labels

    def _slices(self, rows: range) -> list[np.ndarray]:
        """Adjacent rows: a slice of every file that has some of them."""
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
