"""Days for a study that goes day by day: later rows of data folders, one folder with log/ and items.parquet a day.

A day's rows are its split `train`, which models of the day before score before it is trained on. Rows stay as they were
prepared: histories and statistics are as of each row's own time. Nothing is read of a day before its turn, but the
source folder's ids, which number users and items only.

Shapes: N rows, H history items, I item ids.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidrec.config import ConfigError
from sidrec.data.rows import RowGroup, split_index
from sidrec.io.files import readable, replaced_file
from sidrec.schema import (
    HISTORY,
    IDS,
    ITEM_ID,
    ITEMS,
    LABEL,
    LOG,
    MANIFEST,
    PAIRS,
    TIMESTAMP,
    USER_ID,
    ContractError,
    LogFile,
    Manifest,
    load_manifest,
    save_manifest,
)

SPLIT = "train"  # the only split of a day
ITEM_ROWS = 16_384  # items in memory at a time
ROWS_FILE = Path(SPLIT) / "part-0.parquet"
SAMPLED = "negatives"
"""Key of a manifest's protocol: how negatives were sampled. Without it, every row was shown."""
NEVER = np.iinfo(np.int64).max
ALWAYS = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Day:
    """Rows of the data folder `source` with first <= timestamp <= last, in seconds since 1970; `number` from 1."""

    number: int
    source: Path
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"day{self.number:02d}"

    def __str__(self) -> str:
        begin, end = (f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d}" for time in (self.first, self.last))
        return f"{self.name} ({begin})" if begin == end else f"{self.name} ({begin} to {end})"


@dataclass(frozen=True)
class DayFacts:
    """What a day holds. shown: whether every row was shown to its user, instead of some negatives being sampled."""

    name: str
    begin: str
    end: str
    rows: int
    positives: int
    users: int
    items: int
    shown: bool


# Which rows belong to which day.


def find_days(logs: Sequence[Path], after: int, count: int | None) -> list[Day]:
    """The days after the time `after`, at which the past ends: one per folder, or one folder cut into `count` of them.

    Raises ConfigError for fewer than two days, ContractError for a folder or day without later rows.
    """
    if count is not None and len(logs) > 1:
        raise ConfigError(f"--days: expected one --log to cut into days, got {len(logs)}, each of which is a day")
    if count is None and len(logs) == 1:
        raise ConfigError(
            "--log: expected at least two days, to train on one and score the next, got one folder; give one --log per "
            "day, or --days N to cut the folder in time"
        )
    if count is not None and count < 2:
        raise ConfigError(f"--days: expected at least 2, to train on one and score the next, got {count}")
    if count is not None:
        return _cut(logs[0], after, count)
    days, end = [], after
    for number, log in enumerate(logs, start=1):
        last = _last_time(log)
        if last <= end:
            expected = f"rows later than those before, which end at {_utc(end)}"
            raise ContractError(log, expected, f"none: its last row is of {_utc(last)}; give --log in order of time")
        days.append(Day(number, log, end + 1, last))
        end = last
    return days


def _cut(log: Path, after: int, count: int) -> list[Day]:
    last = _last_time(log)
    first = min((_first_later(times, after) for times in _times(log)), default=NEVER)
    if first == NEVER:
        expected = f"rows later than the run's train rows, which end at {_utc(after)}"
        raise ContractError(log, expected, f"none: its last row is of {_utc(last)}")
    bounds = np.linspace(first, last + 1, count + 1).round().astype(np.int64)
    days = [Day(number, log, int(bounds[number - 1]), int(bounds[number]) - 1) for number in range(1, count + 1)]
    rows = [0] * count
    for time_N in _times(log):
        for place, day in enumerate(days):
            rows[place] += int(((time_N >= day.first) & (time_N <= day.last)).sum())
    if 0 in rows:
        empty = days[rows.index(0)]
        raise ContractError(log, f"rows in each of {count} days", f"none in {empty}, {rows} in all; give fewer --days")
    return days


def _first_later(time_N: NDArray[np.int64], after: int) -> int:
    later_N = time_N[time_N > after]
    return int(later_N.min()) if len(later_N) else NEVER


