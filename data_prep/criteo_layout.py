"""Reads what `data_prep.criteo` wrote: the days' rows laid end to end, a range of them at a time.

N rows, X = 13 dense and C = 26 categorical columns.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sidrec import schema
from sidrec.schema import ContractError


class RowRange(NamedTuple):
    """first: number of the first row. dense_NX: float32, id_NC: int32, label_N: int32."""

    first: int
    dense_NX: np.ndarray
    id_NC: np.ndarray
    label_N: np.ndarray


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
        if not path.is_file():
            raise ContractError(path, "the manifest of a folder that data_prep.criteo wrote", "no such file")
        try:
            told = json.loads(path.read_text())
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

    def ranges(self, start: int, stop: int, size: int) -> Iterator[RowRange]:
        """The rows [start, stop), `size` of them at a time; a range ends with its day."""
        before = 0
        for day, rows in self.days:
            first, last = max(start, before), min(stop, before + rows)
            if first < last:
                dense, sparse, labels = (self._map(day, kind) for kind in ("dense", "sparse", "labels"))
                for begin in range(first, last, size):
                    part = slice(begin - before, min(begin + size, last) - before)
                    yield RowRange(begin, np.array(dense[part]), np.array(sparse[part]), np.array(labels[part, 0]))
            before += rows

    def values(self, column: int) -> np.ndarray | None:
        """The 32-bit value of every id from 2 on, uint32; None for hashed ids."""
        path = self.folder / "vocabulary" / f"C{column + 1}.npy"
        return np.load(path) if path.is_file() else None

    def _map(self, day: int, kind: str) -> np.ndarray:
        return np.load(self.folder / f"day_{day}_{kind}.npy", mmap_mode="r")


def _check_sizes(folder: Path, files: dict[str, Any]) -> None:
    for name, facts in files.items():
        path = folder / name
        found = f"{path.stat().st_size}" if path.is_file() else "no such file"
        if found != str(facts["bytes"]):
            raise ContractError(path, f"{facts['bytes']} bytes, as {schema.MANIFEST} says", found)
