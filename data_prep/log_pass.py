"""One pass over the events in time order: each event becomes a row with what was known strictly before it.

`LogPass` takes partition after partition. It carries `PassState` from one to the next: numbers per item, per user and
per day of the window, never rows. Within a partition `Runs` counts what is strictly earlier; rows with the same
timestamp do not see each other.

Shapes: E events of a partition; N rows of a partition (events, and negatives if the log needs them), sorted by time;
U users; H history length; M selected rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from sidrec import schema
from sidrec.errors import ContractError, print_warning

from .dense_numbers import DenseNumbers
from .event_order import SECONDS_PER_DAY, DayWindow, OrderedLog
from .events import ITEM, LABEL, TIMESTAMP, USER
from .negatives import Sampler
from .splits import Split

ROW_DENSE = ("int_user_events", "int_user_click_rate", "int_days_since_last")
STATS = ("stat_exposures", "stat_clicks", "stat_exposures_recent", "stat_clicks_recent")


@dataclass
class LogPass:
    """Turns partitions of events into rows.

    item_categories: cat_* column -> int64 id per item id, 0 included. numbers: dense columns that are made of the
    source's numbers. lists: cat_* columns of lists of the events. item_lists: those of the items, by item id. sampler:
    draws negatives; None for a log that has rows with label 0. timed: False for a log without times, where no event is
    before another. events_seen: events of the partitions so far. given_up: negatives without an item.
    """

    state: "PassState"
    split: Split
    item_categories: dict[str, np.ndarray]
    numbers: DenseNumbers
    sampler: Sampler | None
    lists: tuple[str, ...] = ()
    item_lists: Mapping[str, "Lists"] = field(default_factory=dict)
    timed: bool = True
    events_seen: int = 0
    given_up: int = 0

    def rows_of(self, partition: int, events: pa.Table) -> "PartitionRows":
        """Rows of the next partition, sorted by time. Updates the state with them."""
        own = {name: events[name].to_numpy() for name in events.column_names if name not in self.lists}
        if not self.timed:
            own[TIMESTAMP] = np.zeros_like(own[TIMESTAMP])
        event_E = self.events_seen + np.arange(events.num_rows)
        split_E = split_events(self.split, self.state.user_events, own[USER], own[TIMESTAMP], event_E)
        place_N, item_N, label_N = self._with_negatives(partition, own)
        self.events_seen += events.num_rows
        user_N, timestamp_N = own[USER][place_N], own[TIMESTAMP][place_N]
        by_user = Runs.of(user_N, timestamp_N)
        columns = {
            schema.LABEL: label_N.astype(np.float32),
            schema.TIMESTAMP: timestamp_N,
            schema.USER_ID: user_N.astype(np.int64),
            schema.ITEM_ID: item_N.astype(np.int64),
        }
        columns |= self._user_columns(user_N, label_N, timestamp_N, by_user)
        columns |= self._item_columns(item_N, label_N, timestamp_N)
        columns |= {name: ids[item_N] for name, ids in self.item_categories.items()}
        columns |= self.numbers.rows(own, place_N, item_N)
        for name in own.keys() - {USER, ITEM, TIMESTAMP, LABEL, *columns}:
            kind = np.int64 if name.startswith(schema.CATEGORICAL_PREFIX) else np.float32
            columns[name] = own[name][place_N].astype(kind)
        lists = {schema.HISTORY: self.state.histories.advance(user_N, item_N, label_N, by_user)}
        lists |= {name: Lists.of(events[name]).take(place_N) for name in self.lists}
        lists |= {name: by_item.take(item_N) for name, by_item in self.item_lists.items()}
        split_N = split_E[place_N]
        keys = len(self.state.train_impressions)
        self.state.train_impressions += np.bincount(item_N[split_N <= 0], minlength=keys)  # 0: train; less: BEFORE
        if not self.timed:
            self.state = self.state.without_past()
        return PartitionRows(columns, lists, split_N)

    def check_negatives(self, where: object) -> None:
        """After the last partition: warns if most negatives were given up, raises ContractError if all were."""
        if self.sampler is None:
            return
        wanted = self.events_seen * self.sampler.per_positive
        found = f"{self.given_up:,} of {wanted:,} negatives found no item that their user had not taken"
        if self.given_up == wanted:
            raise ContractError(where, "items that users have not taken, as negatives", found)
        if self.given_up > wanted / 2:
            print_warning(f"{where}: {found}")

    def _with_negatives(self, partition: int, own: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position of each row's event in the partition, the row's item and its label; all [N], sorted by time."""
        place_E = np.arange(len(own[USER]))
        if self.sampler is None:
            return place_E, own[ITEM], own[LABEL]
        user_E, item_E, timestamp_E = own[USER], own[ITEM].astype(np.int64), own[TIMESTAMP]
        place_M, item_M = self.sampler.draw(user_E, item_E, timestamp_E, self.events_seen + place_E)
        self.sampler.taken.add(partition, user_E, item_E)
        self.given_up += len(place_E) * self.sampler.per_positive - len(place_M)
        place = np.concatenate([place_E, place_M])
        item = np.concatenate([item_E, item_M])
        label = np.repeat(np.array([1, 0], dtype=np.int8), [len(place_E), len(place_M)])
        # Within one timestamp rows lie in order of user and item, so a row's place says nothing about its label.
        order = np.lexsort((item, user_E[place], timestamp_E[place]))
        return place[order], item[order], label[order]

    def _user_columns(
        self, user_N: np.ndarray, label_N: np.ndarray, timestamp_N: np.ndarray, runs: "Runs"
    ) -> dict[str, np.ndarray]:
        users = self.state.users
        rows_N = users.rows[user_N] + runs.earlier_rows()
        clicks_N = users.clicks[user_N] + runs.earlier_sum(label_N)
        latest_N = runs.latest_earlier(timestamp_N, users.latest[user_N])
        days_N = np.where(latest_N < 0, 0.0, (timestamp_N - latest_N) / SECONDS_PER_DAY)
        users.add(user_N, label_N, timestamp_N)
        values = (np.log1p(rows_N), (clicks_N + 1) / (rows_N + 2), np.log1p(days_N))
        return {name: value.astype(np.float32) for name, value in zip(ROW_DENSE, values, strict=True)}

    def _item_columns(self, item_N: np.ndarray, label_N: np.ndarray, timestamp_N: np.ndarray) -> dict[str, np.ndarray]:
        state, runs = self.state, Runs.of(item_N, timestamp_N)
        values = (
            state.items.rows[item_N] + runs.earlier_rows(),
            state.items.clicks[item_N] + runs.earlier_sum(label_N),
            state.exposures.counts_of(item_N, np.ones(len(item_N), dtype=bool), timestamp_N),
            state.clicks.counts_of(item_N, label_N > 0, timestamp_N),
        )
        state.items.add(item_N, label_N, timestamp_N)
        return {name: value.astype(np.float32) for name, value in zip(STATS, values, strict=True)}


