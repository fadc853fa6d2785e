"""Sorts a log by time in bounded memory: ids become dense, events are spooled, then dealt into buckets of whole days.

A bucket holds consecutive days and at most `partition_rows` events, or one single busier day. Held in memory are one
bucket, the source's ids, and arrays with one number per user, per item and per day; never the log.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.day_window import SECONDS_PER_DAY
from data_prep.events import ITEM, LABEL, TIMESTAMP, USER, Source
from data_prep.id_map import IdMap
from data_prep.parquet_stream import open_stream
from data_prep.progress import rows_bar
from sidrec.schema import ContractError

ROW = "row"  # place in the source: ties in time keep the source's order
OPEN_BUCKETS = 200  # files written at the same time
NEVER = np.iinfo(np.int64).max
ORDERED = "ordered.json"


@dataclass(frozen=True)
class OrderedLog:
    """The events of a source, in time order.

    user_rows: events per user, first_click: time of each item's first positive (NEVER: none); indexed by dense id.
    ids: number of ids + 1 per cat_* column of the events. bucket_rows: events per bucket.
    """

    folder: Path
    users: int
    items: IdMap
    user_rows: np.ndarray
    first_click: np.ndarray
    ids: dict[str, int]
    bucket_rows: list[int]

    @property
    def rows(self) -> int:
        return sum(self.bucket_rows)

    def bucket(self, number: int) -> pa.Table:
        """One bucket's events, sorted by time; ties in the source's order."""
        table = pq.read_table(_bucket_path(self.folder, number))
        table = table.sort_by([(TIMESTAMP, "ascending"), (ROW, "ascending")])
        return table.drop_columns([ROW])

    def timestamp_of_row(self, row: int) -> int:
        """Timestamp of the event at place `row` of the time order."""
        ends = np.cumsum(self.bucket_rows)
        number = int(np.searchsorted(ends, row, side="right"))
        times = pq.read_table(_bucket_path(self.folder, number), columns=[TIMESTAMP])[TIMESTAMP].to_numpy()
        return int(np.partition(times, row - int(ends[number]))[row - int(ends[number])])


def order_events(source: Source, folder: Path, partition_rows: int) -> OrderedLog:
    """Reads the source once and leaves its events in time-ordered buckets under `folder`.

    A finished order found there is returned as it is. Raises ContractError for bad events, an empty log, or one without
    a positive.
    """
    if (folder / ORDERED).exists():
        return _load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spool = _Spool(source, folder / "spool.parquet")
    spool.fill()
    bucket_of_day, bucket_rows = _cut_days(spool.day_rows, partition_rows)
    _deal(folder, spool.path, bucket_of_day, len(bucket_rows))
    spool.path.unlink()
    spool.items.save(folder / "items.parquet")
    np.savez(folder / "totals.npz", user_rows=spool.user_rows(), first_click=spool.first_click())
    ids = {column: len(ids) + 1 for column, ids in spool.categories.items()}
    partial = folder / (ORDERED + ".partial")
    partial.write_text(json.dumps({"users": len(spool.users), "ids": ids, "bucket_rows": bucket_rows}))
    partial.replace(folder / ORDERED)
    return _load(folder)


def _load(folder: Path) -> OrderedLog:
    facts = json.loads((folder / ORDERED).read_text())
    totals = np.load(folder / "totals.npz")
    items = IdMap.load(folder / "items.parquet")
    return OrderedLog(
        folder, facts["users"], items, totals["user_rows"], totals["first_click"], facts["ids"], facts["bucket_rows"]
    )


class _Spool:
    """Events with dense ids, in the source's order, in one parquet file; and what is counted on the way."""

    def __init__(self, source: Source, path: Path) -> None:
        self.path = path
        self.users, self.items = IdMap(), IdMap(source.catalog())
        self.categories = {column: IdMap() for column in source.categorical}
        self.day_rows: Counter[int] = Counter()
        self._source = source
        self._rows = 0
        self._user_rows = np.zeros(0, dtype=np.int64)
        self._first_click = np.zeros(0, dtype=np.int64)

    def fill(self) -> None:
        writer: pq.ParquetWriter | None = None
        try:
            for events in self._source.events():
                if not events.num_rows:
                    continue
                dense = self._dense(events)
                writer = writer or pq.ParquetWriter(self.path, dense.schema)
                writer.write_table(dense)
        finally:
            if writer is not None:
                writer.close()
        if not self._rows:
            raise ContractError(self._source.files[0] if self._source.files else self._source.name, "events", "none")
        if (self._first_click == NEVER).all():
            raise ContractError(self._source.name, "at least one positive event", f"{self._rows} events, all negative")

    def user_rows(self) -> np.ndarray:
        return _grown(self._user_rows, len(self.users) + 1, 0)

    def first_click(self) -> np.ndarray:
        return _grown(self._first_click, len(self.items) + 1, NEVER)

    def _dense(self, events: pa.Table) -> pa.Table:
        user, item = self.users.add(events[USER]), self.items.add(events[ITEM])
        timestamp, label = events[TIMESTAMP].to_numpy(), events[LABEL].to_numpy()
        self._count(user, item, timestamp, label)
        columns: dict[str, object] = {
            ROW: np.arange(self._rows - len(user), self._rows),
            USER: user.astype(np.int32),
            ITEM: item.astype(np.int32),
            TIMESTAMP: timestamp,
            LABEL: label.astype(np.int8),
        }
        columns |= {name: events[name] for name in (*self._source.dense, *self._source.extra)}
        columns |= {name: ids.add(events[name]).astype(np.int32) for name, ids in self.categories.items()}
        return pa.table(columns)

    def _count(self, user: np.ndarray, item: np.ndarray, timestamp: np.ndarray, label: np.ndarray) -> None:
        self._rows += len(user)
        self._user_rows = _grown(self._user_rows, len(self.users) + 1, 0)
        self._first_click = _grown(self._first_click, len(self.items) + 1, NEVER)
        self._user_rows += np.bincount(user, minlength=len(self._user_rows))
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
