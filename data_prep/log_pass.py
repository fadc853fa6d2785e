"""One pass over the events in time order: rows with what was known before each of them.

Carried from partition to partition is `PassState`: numbers per item, per user and per day of the window, never rows.

N rows of a partition (events, and negatives if the log needs them), E events of a partition.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_prep.as_of import Histories, PartitionHistories, Runs, Totals
from data_prep.day_window import SECONDS_PER_DAY, DayWindow
from data_prep.events import ITEM, LABEL, TIMESTAMP, USER
from data_prep.negatives import Sampler
from data_prep.splits import Split
from sidrec import schema

ROW_DENSE = ("int_user_events", "int_user_click_rate", "int_days_since_last")
STATS = ("stat_exposures", "stat_clicks", "stat_exposures_recent", "stat_clicks_recent")


@dataclass
class PassState:
    """What the pass knows after some partitions. user_events: events per user, negatives not counted."""

    items: Totals
    users: Totals
    user_events: np.ndarray
    histories: Histories
    exposures: DayWindow
    clicks: DayWindow
    train_impressions: np.ndarray

    @classmethod
    def empty(cls, users: int, items: int, history: int, recent_days: int) -> "PassState":
        """For `users` and `items` ids, 0 included."""
        return cls(
            Totals.empty(items),
            Totals.empty(users),
            np.zeros(users, dtype=np.int64),
            Histories.empty(users, history),
            DayWindow.empty(items, recent_days),
            DayWindow.empty(items, recent_days),
            np.zeros(items, dtype=np.int64),
        )


@dataclass(frozen=True)
class PartitionRows:
    """A partition's rows: columns [N] without the history, the histories, and each row's place in SPLITS."""

    columns: dict[str, np.ndarray]
    histories: PartitionHistories
    split_N: np.ndarray


@dataclass
class LogPass:
    """Turns partitions of events into rows. item_categories: cat_* -> id per item id, 0 included."""

    state: PassState
    split: Split
    item_categories: dict[str, np.ndarray]
    sampler: Sampler | None
    events_seen: int = 0
    given_up: int = 0  # negatives that found no item

    def rows_of(self, partition: int, events: pa.Table) -> PartitionRows:
        """Rows of the next partition, time-sorted; the state takes them in."""
        own = {name: events[name].to_numpy() for name in events.column_names}
        split_E = self._split(own[USER], own[TIMESTAMP])
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
        for name in own.keys() - {USER, ITEM, TIMESTAMP, LABEL}:
            kind = np.int64 if name.startswith(schema.CATEGORICAL_PREFIX) else np.float32
            columns[name] = own[name][place_N].astype(kind)
        histories = self.state.histories.advance(user_N, item_N, label_N, by_user)
        split_N = split_E[place_N]
        keys = len(self.state.train_impressions)
        self.state.train_impressions += np.bincount(item_N[split_N == 0], minlength=keys)
        return PartitionRows(columns, histories, split_N)

    def _split(self, user_E: np.ndarray, timestamp_E: np.ndarray) -> np.ndarray:
        events = self.state.user_events
        earlier_E = events[user_E] + Runs.of(user_E, timestamp_E).earlier_rows()
        events += np.bincount(user_E, minlength=len(events))
        return self.split.assign(user_E, timestamp_E, earlier_E)

    def _with_negatives(self, partition: int, own: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Place of each row's event, the row's item and its label."""
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
        self, user_N: np.ndarray, label_N: np.ndarray, timestamp_N: np.ndarray, runs: Runs
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