def end_of_splits(data: Path, splits: Iterable[str]) -> int:
    """The last timestamp of these splits. Raises ContractError."""
    manifest = load_manifest(data / LOG)
    return max(file.last_timestamp for split in splits for file in manifest.files(split) if file.rows)


def _last_time(data: Path) -> int:
    manifest = load_manifest(data / LOG)
    return max((file.last_timestamp for files in manifest.splits.values() for file in files if file.rows), default=0)


def _utc(time: int) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _groups(data: Path) -> list[RowGroup]:
    """All row groups of a folder's splits, in time order."""
    manifest = load_manifest(data / LOG)
    groups = [group for split in manifest.splits if manifest.rows(split) for group in _of_split(data, split, manifest)]
    return sorted(groups, key=lambda group: (group.earliest, group.latest))


def _of_split(data: Path, split: str, manifest: Manifest) -> tuple[RowGroup, ...]:
    return split_index(data / LOG, split, manifest)


def _read(group: RowGroup, columns: list[str] | None = None) -> pa.Table:
    with readable(group.path, "readable column data"), pq.ParquetFile(group.path) as file:
        return file.read_row_group(group.group, columns=columns)


def _times(data: Path) -> Iterator[NDArray[np.int64]]:
    for group in _groups(data):
        yield _read(group, [TIMESTAMP])[TIMESTAMP].to_numpy()


# A folder per day.


def write_day(day: Day, folder: Path, seen: "FirstSeen") -> DayFacts:
    """Writes the data folder of a day, unless it is there, and adds its rows to `seen`.

    Its items.parquet lists the items that were seen before the day ends. Raises ContractError if splits of the source
    overlap in time.
    """
    manifest = load_manifest(day.source / LOG)
    facts = folder / "facts.json"
    if not facts.is_file():
        target = folder / LOG / ROWS_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        counts = _Counts()
        with replaced_file(target, one_writer=True) as partial:
            _write_rows(day, partial, counts)
        file = LogFile.of(folder / LOG, ROWS_FILE, counts.rows, counts.first, counts.last)
        protocol = {**manifest.protocol, "day": {"source": str(day.source), "first": day.first, "last": day.last}}
        save_manifest(replace(manifest, splits={SPLIT: (file,)}, protocol=protocol), folder / LOG)
        if (day.source / IDS).exists() and not (folder / IDS).exists():
            (folder / IDS).symlink_to((day.source / IDS).resolve())
        found = counts.facts(day.name, SAMPLED not in manifest.protocol)
        seen.add(folder, day.last + 1)
        write_items(day.source, folder, seen.times_I <= day.last)
        with replaced_file(facts, one_writer=True) as partial:
            partial.write_text(json.dumps(found.__dict__), encoding="utf-8")
        return found
    seen.add(folder, day.last + 1)
    return DayFacts(**json.loads(facts.read_text(encoding="utf-8")))


@dataclass
class _Counts:
    rows: int = 0
    positives: int = 0
    first: int = NEVER
    last: int = ALWAYS

    def __post_init__(self) -> None:
        self.users: set[int] = set()
        self.items: set[int] = set()

    def add(self, rows: pa.Table, where: Path) -> None:
        time_N = rows[TIMESTAMP].to_numpy()
        if time_N[0] < self.last or (np.diff(time_N) < 0).any():
            expected = "splits and rows that follow one another in time"
            raise ContractError(where, expected, "some that overlap; prepare the log with cuts in time")
        self.rows += len(time_N)
        self.positives += int((rows[LABEL].to_numpy() > 0).sum())
        self.first, self.last = min(self.first, int(time_N[0])), int(time_N[-1])
        self.users.update(np.unique(rows[USER_ID].to_numpy()).tolist())
        self.items.update(np.unique(rows[ITEM_ID].to_numpy()).tolist())

    def facts(self, name: str, shown: bool) -> DayFacts:
        begin, end = (f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d}" for time in (self.first, self.last))
        return DayFacts(name, begin, end, self.rows, self.positives, len(self.users), len(self.items), shown)


