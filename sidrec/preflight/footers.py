"""What files' footers tell of a split without a row being read: smallest and largest value, missing ones, times.

At most `FILES` files of a split are asked, at equal distances: a log may have many thousands.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from sidrec.parquet_file import readable
from sidrec.schema import HISTORY, LogFile

FILES = 64
THREADS = 8


class Place(NamedTuple):
    """A row group: its number in the file, and that of its first row."""

    file: LogFile
    group: int
    first_row: int
    rows: int


@dataclass
class Range:
    """Of a column over all rows asked about; `known` only where every row group's footer told.

    low_at, high_at, missing_at: row groups that have the bounds, and one where something is missing.
    """

    low: float = inf
    high: float = -inf
    missing: int = 0
    known: bool = True
    low_at: Place | None = None
    high_at: Place | None = None
    missing_at: Place | None = None

    def add(self, told: Any, entries: bool, place: Place) -> None:
        """Takes in what a footer says of a row group; None where it says nothing. entries: of lists, not values."""
        if told is None:
            self.known = False
            return
        if told.has_null_count and told.null_count and not entries:  # a list without entries counts as one null
            self.missing, self.missing_at = self.missing + told.null_count, place
        if not told.has_min_max:
            self.known = self.known and told.num_values == 0
            return
        if told.min < self.low:
            self.low, self.low_at = told.min, place
        if told.max > self.high:
            self.high, self.high_at = told.max, place


@dataclass
class SplitFooters:
    """files: asked, of `of`. largest_group: rows of the largest row group among them."""

    files: int
    of: int
    columns: dict[str, Range] = field(default_factory=dict)
    largest_group: int = 0


def read_footers(log: Path, files: Sequence[LogFile], most: int | None = FILES) -> SplitFooters:
    """most: files to ask, None for all. Raises ContractError for a file that is missing or cut off."""
    chosen = evenly(files, most)
    found = SplitFooters(len(chosen), len(files))
    with ThreadPoolExecutor(THREADS) as pool:
        footers = pool.map(lambda file: _footer(log / file.path), chosen)
        for file, footer in zip(chosen, footers, strict=True):
            _add(file, footer, found)
    return found


def evenly(files: Sequence[LogFile], most: int | None) -> list[LogFile]:
    """At most so many of the files that have rows, at equal distances, the first and the last among them."""
    filled = [file for file in files if file.rows]
    if most is None or len(filled) <= most:
        return filled
    return [filled[place] for place in np.linspace(0, len(filled) - 1, most).round().astype(int)]


def _footer(path: Path) -> pq.FileMetaData:
    with readable(path, "a whole parquet file"):
        return pq.read_metadata(path)


def _add(file: LogFile, footer: pq.FileMetaData, found: SplitFooters) -> None:
    places, first_row = _places(footer), 0
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        found.largest_group = max(found.largest_group, group.num_rows)
        at = Place(file, index, first_row, group.num_rows)
        for name, place in places.items():
            told = group.column(place).statistics
            found.columns.setdefault(name, Range()).add(told, entries=name == HISTORY, place=at)
        first_row += group.num_rows


def _places(footer: pq.FileMetaData) -> Mapping[str, int]:
    """Column -> its place in the footer; a list's is that of its entries."""
    return {footer.schema.column(place).path.partition(".")[0]: place for place in range(footer.num_columns)}
