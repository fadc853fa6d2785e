"""Time order: sorting a log by time, and windows of preceding days.

`order_events` sorts in bounded memory. It maps ids to dense ids, writes the events to one file in the source's order,
then distributes them over buckets. A bucket holds consecutive whole days and at most `partition_rows` events, or one
busier day. In memory are one bucket, the source's ids, and arrays with a number per user, per item and per day.

Shapes: N rows of a bucket.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.errors import ContractError
from sidrec.id_maps import map_path
from sidrec.io.files import read_json, write_json
from sidrec.schema import ITEM_ID, USER_ID

from .column_checks import ColumnChecks
from .command import rows_bar
from .events import ITEM, LABEL, TIMESTAMP, USER, IdMap, Source
from .lasting_ids import NO_EARLIER, EarlierIds
from .source_files import open_stream

ROW = "row"  # number in the source: events of equal times keep the source's order
OPEN_BUCKETS = 200  # files written at the same time
NEVER = np.iinfo(np.int64).max
ORDERED = "ordered.json"
ORDER_VERSION = 3  # of the files below the folder of an order: unfinished work of another version starts again


@dataclass(frozen=True)
class OrderedLog:
    """The events of a source, in time order.

    user_rows, item_rows: events per user and item. first_click: time of each item's first positive (NEVER: none). All
        by dense id.
    maps: user_id, item_id and the cat_* columns of the events -> ids. bucket_rows: events per bucket.
    """

    folder: Path
    maps: dict[str, IdMap]
    user_rows: np.ndarray
    item_rows: np.ndarray
    first_click: np.ndarray
    bucket_rows: list[int]

    @property
    def users(self) -> IdMap:
        return self.maps[USER_ID]

    @property
    def items(self) -> IdMap:
        return self.maps[ITEM_ID]

    @property
    def rows(self) -> int:
        return sum(self.bucket_rows)

    def bucket(self, number: int) -> pa.Table:
        """Events of a bucket, sorted by time; events of equal times keep the source's order."""
        table = pq.read_table(_bucket_path(self.folder, number))
        table = table.sort_by([(TIMESTAMP, "ascending"), (ROW, "ascending")])
        return table.drop_columns([ROW])

    def times(self) -> tuple[int, int]:
        """Times of the first and the last event."""
        return self.timestamp_of_row(0), self.timestamp_of_row(self.rows - 1)

    def timestamp_of_row(self, row: int) -> int:
        """Timestamp of event number `row` in time order."""
        ends = np.cumsum(self.bucket_rows)
        number = int(np.searchsorted(ends, row, side="right"))
        times = pq.read_table(_bucket_path(self.folder, number), columns=[TIMESTAMP])[TIMESTAMP].to_numpy()
        return int(np.partition(times, row - int(ends[number]))[row - int(ends[number])])


def order_events(
    source: Source, folder: Path, partition_rows: int, earlier: EarlierIds = NO_EARLIER, *, implicit: bool = False
) -> OrderedLog:
    """Reads the source once and writes its events to buckets under `folder`. Returns a finished order found there.

    earlier: ids that stay; new ones follow. implicit: the log holds positives only. Raises ContractError for invalid
    events, an empty log, one without a positive, and columns that cannot be meant.
    """
    if (folder / ORDERED).exists():
        return _load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spool = _Spool(source, folder / "spool.parquet", earlier, partition_rows, implicit)
    spool.fill()
    bucket_of_day, bucket_rows = _cut_days(spool.day_rows, partition_rows)
    _deal(folder, spool.path, bucket_of_day, len(bucket_rows))
    spool.path.unlink()
    for column, ids in spool.maps.items():
        ids.save(map_path(folder, column))
    np.savez(
        folder / "totals.npz",
        user_rows=spool.user_rows(),
        item_rows=spool.item_rows(),
        first_click=spool.first_click(),
    )
    write_json(folder / ORDERED, {"columns": list(spool.maps), "bucket_rows": bucket_rows})
    return _load(folder)


def _load(folder: Path) -> OrderedLog:
    facts = read_json(folder / ORDERED, "the counts of an ordered log")
    totals = np.load(folder / "totals.npz")
    maps = {column: IdMap.load(map_path(folder, column)) for column in facts["columns"]}
    by_id = (totals["user_rows"], totals["item_rows"], totals["first_click"])
    return OrderedLog(folder, maps, *by_id, facts["bucket_rows"])


