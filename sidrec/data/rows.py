"""The rows of a split: which row groups its files hold, and their columns decoded and checked as numpy arrays.

Shapes: N rows, C context columns, T history positions, X dense and S statistics columns, M entries of all history
lists.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidrec.io.files import readable
from sidrec.io.parquet_places import open_parquet, read_footer
from sidrec.io.places import Place
from sidrec.schema import (
    HISTORY,
    ITEM_ID,
    LABEL,
    TIMESTAMP,
    UNKNOWN_ID,
    USER_ID,
    ContractError,
    LogFile,
    Manifest,
    check_columns,
    load_manifest,
    log_schema,
)

FOOTER_THREADS = 8  # reading footers waits for storage, not for the processor

ROW_ERRORS_KEPT = 5  # messages kept per row group; all broken rows are counted

ITEM = np.int32
"""Type of item ids; `sidrec.data.item_tables` refuses a log with more."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of a split.

    first_row: number of its first row within the split; first_row_in_file: within its file.
    earliest, latest: bounds of its rows' times in seconds since 1970, from the file's footer or the manifest.
    """

    path: Place
    group: int
    first_row: int
    first_row_in_file: int
    rows: int
    earliest: int
    latest: int


def split_index(log: Place, split: str, manifest: Manifest) -> tuple[RowGroup, ...]:
    """The row groups of a split in time order; `log` is the folder that holds manifest.json.

    Reads footers only. Checks that every file exists, is whole, has the contract's columns and the manifest's number of
    rows and first and last time, and that files and row groups follow one another in time (inside a file only where its
    footer has statistics). Files and row groups may be empty. Raises ContractError that names the file; also for a
    split without rows.
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
            _check_group_times(path, file, found, groups[-1] if groups else None)
        groups += found
    return tuple(groups)


def split_items(log: Place, split: str) -> NDArray[np.int64]:
    """The item of every row of a split: int64 [N]. `log` is the folder that holds manifest.json.

    Raises ContractError for a split that the log lacks, and a file that cannot be read.
    """
    found = [np.zeros(0, dtype=np.int64)]
    for file in load_manifest(log).files(split):
        with readable(log / file.path, "a readable parquet file"):
            found.append(open_parquet(log / file.path).read([ITEM_ID])[ITEM_ID].to_numpy())
    return np.concatenate(found)


def joint_index(log: Place, splits: Sequence[str], manifest: Manifest) -> tuple[RowGroup, ...]:
    """The row groups of several splits, read as one: rows are numbered split by split, groups are in time order.

    Raises ContractError as `split_index` does.
    """
    groups: list[RowGroup] = []
    for split in splits:
        before = sum(group.rows for group in groups)
        groups += [replace(group, first_row=before + group.first_row) for group in split_index(log, split, manifest)]
    return tuple(sorted(groups, key=lambda group: group.earliest))  # a stable sort: splits by user overlap in time


def _footer(path: Place) -> pq.FileMetaData:
    if isinstance(path, Path) and not path.is_file():
        raise ContractError(path, "a parquet file, as the manifest says", "no such file")
    with readable(path, "a whole parquet file"):
        footer = read_footer(path)
        footer.schema.to_arrow_schema()  # a readable footer may hold a broken schema
        return footer


def _groups(path: Place, file: LogFile, footer: pq.FileMetaData, first_row: int) -> list[RowGroup]:
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


def _check_group_times(path: Place, file: LogFile, groups: list[RowGroup], previous: RowGroup | None) -> None:
    found, said = (groups[0].earliest, groups[-1].latest), (file.first_timestamp, file.last_timestamp)
    if found != said:
        where = f"{path}, column {TIMESTAMP}"
        raise ContractError(
            where, f"times from {said[0]} to {said[1]}, as the manifest says", f"{found[0]} to {found[1]}"
        )
    for before, group in zip([previous, *groups], groups, strict=False):
        # Without statistics, all groups of a file have the file's own bounds: there is nothing to compare.
        same = before is not None and before.path == path and (before.earliest, before.latest) == said
        if before is not None and not same and group.earliest < before.latest:
            where = f"{path}, row group {group.group}, column {TIMESTAMP}"
            raise ContractError(where, f"times from {before.latest} on, where the rows before end", group.earliest)