def _write_rows(day: Day, partial: Path, counts: _Counts) -> None:
    writer = None
    try:
        for group in _groups(day.source):
            if group.latest < day.first or group.earliest > day.last:
                continue
            rows = _read(group)
            time = rows[TIMESTAMP]
            rows = rows.filter(pc.and_(pc.greater_equal(time, day.first), pc.less_equal(time, day.last)))
            if not len(rows):
                continue
            counts.add(rows, day.source / LOG / MANIFEST)
            writer = writer or pq.ParquetWriter(partial, rows.schema, compression="zstd")
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ContractError(day.source, f"rows of {day}", "none")


def write_items(data: Path, folder: Path, kept_I: NDArray[np.bool_]) -> None:
    """items.parquet of a data folder with the items whose id is kept. Raises ContractError if there is none."""
    kept = 0
    with readable(data / ITEMS), replaced_file(folder / ITEMS, one_writer=True) as partial:
        file = pq.ParquetFile(data / ITEMS)
        with pq.ParquetWriter(partial, file.schema_arrow, compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=ITEM_ROWS):
                item_N = batch[ITEM_ID].to_numpy()
                kept_N = (item_N < len(kept_I)) & kept_I[np.minimum(item_N, len(kept_I) - 1)]
                writer.write_batch(batch.filter(pa.array(kept_N)))
                kept += int(kept_N.sum())
    if not kept:
        raise ContractError(data / ITEMS, "items of the log", "none that it shows")


# When items were first seen.


class FirstSeen:
    """Item id -> time of its first row, as a target or in a history; `add` must be called day after day.

    times_I: int64 by item id, NEVER for items not seen yet, ALWAYS for those seen at an unknown time before.
    """

    def __init__(self, items: int) -> None:
        self.times_I: NDArray[np.int64] = np.full(items, NEVER, dtype=np.int64)

    def _grow(self, items: int) -> None:
        if items > len(self.times_I):
            more_I = np.full(items - len(self.times_I), NEVER, dtype=np.int64)
            self.times_I = np.concatenate([self.times_I, more_I])

    def add(self, data: Path, before: int) -> None:
        """The rows of a folder that are earlier than the time `before`."""
        self._grow(load_manifest(data / LOG).ids[ITEM_ID])
        for group in _groups(data):
            if group.earliest < before:
                rows = _read(group, [TIMESTAMP, ITEM_ID, HISTORY])
                rows = rows.filter(pc.less(rows[TIMESTAMP], before)).combine_chunks()
                self._add(rows[TIMESTAMP].to_numpy(), rows[ITEM_ID].to_numpy(), rows[HISTORY])

    def _add(self, time_N: NDArray[np.int64], item_N: NDArray[np.int64], history: pa.ChunkedArray) -> None:
        np.minimum.at(self.times_I, item_N, time_N)
        item_H = pc.list_flatten(history).to_numpy()
        row_H = pc.list_parent_indices(history).to_numpy()
        np.minimum.at(self.times_I, item_H, time_N[row_H] - 1)  # a history is of events before its row

    def know(self, seen_I: NDArray[np.bool_]) -> None:
        """Items that are known to have been seen, as a model was trained on them."""
        self._grow(len(seen_I))
        self.times_I[: len(seen_I)][seen_I & (self.times_I[: len(seen_I)] == NEVER)] = ALWAYS


AGES = ("new today", "1 day", "2-7 days", "older")


def item_ages(times_I: NDArray[np.int64], begin: int, length: float) -> NDArray[np.int8]:
    """Index in AGES of each item at the begin of a day: days since it was first seen, rounded up.

    times_I: when it was first seen. length: seconds of a day. New today: not seen before the day begins.
    """
    days_I = np.ceil((float(begin) - times_I.astype(np.float64)) / length)
    age_I = np.digitize(days_I, [1.0, 2.0, 8.0]).astype(np.int8)
    age_I[times_I >= begin] = 0
    return age_I


def day_length(days: Sequence[Day]) -> float:
    """Median seconds of a day."""
    return float(np.median([day.last + 1 - day.first for day in days]))


def write_past(data: Path, folder: Path, seen_I: NDArray[np.bool_]) -> None:
    """A folder with the items that were seen in the past, for fitting a catalog: items.parquet, and pairs."""
    if not (folder / ITEMS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if (data / PAIRS).exists() and not (folder / PAIRS).exists():
            (folder / PAIRS).symlink_to((data / PAIRS).resolve())
        write_items(data, folder, seen_I)
