"""The row groups of a split, from the files' footers: everything that can be checked before a row is read."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sidrec.io.parquet_files import readable
from sidrec.schema import TIMESTAMP, ContractError, LogFile, Manifest, check_columns

FOOTER_THREADS = 8  # footers are small and far apart: reading them waits on storage, not on the processor


@dataclass(frozen=True)
class RowGroup:
    """One row group of a split.

    first_row: number of its first row within the split; first_row_in_file: within its file.
    earliest, latest: times (seconds since 1970) between which its rows must lie, as file footer or manifest say.
    """

    path: Path
    group: int
    first_row: int
    first_row_in_file: int
    rows: int
    earliest: int
    latest: int


def split_index(log: Path, split: str, manifest: Manifest) -> tuple[RowGroup, ...]:
    """The row groups of a split in time order; `log` is the folder that holds manifest.json.

    Checks every file: it exists, is whole, has the contract's columns and as many rows and the times the manifest says
    (times inside a file as far as its footer has statistics), and files and row groups follow one another in time.
    Files and row groups may be empty. Raises ContractError naming the file, and for a split without rows.
    """
    files = manifest.files(split)
    if not sum(file.rows for file in files):
        raise ContractError(f"{log}, split {split}", "at least one row", "none")
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda file: _footer(log / file.path), files))
    groups: list[RowGroup] = []
    for file, footer in zip(files, footers, strict=True):
        path = log / file.path
        check_columns(footer.schema.to_arrow_schema(), manifest, path)
        if footer.num_rows != file.rows:
            raise ContractError(path, f"{file.rows} rows, as the manifest says", footer.num_rows)
        found = _groups(path, file, footer, groups[-1].first_row + groups[-1].rows if groups else 0)
        if sum(group.rows for group in found) != file.rows:
            raise ContractError(path, f"row groups of {file.rows} rows", sum(group.rows for group in found))
        if found:
            _check_times(path, file, found, groups[-1] if groups else None)
        groups += found
    return tuple(groups)


def _footer(path: Path) -> pq.FileMetaData:
    if not path.is_file():
        raise ContractError(path, "a parquet file, as the manifest says", "no such file")
    with readable(path, "a whole parquet file"):
        footer = pq.read_metadata(path)
        footer.schema.to_arrow_schema()  # may be broken in a footer that is not
        return footer


def _groups(path: Path, file: LogFile, footer: pq.FileMetaData, first_row: int) -> list[RowGroup]:
    groups: list[RowGroup] = []
    column = [footer.schema.column(index).path for index in range(footer.num_columns)].index(TIMESTAMP)
    before = 0
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        times = group.column(column).statistics
        earliest, latest = (
            (times.min, times.max) if times and times.has_min_max else (file.first_timestamp, file.last_timestamp)
        )
        groups.append(RowGroup(path, index, first_row + before, before, group.num_rows, earliest, latest))
        before += group.num_rows
    return [group for group in groups if group.rows]


def _check_times(path: Path, file: LogFile, groups: list[RowGroup], previous: RowGroup | None) -> None:
    found, said = (groups[0].earliest, groups[-1].latest), (file.first_timestamp, file.last_timestamp)
    if found != said:
        where = f"{path}, column {TIMESTAMP}"
        raise ContractError(
            where, f"times from {said[0]} to {said[1]}, as the manifest says", f"{found[0]} to {found[1]}"
        )
    for before, group in zip([previous, *groups], groups, strict=False):
        # Equal bounds without statistics are the file's own: nothing to compare inside that file.
        same = before is not None and before.path == path and (before.earliest, before.latest) == said
        if before is not None and not same and group.earliest < before.latest:
            where = f"{path}, row group {group.group}, column {TIMESTAMP}"
            raise ContractError(where, f"times from {before.latest} on, where the rows before end", group.earliest)


# Where rows of a split lie: the files that they were read from.
#
# Shapes: N rows.


def row_places(groups: Sequence[RowGroup], row_N: Iterable[int]) -> dict[Path, list[int]]:
    """File -> the rows' numbers within it, ascending. row_N: numbers within the split, each at least 0."""
    starts = np.array([group.first_row for group in groups])
    places: dict[Path, list[int]] = {}
    for row in sorted(row_N):
        group = groups[int(np.searchsorted(starts, row, side="right")) - 1]
        places.setdefault(group.path, []).append(row - group.first_row + group.first_row_in_file)
    return places
