"""Checks of the data that read the manifest and the Parquet footers only, no rows.

Shapes: I item ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidrec.data.rows import RowGroup, decode
from sidrec.io.files import readable
from sidrec.io.parquet_places import open_parquet, read_footer
from sidrec.io.places import Place
from sidrec.preflight import Finding
from sidrec.preflight.resource_estimate import PlannedRun
from sidrec.schema import HISTORY, ITEM_ID, LABEL, LOG, RANDOM, ContractError, LogFile, Manifest, log_schema

LARGE = 1e6
"""Larger dense values dominate a linear layer's input."""
LISTED = 5
"""Faults that a finding lists."""
WITHOUT_SID = 0.05
"""A larger share of train impressions on items without a SID is a note."""
ORDER = ("train", "validation", "test")
FILES = 64
"""Files of a split whose footers are read, at equal distances: a log may have many thousands."""
THREADS = 8


class RowGroupPlace(NamedTuple):
    """A row group. group: its number in the file. first_row: the number of its first row in the file."""

    file: LogFile
    group: int
    first_row: int
    rows: int


@dataclass
class ColumnRange:
    """Smallest and largest value of a column, and its number of missing values, from the footers that were read.

    known: False if a row group has no statistics. low_at, high_at: row groups with the smallest and the largest value.
    missing_at: a row group with a missing value.
    """

    low: float = inf
    high: float = -inf
    missing: int = 0
    known: bool = True
    low_at: RowGroupPlace | None = None
    high_at: RowGroupPlace | None = None
    missing_at: RowGroupPlace | None = None

    def add(self, statistics: Any, entries: bool, place: RowGroupPlace) -> None:
        """Adds the Parquet statistics of a row group, or None. entries: they describe the entries of lists."""
        if statistics is None:
            self.known = False
            return
        if statistics.has_null_count and statistics.null_count and not entries:  # an empty list counts as one null
            self.missing, self.missing_at = self.missing + statistics.null_count, place
        if not statistics.has_min_max:
            self.known = self.known and statistics.num_values == 0
            return
        if statistics.min < self.low:
            self.low, self.low_at = statistics.min, place
        if statistics.max > self.high:
            self.high, self.high_at = statistics.max, place


@dataclass
class SplitFooters:
    """Footers of `files` of the `of` files of a split. largest_group: rows of the largest row group among them."""

    files: int
    of: int
    columns: dict[str, ColumnRange] = field(default_factory=dict)
    largest_group: int = 0


Footers = Mapping[str, SplitFooters]


def read_footers(log: Place, files: Sequence[LogFile], most: int | None = FILES) -> SplitFooters:
    """Reads the footers of at most `most` files, None for all. Raises ContractError for missing or truncated files."""
    chosen = evenly(files, most)
    found = SplitFooters(len(chosen), len(files))
    with ThreadPoolExecutor(THREADS) as pool:
        footers = pool.map(lambda file: _footer(log / file.path), chosen)
        for file, footer in zip(chosen, footers, strict=True):
            _add(file, footer, found)
    return found


def evenly(files: Sequence[LogFile], most: int | None) -> list[LogFile]:
    """At most `most` of the files that have rows, at equal distances, including the first and the last."""
    filled = [file for file in files if file.rows]
    if most is None or len(filled) <= most:
        return filled
    return [filled[place] for place in np.linspace(0, len(filled) - 1, most).round().astype(int)]


def _footer(path: Place) -> pq.FileMetaData:
    with readable(path, "a whole parquet file"):
        return read_footer(path)


def _add(file: LogFile, footer: pq.FileMetaData, found: SplitFooters) -> None:
    places, first_row = _places(footer), 0
    lists = {name for name, place in places.items() if "." in footer.schema.column(place).path}
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        found.largest_group = max(found.largest_group, group.num_rows)
        at = RowGroupPlace(file, index, first_row, group.num_rows)
        for name, place in places.items():
            statistics = group.column(place).statistics
            found.columns.setdefault(name, ColumnRange()).add(statistics, entries=name in lists, place=at)
        first_row += group.num_rows


def _places(footer: pq.FileMetaData) -> Mapping[str, int]:
    """Column -> its index in the footer; for a list column, the index of its entries."""
    return {footer.schema.column(place).path.partition(".")[0]: place for place in range(footer.num_columns)}


def check_values(run: PlannedRun, footers: Footers) -> None:
    """Raises the ContractError that training would raise, for the first broken row that the footers reveal.

    Does nothing if the recipe quarantines broken rows.
    """
    if run.recipe.data.bad_rows == "quarantine":
        return
    for name, split in footers.items():
        for fault, place in _faults(run.columns.log, name, split):
            path = run.recipe.data.path / LOG / place.file.path
            times = place.file.first_timestamp, place.file.last_timestamp
            group = RowGroup(path, place.group, 0, place.first_row, place.rows, *times)
            with open_parquet(path) as file:
                decode(file, group, run.columns, refuse=True)
            raise ContractError(path, "a footer that is true of its rows", fault)


def footer_findings(run: PlannedRun, footers: Footers) -> list[Finding]:
    """Findings on labels, ids, missing values, dense columns and the splits' times. footers: by split."""
    asked, there = sum(split.files for split in footers.values()), sum(split.of for split in footers.values())
    known = f"{asked} of {there} files' footers"
    log = run.columns.log
    return [
        _labels(run.columns.label, run.recipe.data.train_on, footers, known),
        _values(run, footers, known),
        _dense(log, run.recipe.data.train_on[0], footers, known),
        _times(log),
    ]