def row_places(groups: Sequence[RowGroup], row_N: Iterable[int]) -> dict[Place, list[int]]:
    """Where rows of the split lie: file -> row numbers within it, ascending. row_N: row numbers within the split."""
    starts = np.array([group.first_row for group in groups])
    places: dict[Place, list[int]] = {}
    for row in sorted(row_N):
        group = groups[int(np.searchsorted(starts, row, side="right")) - 1]
        places.setdefault(group.path, []).append(row - group.first_row + group.first_row_in_file)
    return places


# The columns of a row group as arrays.


@dataclass(frozen=True)
class Columns:
    """The columns of the log that a model reads.

    log: the manifest, reduced to these columns; other columns are neither decoded nor checked. label: the target's.
    context: id columns of the context tables. history_length: T, latest history entries kept per row.
    context_rows: rows of each context table. A model that was trained on fewer ids has no row for later ones: these
    are read as 0, unknown. Empty: the tables have a row for every id.
    """

    log: Manifest
    context: tuple[str, ...]
    history_length: int
    label: str = LABEL
    context_rows: tuple[int, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Places of each context column in `Rows.context_NC`: 1, or the most ids of a list."""
        return tuple(self.log.lists[name].longest if name in self.log.lists else 1 for name in self.context)

    @property
    def id_type(self) -> type:
        """Type of the context columns' ids: half the bytes if they fit."""
        fit = all(self.log.ids[name] - 1 <= np.iinfo(np.int32).max for name in self.context)
        return np.int32 if fit else np.int64


@dataclass(frozen=True)
class Rows:
    """N rows as one array per column.

    row_N: int64 row number within the split, -1 for padding. good_N: bool, False for padding and quarantined rows,
    which are 0 in all other columns. item_N: int32. context_NC: int32 or int64 (`Columns.id_type`) ids of all context
    columns side by side; a list has the places of the longest one, 0 after its end. history_NT: int32 item ids, oldest
    first, 0 after the end.
    """

    row_N: np.ndarray
    good_N: np.ndarray
    label_N: np.ndarray
    user_N: np.ndarray
    item_N: np.ndarray
    context_NC: np.ndarray
    dense_NX: np.ndarray
    stats_NS: np.ndarray
    history_NT: np.ndarray

    def __len__(self) -> int:
        return len(self.row_N)

    @classmethod
    def empty(cls, rows: int, columns: Columns) -> "Rows":
        """Rows to be filled by `put` and `pad`."""
        return cls(
            row_N=np.empty(rows, np.int64),
            good_N=np.empty(rows, dtype=bool),
            label_N=np.empty(rows, np.float32),
            user_N=np.empty(rows, np.int64),
            item_N=np.empty(rows, ITEM),
            context_NC=np.empty((rows, sum(columns.widths)), columns.id_type),
            dense_NX=np.empty((rows, len(columns.log.dense)), np.float32),
            stats_NS=np.empty((rows, len(columns.log.stats)), np.float32),
            history_NT=np.empty((rows, columns.history_length), ITEM),
        )

    def cut(self, start: int, stop: int) -> "Rows":
        """A view of the rows [start, stop)."""
        return Rows(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def copy(self, rows: "Rows") -> None:
        """Copies as many `rows` over these."""
        for f in fields(self):
            getattr(self, f.name)[:] = getattr(rows, f.name)

    def put(self, first: int, part: "Rows", index_M: np.ndarray) -> None:
        """Copies rows `index_M` of `part` into the places from `first` on."""
        for f in fields(self):
            places = getattr(self, f.name)[first : first + len(index_M)]
            getattr(part, f.name).take(index_M, axis=0, out=places, mode="clip")  # other modes copy twice

    def pad(self, first: int) -> None:
        """Makes the places from `first` on padding: rows of weight 0, with row number -1."""
        for f in fields(self):
            getattr(self, f.name)[first:] = -1 if f.name == "row_N" else 0


def decode(file: pq.ParquetFile, group: RowGroup, columns: Columns, *, refuse: bool) -> tuple[Rows, list[str]]:
    """Reads and checks one row group.

    Returns its rows, and a message for each of the first few broken ones.
    Raises ContractError for a group that cannot be read or is not sorted by time. A row that breaks the contract raises
    ContractError with `refuse`; otherwise it is quarantined (`good_N` is False).
    """
    where = f"{group.path}, row group {group.group}"
    try:
        table = file.read_row_group(group.group, columns=log_schema(columns.log).names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ContractError(where, "readable column data", " ".join(str(error).split())) from None
    if len(table) != group.rows:
        raise ContractError(where, f"{group.rows} rows, as when the split was opened", len(table))
    table = table.combine_chunks()
    rules = broken_rows(table, columns.log)
    row_errors = _row_errors(table, group, rules)
    if refuse and row_errors:
        raise row_errors[0]
    bad_N = np.logical_or.reduce(list(rules.values())) if rules else np.zeros(len(table), dtype=bool)
    _check_times(table, group, where)
    return _rows(table, group, columns, bad_N), [str(row_error) for row_error in row_errors]


def _row_errors(table: pa.Table, group: RowGroup, rules: dict[str, np.ndarray]) -> list[ContractError]:
    """An error for each of the first few broken rows."""
    if not rules:
        return []
    broken_RN = np.stack(list(rules.values()))
    row_errors = []
    for row in islice(np.flatnonzero(broken_RN.any(axis=0)).tolist(), ROW_ERRORS_KEPT):
        place, expected = list(rules)[int(broken_RN[:, row].argmax())].split(", expected ", 1)
        where = f"{group.path}, row group {group.group}, row {group.first_row_in_file + row} of the file, {place}"
        got = table[place.removeprefix("column ")][row].as_py()
        row_errors.append(ContractError(where, expected, "a missing value" if got is None else got))
    return row_errors


def _check_times(table: pa.Table, group: RowGroup, where: str) -> None:
    times = table[TIMESTAMP].drop_null().to_numpy()
    check_time_order(times, where, after=group.earliest)
    if len(times) and times[-1] > group.latest:
        raise ContractError(f"{where}, column {TIMESTAMP}", f"times up to {group.latest}", times[-1])


def _rows(table: pa.Table, group: RowGroup, columns: Columns, bad_N: np.ndarray) -> Rows:
    log = columns.log
    rows = Rows(
        row_N=np.arange(group.first_row, group.first_row + group.rows),
        good_N=~bad_N,
        label_N=_column(table, columns.label),
        user_N=_column(table, USER_ID),
        item_N=_column(table, ITEM_ID).astype(ITEM),
        context_NC=_with_row(_context(table, columns), columns),
        dense_NX=_matrix(table, log.dense, np.float32),
        stats_NS=_matrix(table, log.stats, np.float32),
        history_NT=_lists(table, HISTORY, columns.history_length, ITEM, latest=True),
    )
    if not bad_N.any():
        return rows
    zeroed = {
        f.name: np.where(bad_N.reshape(-1, *[1] * (getattr(rows, f.name).ndim - 1)), 0, getattr(rows, f.name))
        for f in fields(Rows)
        if f.name not in ("row_N", "good_N")
    }
    return replace(rows, **{name: values.astype(getattr(rows, name).dtype) for name, values in zeroed.items()})


def _column(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    return np.asarray((column.fill_null(0) if column.null_count else column).to_numpy())


def _matrix(table: pa.Table, names: tuple[str, ...], dtype: type) -> np.ndarray:
    matrix: np.ndarray = np.empty((len(table), len(names)), dtype)
    for index, name in enumerate(names):
        matrix[:, index] = _column(table, name)
    return matrix


def _with_row(context_NC: np.ndarray, columns: Columns) -> np.ndarray:
    """The ids, 0 for those without a row."""
    if not columns.context_rows:
        return context_NC
    has_row_NC = context_NC < np.repeat(columns.context_rows, columns.widths)
    return np.where(has_row_NC, context_NC, context_NC.dtype.type(UNKNOWN_ID))


def _context(table: pa.Table, columns: Columns) -> np.ndarray:
    if not columns.log.lists:
        return _matrix(table, columns.context, columns.id_type)
    parts = [
        _lists(table, name, width, columns.id_type, latest=False)
        if name in columns.log.lists
        else _column(table, name)[:, None].astype(columns.id_type)
        for name, width in zip(columns.context, columns.widths, strict=True)
    ]
    return np.concatenate(parts, axis=1)


def _lists(table: pa.Table, column: str, length: int, dtype: type, *, latest: bool) -> np.ndarray:
    """The first or the latest `length` entries of every list, in order, 0 after the end: [N, length]."""
    lists = table[column].combine_chunks()
    values_M = lists.values.fill_null(0).to_numpy() if lists.values.null_count else lists.values.to_numpy()
    offsets = lists.offsets.to_numpy()
    start_N, length_N = offsets[:-1], np.diff(offsets)
    if lists.null_count:
        length_N[lists.is_null().to_numpy(zero_copy_only=False)] = 0
    kept_N = np.minimum(length_N, length)
    if kept_N.sum() == offsets[-1] - offsets[0]:
        kept_M = values_M[offsets[0] : offsets[-1]]
    else:
        first_N = start_N + length_N - kept_N if latest else start_N
        before_N = np.cumsum(kept_N) - kept_N
        kept_M = values_M[np.repeat(first_N - before_N, kept_N) + np.arange(kept_N.sum())]
    ids_NT: np.ndarray = np.zeros((len(table), length), dtype)
    ids_NT[np.arange(length, dtype=kept_N.dtype) < kept_N[:, None]] = kept_M
    return ids_NT


# The contract's rules for values.


def broken_rows(table: pa.Table, manifest: Manifest) -> dict[str, np.ndarray]:
    """Finds the rows that break the contract's rules for values, beyond the columns' types.

    Returns: rule -> bool mask [N], for rules that some row breaks. A rule reads "column NAME, expected RULE".
    """
    rules: dict[str, np.ndarray] = {}

    def add(column: str, expectation: str, bad: np.ndarray | None) -> None:
        if bad is not None and bad.any():
            rules[f"column {column}, expected {expectation}"] = bad

    for column in log_schema(manifest).names:
        if table[column].null_count:
            add(column, "no missing value", np.asarray(table[column].is_null().to_numpy(), dtype=bool))
    for column in (LABEL, *manifest.labels):
        label = _numpy(table, column)
        add(column, "0 or 1", ~((label == 0) | (label == 1)))
    for column in manifest.dense:
        add(column, "finite values", ~np.isfinite(_numpy(table, column)))
    for column in manifest.stats:
        values = _numpy(table, column)
        add(column, "finite counts of at least 0", ~(np.isfinite(values) & (values >= 0)))
    for column, rows in manifest.ids.items():
        if column in manifest.lists:
            longest = manifest.lists[column].longest
            add(column, f"ids in [0, {rows})", _rows_with_bad_ids(table, column, rows))
            add(column, f"at most {longest} ids", _lengths(table, column) > longest)
            continue
        add(column, f"ids in [0, {rows})", _bad_ids(_numpy(table, column), rows))
    items = manifest.ids[ITEM_ID]
    add(HISTORY, f"item ids in [0, {items})", _rows_with_bad_ids(table, HISTORY, items))
    return rules


def _bad_ids(ids: np.ndarray, rows: int) -> np.ndarray | None:
    """Which ids are not in [0, rows); None if all are, which two reductions find faster than a mask."""
    if not len(ids) or (ids.min() >= 0 and ids.max() < rows):
        return None
    return (ids < 0) | (ids >= rows)


def _lengths(table: pa.Table, column: str) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.list_value_length(table[column]), 0).to_numpy())


def _rows_with_bad_ids(table: pa.Table, column: str, rows: int) -> np.ndarray | None:
    lists = table[column].combine_chunks()
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    if values.dtype != np.int64:  # a null inside a list turns the values into floats
        values = np.where(np.isnan(values), -1, values)
    bad_M = _bad_ids(values, rows)
    if bad_M is None:
        return None
    bad = np.zeros(table.num_rows, dtype=bool)
    bad[pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)[bad_M]] = True
    return bad


def _numpy(table: pa.Table, column: str) -> np.ndarray:
    values = table[column].to_numpy()
    if values.dtype.kind == "f" and table.schema.field(column).type == pa.int64():
        values = np.nan_to_num(values, nan=-1)
    return np.asarray(values)


def check_time_order(timestamps: np.ndarray, where: object, after: float = -math.inf) -> None:
    """Raises ContractError for the first timestamp that is earlier than the one before it, or than `after`."""
    if len(timestamps) and timestamps[0] < after:
        raise ContractError(f"{where}, column {TIMESTAMP}", f"times from {after:.0f} on", int(timestamps[0]))
    back = np.flatnonzero(np.diff(timestamps) < 0)
    if len(back):
        row = int(back[0]) + 1
        got = f"{timestamps[row]} after {timestamps[row - 1]} at row {row}"
        raise ContractError(f"{where}, column {TIMESTAMP}", "rows sorted by time", got)