class _Spool:
    """Writes events with dense ids to one parquet file, in the source's order, and counts them."""

    def __init__(self, source: Source, path: Path, earlier: EarlierIds, partition_rows: int, implicit: bool) -> None:
        self.path = path
        self._checks, self._implicit = ColumnChecks(source.name, source.event_columns), implicit
        self._partition_rows = partition_rows
        self.users, self.items = earlier.grown(USER_ID), earlier.grown(ITEM_ID, source.catalog())
        own = source.event_columns
        self.categories = {column: earlier.grown(column) for column in (*own.categorical, *own.lists)}
        self.day_rows: Counter[int] = Counter()
        self._source = source
        self._rows = 0
        self._user_rows, self._item_rows = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._first_click = np.zeros(0, dtype=np.int64)

    @property
    def maps(self) -> dict[str, IdMap]:
        return {USER_ID: self.users, ITEM_ID: self.items, **self.categories}

    def fill(self) -> None:
        writer: pq.ParquetWriter | None = None
        try:
            for events in self._source.events():
                if not events.num_rows:
                    continue
                dense = self._dense(events)
                self._checks.add(events, dense)
                writer = writer or pq.ParquetWriter(self.path, dense.schema)
                writer.write_table(dense)
        finally:
            if writer is not None:
                writer.close()
        if not self._rows:
            raise ContractError(self._source.files[0] if self._source.files else self._source.name, "events", "none")
        if (self._first_click == NEVER).all():
            raise ContractError(self._source.name, "at least one positive event", f"{self._rows} events, all negative")
        self._checks.judge(self._implicit)

    def user_rows(self) -> np.ndarray:
        return _grown(self._user_rows, len(self.users) + 1, 0)

    def item_rows(self) -> np.ndarray:
        return _grown(self._item_rows, len(self.items) + 1, 0)

    def first_click(self) -> np.ndarray:
        return _grown(self._first_click, len(self.items) + 1, NEVER)

    def _dense(self, events: pa.Table) -> pa.Table:
        user, item = self.users.add(events[USER]), self.items.add(events[ITEM])
        timestamp, label = events[TIMESTAMP].to_numpy(), events[LABEL].to_numpy()
        if not self._source.event_columns.timed:  # each partition is given a day, so that a bucket holds one
            row_N = self._rows + np.arange(len(timestamp))
            timestamp = row_N // self._partition_rows * SECONDS_PER_DAY
        self._count(user, item, timestamp, label)
        columns: dict[str, object] = {
            ROW: np.arange(self._rows - len(user), self._rows),
            USER: user.astype(np.int32),
            ITEM: item.astype(np.int32),
            TIMESTAMP: timestamp,
            LABEL: label.astype(np.int8),
        }
        own = self._source.event_columns
        columns |= {name: events[name] for name in (*own.dense, *own.numbers, *own.labels, *own.extra)}
        columns |= {name: self.categories[name].add(events[name]).astype(np.int32) for name in own.categorical}
        columns |= {name: self.categories[name].add_lists(events[name]) for name in own.lists}
        return pa.table(columns)

    def _count(self, user: np.ndarray, item: np.ndarray, timestamp: np.ndarray, label: np.ndarray) -> None:
        self._rows += len(user)
        self._user_rows = _grown(self._user_rows, len(self.users) + 1, 0)
        self._first_click = _grown(self._first_click, len(self.items) + 1, NEVER)
        self._user_rows += np.bincount(user, minlength=len(self._user_rows))
        self._item_rows = _grown(self._item_rows, len(self.items) + 1, 0)
        self._item_rows += np.bincount(item, minlength=len(self._item_rows))
        liked = label > 0
        np.minimum.at(self._first_click, item[liked], timestamp[liked])
        days, rows = np.unique(timestamp // SECONDS_PER_DAY, return_counts=True)
        self.day_rows.update(dict(zip(days.tolist(), rows.tolist(), strict=True)))


def _grown(array: np.ndarray, size: int, fill: int) -> np.ndarray:
    return np.concatenate([array, np.full(max(0, size - len(array)), fill, dtype=np.int64)])


def _cut_days(day_rows: Counter[int], partition_rows: int) -> tuple[dict[int, int], list[int]]:
    bucket_of_day: dict[int, int] = {}
    bucket_rows: list[int] = []
    for day in sorted(day_rows):
        if not bucket_rows or bucket_rows[-1] + day_rows[day] > partition_rows:
            bucket_rows.append(0)
        bucket_rows[-1] += day_rows[day]
        bucket_of_day[day] = len(bucket_rows) - 1
    return bucket_of_day, bucket_rows


def _deal(folder: Path, spool: Path, bucket_of_day: dict[int, int], buckets: int) -> None:
    days = np.asarray(sorted(bucket_of_day))
    bucket_at = np.asarray([bucket_of_day[int(day)] for day in days])
    rounds = range(0, buckets, OPEN_BUCKETS)
    with rows_bar("sorting by time", pq.read_metadata(spool).num_rows * len(rounds)) as bar:
        for first in rounds:
            writers: dict[int, pq.ParquetWriter] = {}
            for batch in _batches(spool):
                bucket_N = bucket_at[np.searchsorted(days, batch[TIMESTAMP].to_numpy() // SECONDS_PER_DAY)]
                for number in np.unique(bucket_N):
                    if first <= number < first + OPEN_BUCKETS:
                        if number not in writers:
                            writers[number] = pq.ParquetWriter(_bucket_path(folder, number), batch.schema)
                        writers[number].write_table(batch.filter(pa.array(bucket_N == number)))
                bar.update(batch.num_rows)
            for writer in writers.values():
                writer.close()


def _batches(spool: Path) -> Iterator[pa.Table]:
    for batch in open_stream(spool).iter_batches(batch_size=262_144):
        yield pa.Table.from_batches([batch])


def _bucket_path(folder: Path, number: int) -> Path:
    return folder / f"bucket-{number:05d}.parquet"


# Windows of preceding days, in whole UTC days: a row of day d sees the days d - W to d - 1, never its own day.


SECONDS_PER_DAY = 86_400


@dataclass
class DayWindow:
    """The items of events of the preceding `days` days.

    items, item_days: item and day of each event in the window, oldest first. counts: events per item, int64 [items].
    today_items: items of the current `day`'s events, which are not in the window yet.
    Memory: the events of `days` + 1 days, and one number per item.
    """

    days: int
    counts: np.ndarray
    items: np.ndarray
    item_days: np.ndarray
    today_items: np.ndarray
    day: int = -1

    @classmethod
    def empty(cls, items: int, days: int) -> "DayWindow":
        none = np.zeros(0, dtype=np.int32)
        return cls(days, np.zeros(items, dtype=np.int64), none, none, none)

    def move_to(self, day: int) -> None:
        """Makes `day` the current day, if it is later: adds the former day to the window, drops old days."""
        if day <= self.day:
            return
        kept = int(np.searchsorted(self.item_days, day - self.days))
        np.subtract.at(self.counts, self.items[:kept], 1)
        self.items, self.item_days = self.items[kept:], self.item_days[kept:]
        if self.day >= day - self.days:
            np.add.at(self.counts, self.today_items, 1)
            self.items = np.concatenate([self.items, self.today_items])
            self.item_days = np.concatenate([self.item_days, np.full_like(self.today_items, self.day)])
        self.today_items = self.today_items[:0]
        self.day = day

    def add(self, items: np.ndarray) -> None:
        """Adds events of the current day."""
        self.today_items = np.concatenate([self.today_items, items.astype(np.int32)])

    def counts_of(self, item_N: np.ndarray, happened_N: np.ndarray, timestamp_N: np.ndarray) -> np.ndarray:
        """int64 [N]: events of each row's item in the window. Adds rows where `happened`. Rows are sorted by time."""
        counts_N = np.empty(len(item_N), dtype=np.int64)
        for day, begin, end in day_slices(timestamp_N):
            self.move_to(day)
            counts_N[begin:end] = self.counts[item_N[begin:end]]
            self.add(item_N[begin:end][happened_N[begin:end]])
        return counts_N


def day_slices(timestamp_N: np.ndarray) -> list[tuple[int, int, int]]:
    """(day, first row, row after the last) for each day of rows that are sorted by time."""
    day_N = timestamp_N // SECONDS_PER_DAY
    begins = np.flatnonzero(np.concatenate([[True], day_N[1:] != day_N[:-1]])) if len(day_N) else np.zeros(0, int)
    ends = np.append(begins[1:], len(day_N))
    return [(int(day_N[begin]), int(begin), int(end)) for begin, end in zip(begins, ends, strict=True)]