def _labels(column: str, trained: Sequence[str], footers: Footers, known: str) -> Finding:
    """Equal labels are a problem where rows are trained on; in an evaluated split they make AUC null."""
    labels = {name: split.columns.get(column, ColumnRange(known=False)) for name, split in footers.items()}
    single = {name: label.low for name, label in labels.items() if label.known and label.low == label.high}
    if single:
        found = ", ".join(f"every label of {name} is {value + 0.0:g}" for name, value in single.items())
        state: Literal["note", "problem"] = "problem" if set(trained) & set(single) else "note"
        return Finding("labels", state, f"expected zeros and ones, got: {found} ({known})")
    return Finding("labels", "ok", f"zeros and ones in {', '.join(footers)} ({known})")


def _values(run: PlannedRun, footers: Footers, known: str) -> Finding:
    found = [fault for name, split in footers.items() for fault, _ in _faults(run.columns.log, name, split)]
    if not found:
        return Finding("values", "ok", f"ids within their tables, nothing missing ({known})")
    message = "; ".join(found[:LISTED]) + (f"; and {len(found) - LISTED} more" if len(found) > LISTED else "")
    if run.recipe.data.bad_rows == "quarantine":
        return Finding("values", "note", f"rows that quarantine will leave out: {message}")
    return Finding("values", "problem", message, "prepare the log again, or set data.bad_rows to quarantine")


def _faults(log: Manifest, name: str, split: SplitFooters) -> Iterator[tuple[str, RowGroupPlace]]:
    """Violations of the contract in a split, each with a row group that has one."""
    bounds = {column: (0, rows - 1) for column, rows in log.ids.items()}
    bounds |= {HISTORY: (0, log.ids[ITEM_ID] - 1), **dict.fromkeys((LABEL, *log.labels), (0, 1))}
    for column in log_schema(log).names:
        found = split.columns.get(column, ColumnRange())
        low, high = bounds.get(column, (-np.inf, np.inf))
        where = f"{name}, column {column}"
        if found.low < low and found.low_at:
            yield f"{where}: expected {low} to {high}, got {found.low:.9g}", found.low_at
        if found.high > high and found.high_at:
            yield f"{where}: expected {low} to {high}, got {found.high:.9g}", found.high_at
        if found.missing_at:
            yield f"{where}: expected no missing value, got {found.missing:,}", found.missing_at


def _dense(manifest: Manifest, split: str, footers: Footers, known: str) -> Finding:
    """Constant and very large dense columns of a split."""
    columns = footers[split].columns
    ranges = {name: columns[name] for name in manifest.dense if name in columns and columns[name].known}
    constant = [f"{name} is always {found.low + 0.0:g}" for name, found in ranges.items() if found.low == found.high]
    large = [
        f"{name} reaches {max(-found.low, found.high):.3g}"
        for name, found in ranges.items()
        if max(-found.low, found.high) > LARGE
    ]
    if constant or large:
        return Finding("dense columns", "note", f"{'; '.join((constant + large)[:LISTED])} ({known})")
    return Finding("dense columns", "ok", f"{len(ranges)}, none constant, none beyond {LARGE:g} ({known})")


def _times(manifest: Manifest) -> Finding:
    """Whether the splits follow each other in time; splits by user overlap by design."""
    protocol = manifest.protocol.get("split")
    kind = protocol.get("kind") if isinstance(protocol, Mapping) else None
    if kind == RANDOM:
        return Finding("splits in time", "note", "drawn row by row, as the manifest's protocol says")
    overlaps = list(_overlaps(manifest))
    if not overlaps:
        return Finding("splits in time", "ok", "one after the other")
    if kind in ("per-user-last", "last"):
        return Finding("splits in time", "ok", "overlap, as the manifest's protocol says: each user's last events")
    if kind is None:
        return Finding("splits in time", "note", f"{'; '.join(overlaps)}: training sees what is later than a test row")
    return Finding("splits in time", "problem", f"expected {kind} cuts in time, got: {'; '.join(overlaps)}")


def _overlaps(manifest: Manifest) -> Iterator[str]:
    times = {
        split: (min(file.first_timestamp for file in files), max(file.last_timestamp for file in files))
        for split in ORDER
        if (files := [file for file in manifest.splits.get(split, ()) if file.rows])
    }
    for earlier, later in zip(times, list(times)[1:], strict=False):
        if times[later][0] < times[earlier][1]:
            yield f"{later} begins at {times[later][0]}, {earlier} ends at {times[earlier][1]}"


def semantic_id_finding(run: PlannedRun, impressions_I: NDArray[np.int64]) -> Finding | None:
    """Share of items and of rows without a SID; None for a model without SIDs. impressions_I: of the train split."""
    if not run.sizes.sid_features:
        return None
    without_I = np.logical_and.reduce([run.tables.rows_of(feature) == 0 for feature in run.sizes.sid_features])
    shown_I = impressions_I > 0
    items = float((without_I & shown_I).sum() / max(1, shown_I.sum()))
    rows = float(impressions_I[without_I].sum() / max(1, impressions_I.sum()))
    found = f"{items:.1%} of the items that training shows have none, {rows:.1%} of its rows are on these"
    if rows == 1.0:
        return Finding("semantic ids", "problem", found, "sidrec fit RECIPE, on this data folder")
    return Finding("semantic ids", "note" if rows > WITHOUT_SID else "ok", found)
