"""Whether the data is sane, as far as the manifest and the files' footers tell: no row is read."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidrec.data.rows import RowGroup, decode
from sidrec.io.parquet_files import readable
from sidrec.preflight.findings import Finding
from sidrec.preflight.planned_run import PlannedRun
from sidrec.schema import HISTORY, ITEM_ID, LABEL, LOG, ContractError, LogFile, Manifest, log_schema

LARGE = 1e6
"""A dense value from which on a linear layer hardly hears the others."""
NAMED = 5
WITHOUT_SID = 0.05
"""Share of train impressions on items without a SID that is worth a note."""
ORDER = ("train", "validation", "test")


# What files' footers tell of a split without a row being read: smallest and largest value, missing ones, times.
#
# At most `FILES` files of a split are asked, at equal distances: a log may have many thousands.


class RowGroupPlace(NamedTuple):
    """A row group: its number in the file, and that of its first row."""

    file: LogFile
    group: int
    first_row: int
    rows: int


@dataclass
class ColumnRange:
    """Of a column over all rows asked about; `known` only where every row group's footer told.

    low_at, high_at, missing_at: row groups that have the bounds, and one where something is missing.
    """

    low: float = inf
    high: float = -inf
    missing: int = 0
    known: bool = True
    low_at: RowGroupPlace | None = None
    high_at: RowGroupPlace | None = None
    missing_at: RowGroupPlace | None = None

    def add(self, told: Any, entries: bool, place: RowGroupPlace) -> None:
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
    columns: dict[str, ColumnRange] = field(default_factory=dict)
    largest_group: int = 0


Footers = Mapping[str, SplitFooters]


def footer_findings(run: PlannedRun, footers: Footers) -> list[Finding]:
    """Findings on labels, the values of columns that the model reads, and the splits' times.

    footers: split -> what its files say.
    """
    asked, there = sum(split.files for split in footers.values()), sum(split.of for split in footers.values())
    known = f"{asked} of {there} files' footers"
    log = run.columns.log
    return [_labels(footers, known), _values(run, footers, known), _dense(log, footers, known), _times(log)]


def _labels(footers: Footers, known: str) -> Finding:
    """A split that is only scored may have labels of one kind: its AUC is then null."""
    told = {name: split.columns.get(LABEL, ColumnRange(known=False)) for name, split in footers.items()}
    single = {name: label.low for name, label in told.items() if label.known and label.low == label.high}
    if single:
        found = ", ".join(f"every label of {name} is {value + 0.0:g}" for name, value in single.items())
        state: Literal["note", "problem"] = "problem" if "train" in single else "note"
        return Finding("labels", state, f"expected zeros and ones, got: {found} ({known})")
    return Finding("labels", "ok", f"zeros and ones in {', '.join(footers)} ({known})")


def _values(run: PlannedRun, footers: Footers, known: str) -> Finding:
    found = [sentence for name, split in footers.items() for sentence, _ in _broken(run.columns.log, name, split)]
    if not found:
        return Finding("values", "ok", f"ids within their tables, nothing missing ({known})")
    told = "; ".join(found[:NAMED]) + (f"; and {len(found) - NAMED} more" if len(found) > NAMED else "")
    if run.recipe.data.bad_rows == "quarantine":
        return Finding("values", "note", f"rows that quarantine will leave out: {told}")
    return Finding("values", "problem", told, "prepare the log again, or set data.bad_rows to quarantine")


def check_values(run: PlannedRun, footers: Footers) -> None:
    """Raises the ContractError that training would end in, for the first broken row of the first row group whose
    footer tells that it has one, where such rows are refused."""
    if run.recipe.data.bad_rows == "quarantine":
        return
    for name, split in footers.items():
        for sentence, place in _broken(run.columns.log, name, split):
            path = run.recipe.data.path / LOG / place.file.path
            times = place.file.first_timestamp, place.file.last_timestamp
            group = RowGroup(path, place.group, 0, place.first_row, place.rows, *times)
            with pq.ParquetFile(path) as file:
                decode(file, group, run.columns, refuse=True)
            raise ContractError(path, "a footer that is true of its rows", sentence)


def _broken(log: Manifest, name: str, split: SplitFooters) -> Iterator[tuple[str, RowGroupPlace]]:
    """What breaks the contract in a split, and a row group that has it."""
    bounds = {column: (0, rows - 1) for column, rows in log.ids.items()}
    bounds |= {HISTORY: (0, log.ids[ITEM_ID] - 1), LABEL: (0, 1)}
    for column in log_schema(log).names:
        told = split.columns.get(column, ColumnRange())
        low, high = bounds.get(column, (-np.inf, np.inf))
        where = f"{name}, column {column}"
        if told.low < low and told.low_at:
            yield f"{where}: expected {low} to {high}, got {told.low:.9g}", told.low_at
        if told.high > high and told.high_at:
            yield f"{where}: expected {low} to {high}, got {told.high:.9g}", told.high_at
        if told.missing_at:
            yield f"{where}: expected no missing value, got {told.missing:,}", told.missing_at


def _dense(manifest: Manifest, footers: Footers, known: str) -> Finding:
    """Of the train split, which a model learns from."""
    columns = footers["train"].columns
    told = {name: columns[name] for name in manifest.dense if name in columns and columns[name].known}
    constant = [f"{name} is always {found.low:g}" for name, found in told.items() if found.low == found.high]
    large = [
        f"{name} reaches {max(-found.low, found.high):.3g}"
        for name, found in told.items()
        if max(-found.low, found.high) > LARGE
    ]
    if constant or large:
        return Finding("dense columns", "note", f"{'; '.join((constant + large)[:NAMED])} ({known})")
    return Finding("dense columns", "ok", f"{len(told)}, none constant, none beyond {LARGE:g} ({known})")


def _times(manifest: Manifest) -> Finding:
    """Whether the splits follow one another, where their protocol does not say that they overlap."""
    protocol = manifest.protocol.get("split")
    kind = protocol.get("kind") if isinstance(protocol, Mapping) else None
    overlaps = list(_overlaps(manifest))
    if not overlaps:
        return Finding("splits in time", "ok", "one after the other")
    if kind == "per-user-last":
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
    """How many items have no SID; None for a model without SIDs. impressions_I: of the train split, by item id."""
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


FILES = 64
THREADS = 8


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
        at = RowGroupPlace(file, index, first_row, group.num_rows)
        for name, place in places.items():
            told = group.column(place).statistics
            found.columns.setdefault(name, ColumnRange()).add(told, entries=name == HISTORY, place=at)
        first_row += group.num_rows


def _places(footer: pq.FileMetaData) -> Mapping[str, int]:
    """Column -> its place in the footer; a list's is that of its entries."""
    return {footer.schema.column(place).path.partition(".")[0]: place for place in range(footer.num_columns)}