def train_events(log: OrderedLog, split: Split) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Buckets of the ordered log, and whether each event is of the train split: bool [E]."""
    user_events = np.zeros(len(log.users) + 1, dtype=np.int64)
    before = 0
    for number, rows in enumerate(log.bucket_rows):
        events, event_E = log.bucket(number), before + np.arange(rows)
        user_E, timestamp_E = events[USER].to_numpy(), events[TIMESTAMP].to_numpy()
        yield events, split_events(split, user_events, user_E, timestamp_E, event_E) == 0
        before += rows


def split_events(
    split: Split, user_events: np.ndarray, user_E: np.ndarray, timestamp_E: np.ndarray, event_E: np.ndarray
) -> np.ndarray:
    """int8 [E]: index in SPLITS of the next partition's events, sorted by time.

    user_events: int64 [U], events of each user before the partition; the partition's are added. event_E: numbers of the
    events in the log.
    """
    earlier_E = user_events[user_E] + Runs.of(user_E, timestamp_E).earlier_rows()
    user_events += np.bincount(user_E, minlength=len(user_events))
    return split.assign(user_E, timestamp_E, earlier_E, event_E)


@dataclass(frozen=True)
class PartitionRows:
    """Rows of a partition. columns: name -> [N]. lists: name -> ids of each row. split_N: index in SPLITS."""

    columns: dict[str, np.ndarray]
    lists: dict[str, "Lists"]
    split_N: np.ndarray


@dataclass
class PassState:
    """What the pass carries from partition to partition.

    user_events: int64 [U], events without negatives. train_impressions: int64 per item id, rows of train and before it.
    """

    items: "Totals"
    users: "Totals"
    user_events: np.ndarray
    histories: "Histories"
    exposures: DayWindow
    clicks: DayWindow
    train_impressions: np.ndarray

    @classmethod
    def empty(cls, users: int, items: int, history: int, recent_days: int) -> "PassState":
        """The state before the first partition. users, items: numbers of ids, 0 included."""
        return cls(
            Totals.empty(items),
            Totals.empty(users),
            np.zeros(users, dtype=np.int64),
            Histories.empty(users, history),
            DayWindow.empty(items, recent_days),
            DayWindow.empty(items, recent_days),
            np.zeros(items, dtype=np.int64),
        )

    def without_past(self) -> "PassState":
        """The state before the first partition, but for `train_impressions`."""
        users, items = len(self.user_events), len(self.train_impressions)
        empty = PassState.empty(users, items, self.histories.length, self.exposures.days)
        return replace(empty, train_impressions=self.train_impressions)


@dataclass
class Totals:
    """Rows, positives and time of the latest row (-1: none) of each key so far; int64 [keys]. Keys: users or items."""

    rows: np.ndarray
    clicks: np.ndarray
    latest: np.ndarray

    @classmethod
    def empty(cls, keys: int) -> "Totals":
        zeros = np.zeros(keys, dtype=np.int64)
        return cls(zeros, zeros.copy(), np.full(keys, -1, dtype=np.int64))

    def add(self, key_N: np.ndarray, label_N: np.ndarray, timestamp_N: np.ndarray) -> None:
        """Counts the rows of a partition. Call it after reading the totals before them."""
        keys = len(self.rows)
        self.rows += np.bincount(key_N, minlength=keys)
        self.clicks += np.bincount(key_N[label_N > 0], minlength=keys)
        self.latest[key_N] = timestamp_N  # time-sorted, and numpy keeps the last of repeated assignments


@dataclass
class Histories:
    """The latest `length` positives of every user so far.

    Those of user u are items[offsets[u] : offsets[u + 1]], oldest first.
    """

    offsets: np.ndarray
    items: np.ndarray
    length: int

    @classmethod
    def empty(cls, users: int, length: int) -> "Histories":
        return cls(np.zeros(users + 1, dtype=np.int64), np.zeros(0, dtype=np.int32), length)

    def advance(self, user_N: np.ndarray, item_N: np.ndarray, label_N: np.ndarray, runs: "Runs") -> "Lists":
        """Histories of a partition's rows. Adds its positives to the stored histories. runs: rows by user."""
        stored_U = np.diff(self.offsets)
        liked = label_N > 0
        fresh_U = np.bincount(user_N[liked], minlength=len(stored_U))
        touched = np.flatnonzero(np.bincount(user_N, minlength=len(stored_U)))
        by_user = runs.order_N[liked[runs.order_N]]

        # One block per user of the partition: the stored history, then the positives of the partition.
        block = stored_U[touched] + fresh_U[touched]
        ends = np.cumsum(block)
        values = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int32)
        is_stored = np.zeros(len(values) + 1, dtype=np.int64)
        np.add.at(is_stored, ends - block, 1)
        np.add.at(is_stored, ends - block + stored_U[touched], -1)
        stored_mask = np.cumsum(is_stored)[:-1] > 0
        values[stored_mask] = gather_ranges(self.items, self.offsets[touched], stored_U[touched])
        values[~stored_mask] = item_N[by_user]

        start_U = np.zeros(len(stored_U), dtype=np.int64)
        start_U[touched] = ends - block
        end_N = start_U[user_N] + stored_U[user_N] + runs.earlier_sum(liked)
        start_N = np.maximum(start_U[user_N], end_N - self.length)
        self._keep(values, touched, ends, block)
        return Lists(values, start_N, end_N - start_N)

    def _keep(self, values: np.ndarray, touched: np.ndarray, ends: np.ndarray, block: np.ndarray) -> None:
        lengths = np.diff(self.offsets)
        starts = self.offsets[:-1].copy()
        lengths[touched] = np.minimum(block, self.length)
        starts[touched] = len(self.items) + ends - lengths[touched]
        self.items = gather_ranges(np.concatenate([self.items, values]), starts, lengths)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])


@dataclass(frozen=True)
class Lists:
    """A list of ids for each row n: ids[start_N[n] : start_N[n] + length_N[n]]. `rows` copies out some at a time."""

    ids: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Lists":
        """The lists of a column without missing ones."""
        lists = column.combine_chunks()
        offsets = lists.offsets.to_numpy()
        return cls(lists.values.to_numpy(), offsets[:-1], np.diff(offsets))

    def take(self, row_M: np.ndarray) -> "Lists":
        return Lists(self.ids, self.start_N[row_M], self.length_N[row_M])

    def rows(self, row_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists of the given rows as offsets int32 [M + 1] and ids int64, as arrow's ListArray takes them."""
        lengths = self.length_N[row_M]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return offsets, gather_ranges(self.ids, self.start_N[row_M], lengths).astype(np.int64)


@dataclass(frozen=True)
class Runs:
    """Rows of a partition grouped by a key (user or item), sorted by time within a key.

    order_N: row numbers, sorted by key, then time. key_start_N, run_start_N: for each position in that order, where
    its key starts and where its run of equal (key, timestamp) starts. Rows between the two are strictly earlier.
    """

    order_N: np.ndarray
    key_start_N: np.ndarray
    run_start_N: np.ndarray

    @classmethod
    def of(cls, key_N: np.ndarray, timestamp_N: np.ndarray) -> "Runs":
        order_N = np.argsort(key_N, kind="stable")
        key, timestamp = key_N[order_N], timestamp_N[order_N]
        new_key = np.ones(len(key), dtype=bool)
        new_key[1:] = key[1:] != key[:-1]
        new_run = new_key.copy()
        new_run[1:] |= timestamp[1:] != timestamp[:-1]
        place = np.arange(len(key))
        key_start = np.maximum.accumulate(np.where(new_key, place, 0))
        return cls(order_N, key_start, np.maximum.accumulate(np.where(new_run, place, 0)))

    def _by_row(self, by_place_N: np.ndarray) -> np.ndarray:
        result = np.empty_like(by_place_N)
        result[self.order_N] = by_place_N
        return result

    def earlier_rows(self) -> np.ndarray:
        """int64 [N]: number of strictly earlier rows of the same key."""
        return self._by_row(self.run_start_N - self.key_start_N)

    def earlier_sum(self, amount_N: np.ndarray) -> np.ndarray:
        """int64 [N]: sum of `amount` over the strictly earlier rows of the same key."""
        total = np.concatenate([[0], np.cumsum(amount_N[self.order_N], dtype=np.int64)])
        return self._by_row(total[self.run_start_N] - total[self.key_start_N])

    def latest_earlier(self, value_N: np.ndarray, without_N: np.ndarray) -> np.ndarray:
        """[N]: `value` of the latest strictly earlier row of the same key; the row's own `without` if there is none."""
        previous = value_N[self.order_N][np.maximum(self.run_start_N - 1, 0)]
        has = self.run_start_N > self.key_start_N
        return self._by_row(np.where(has, previous, without_N[self.order_N]))


def gather_ranges(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenates values[start : start + length] for every pair, without a loop."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return values[np.repeat(starts - (ends - lengths), lengths) + np.arange(total)]
