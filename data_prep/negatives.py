"""Sampled negatives for logs that hold only positives.

For every positive, `per_positive` rows of the same user and timestamp with other items and label 0 are drawn.

An item is launched at the time of its first positive minus a seeded uniform(0, W) days, W being the window. A
negative's item is drawn from one of two sets: the items launched in the last W days, with equal weights, or all
launched items, weighted by their positives in the W preceding days plus a floor. Both are needed. Without launches,
the first row of an item would always be a positive; without the floor, so would the first row after W days without a
positive. "Never shown" or "not taken lately" would then give the label away.

A negative is never an item that the user took at or before its time. Items that the user takes later may be drawn:
the draw does not look ahead.

A draw is a place: of an event, whose item is taken, in the window; or of an item in the order of launches. So a draw
from millions of items is an equi-join, and popularity needs no weights. Every random number is a hash of (seed, event,
negative, attempt). The relations:

    launched    item_id, day: the day of its launch
    launches    item_id, place: number in the order of launches
    pools       day, and the sets from which that day's negatives are drawn, as ranges of places
    pairs       user_id, item_id, first: time of the user's first event with the item
    tried_A     attempt A, or A and later ones: event, which (negative of the event), user_id, item_id, moment, day,
                split, attempt, taken
    negatives   those that were not taken

Shapes: N rows, D days.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .draws import uniforms
from .engine import Engine, table, value
from .log_state import NO_STATE, State
from .ordered_events import SECONDS_PER_DAY, OrderedEvents, numbering

ATTEMPTS = 30  # draws for a negative; it is given up when all of them are items that the user has taken
LAUNCH_KEY = 0xA11
OPEN = "event, which, user_id, moment, day, split"
DRAWN = pa.schema(
    [
        ("event", pa.int64()),
        ("which", pa.int32()),
        ("user_id", pa.int32()),
        ("moment", pa.int64()),
        ("day", pa.int64()),
        ("split", pa.int32()),
        ("attempt", pa.int32()),
        ("drawn_event", pa.int64()),
        ("drawn_launch", pa.int64()),
    ]
)
POOL = "fresh_from, fresh, popular_from, popular, launched"


@dataclass(frozen=True)
class Sampler:
    """How negatives are drawn.

    floor_weight: weight of a launched item without positives; a positive weighs 1. launch_draws: draws that an item
    gets while it is fresh, per negative per positive.
    """

    per_positive: int
    floor_weight: float
    launch_draws: float
    window_days: int
    seed: int

    def draw(self, log: OrderedEvents, earlier: State = NO_STATE) -> int:
        """Makes the relation `negatives` of a log whose events are in the relation `split_events`.

        earlier: the state of the events before the log: launches, events of the window, items that users have taken.
        Returns how many negatives found no item.
        """
        engine = log.engine
        if not engine.stored("negatives"):
            self._launches(engine, earlier)
            self._pools(log, earlier)
            if not engine.stored("pairs"):
                engine.make("pairs", _pairs(earlier))
            tried = self._attempts(engine, earlier, log.rows * self.per_positive)
            new = f"{OPEN}, item_id, attempt"
            engine.make("negatives", " UNION ALL ".join(f"SELECT {new} FROM {name} WHERE taken = 0" for name in tried))
            for name in tried:
                engine.drop(name)
        drawn = int(value(engine, "SELECT CAST(COUNT(*) AS BIGINT) FROM negatives"))
        return log.rows * self.per_positive - drawn

    def _launches(self, engine: Engine, earlier: State) -> None:
        if not engine.stored("launched"):
            first = "SELECT item_id, MIN(moment) AS first FROM ordered WHERE label > 0 GROUP BY item_id"
            arrow = pa.schema([("item_id", pa.int32()), ("day", pa.int64())])
            if earlier.known:
                known = "LEFT JOIN state_launched AS s ON s.item_id = f.item_id WHERE s.item_id IS NULL"
                engine.map("new_launched", f"SELECT f.* FROM ({first}) AS f {known}", self._launch_days, arrow)
                both = earlier.union("item_id, day", "launched", "SELECT item_id, day FROM new_launched")
                engine.make("launched", f"SELECT item_id, day FROM {both} AS u")
            else:
                engine.map("launched", first, self._launch_days, arrow)
        if not engine.stored("launches"):
            numbered = numbering(engine, "launched", "day", "item_id", 0)
            engine.make("launches", f"SELECT item_id, number AS place FROM ({numbered}) AS n")

    def _launch_days(self, first: pa.RecordBatch) -> pa.RecordBatch:
        item_N, time_N = (column.to_numpy() for column in first.columns)
        ahead_N = uniforms(self.seed, item_N.astype(np.int64), LAUNCH_KEY) * self.window_days * SECONDS_PER_DAY
        day_N = np.floor((time_N - ahead_N) / SECONDS_PER_DAY).astype(np.int64)
        return pa.RecordBatch.from_arrays([first.column(0), pa.array(day_N)], ["item_id", "day"])

    def _pools(self, log: OrderedEvents, earlier: State) -> None:
        if log.engine.stored("pools"):
            return
        launched = table(log.engine, "SELECT day, CAST(COUNT(*) AS BIGINT) AS n FROM launched GROUP BY day")
        launched = launched.sort_by("day")
        days = earlier.days(log)  # those of the state too, as far back as a window reaches
        day_D, events_D = days["day"].to_numpy(), days["events"].to_numpy()
        before_D = earlier.events + log.rows - np.cumsum(events_D[::-1])[::-1]
        # Whole days: the window's first day that has events, and launches up to a day.
        popular_from_D = before_D[np.searchsorted(day_D, day_D - self.window_days)]
        until = np.concatenate([[0], np.cumsum(launched["n"].to_numpy())]).astype(np.int64)
        launch_days = launched["day"].to_numpy()
        fresh_from_D = until[np.searchsorted(launch_days, day_D - self.window_days)]
        launched_D = until[np.searchsorted(launch_days, day_D, side="right")]
        pools = {
            "day": day_D,
            "fresh_from": fresh_from_D,
            "fresh": launched_D - fresh_from_D,
            "popular_from": popular_from_D,
            "popular": before_D - popular_from_D,
            "launched": launched_D,
        }
        log.engine.put("pools", pa.table(pools))

    def _attempts(self, engine: Engine, earlier: State, wanted: int) -> list[str]:
        """Makes the relations tried_A. Returns their names.

        Once few negatives are still open, all attempts that are left are tried together, and the first of each that
        found an item counts: as many rows as one attempt for all has.
        """
        which = " UNION ALL ".join(f"SELECT {number} AS which" for number in range(self.per_positive))
        still_open, left, names = f"SELECT e.*, w.which FROM split_events AS e CROSS JOIN ({which}) AS w", wanted, []
        for attempt in range(ATTEMPTS):
            name = f"tried_{attempt}"
            names.append(name)
            last = left * (ATTEMPTS - attempt) <= wanted
            if not engine.stored(name):
                self._try(engine, earlier, name, range(attempt, ATTEMPTS if last else attempt + 1), still_open)
            still_open = f"SELECT {OPEN} FROM {name} WHERE taken = 1"
            left = int(value(engine, f"SELECT CAST(COUNT(*) AS BIGINT) FROM {name} WHERE taken = 1"))
            if last or not left:
                break
        return names

    def _try(self, engine: Engine, earlier: State, name: str, attempts: range, still_open: str) -> None:
        pooled = ", ".join(f"p.{column}" for column in POOL.split(", "))
        numbers = " UNION ALL ".join(f"SELECT CAST({attempt} AS INTEGER) AS attempt" for attempt in attempts)
        query = (
            f"SELECT {_of('o', OPEN)}, a.attempt, {pooled} FROM ({still_open}) AS o "
            f"JOIN pools AS p ON p.day = o.day CROSS JOIN ({numbers}) AS a"
        )
        engine.map("drawn", query, self._pick, DRAWN)
        events = earlier.union("event, item_id", "recent", "SELECT event, item_id FROM ordered")
        item = "COALESCE(e.item_id, l.item_id)"
        joined = (
            f"SELECT {_of('d', OPEN)}, d.attempt, {item} AS item_id FROM drawn AS d LEFT JOIN {events} AS e "
            "ON e.event = d.drawn_event LEFT JOIN launches AS l ON l.place = d.drawn_launch"
        )
        taken = "CASE WHEN t.first <= j.moment THEN 1 ELSE 0 END AS taken"
        pairs = "LEFT JOIN pairs AS t ON t.user_id = j.user_id AND t.item_id = j.item_id"
        tried = f"SELECT j.*, {taken} FROM ({joined}) AS j {pairs}"
        if len(attempts) > 1:
            order = "ROW_NUMBER() OVER (PARTITION BY event, which ORDER BY taken, attempt) AS number"
            tried = f"SELECT {OPEN}, attempt, item_id, taken FROM (SELECT *, {order} FROM ({tried}) AS t) AS n"
            tried += " WHERE number = 1"
        engine.make(name, tried)
        engine.drop("drawn")

    def _pick(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Places that are drawn, without the rows of days that have nothing to draw from."""
        pools = self._pools_of(rows)
        rows = rows.filter(pa.array((pools.fresh > 0) | (pools.weight > 0)))
        keys = (rows.column(name).to_numpy() for name in ("event", "which", "attempt"))
        event_N, launch_N = places(uniforms(self.seed, *keys), self._pools_of(rows))
        whole = [rows.column(name).cast(DRAWN.field(name).type) for name in (*OPEN.split(", "), "attempt")]
        found = [pa.array(place_N, pa.int64(), mask=place_N < 0) for place_N in (event_N, launch_N)]
        return pa.RecordBatch.from_arrays([*whole, *found], schema=DRAWN)

    def _pools_of(self, rows: pa.RecordBatch) -> "Pools":
        ranges = {name: rows.column(name).to_numpy() for name in POOL.split(", ")}
        return Pools(**ranges, floor_weight=self.floor_weight, launch_draws=self.launch_draws)


def _pairs(earlier: State) -> str:
    """A query of the relation `pairs`. Pairs of the state are earlier than every row of the log."""
    first = "SELECT user_id, item_id, moment AS first FROM ordered"
    if earlier.known:
        of_today = "user_id IN (SELECT user_id FROM ordered)"
        known = f"SELECT user_id, item_id, CAST({earlier.last} AS BIGINT) AS first FROM state_pairs WHERE {of_today}"
        first = f"{first} UNION ALL {known}"
    return f"SELECT user_id, item_id, MIN(first) AS first FROM ({first}) AS u GROUP BY user_id, item_id"


def _of(relation: str, columns: str) -> str:
    return ", ".join(f"{relation}.{name}" for name in columns.split(", "))


@dataclass(frozen=True)
class Pools:
    """The items from which the negatives of rows are drawn, as ranges of places; all int64 [N].

    fresh_from, fresh: launches in the window. popular_from, popular: events in the window. launched: all launches so
    far, from place 0.
    """

    fresh_from: np.ndarray
    fresh: np.ndarray
    popular_from: np.ndarray
    popular: np.ndarray
    launched: np.ndarray
    floor_weight: float
    launch_draws: float

    @property
    def weight(self) -> np.ndarray:
        return np.asarray(self.popular + self.floor_weight * self.launched)

    @property
    def fresh_share(self) -> np.ndarray:
        """Share of draws that go to fresh items: at most half, or all if there are no others."""
        share_N = np.minimum(0.5, self.launch_draws * self.fresh / np.maximum(self.popular, 1))
        return np.where(self.weight > 0, share_N, 1.0)


def places(uniform_N: np.ndarray, pools: Pools) -> tuple[np.ndarray, np.ndarray]:
    """Place of an event and place of a launch for each number in [0, 1), int64 [N]; one of the two is -1."""
    share_N, weight_N = pools.fresh_share, pools.weight
    is_fresh_N = uniform_N < share_N
    with np.errstate(divide="ignore", invalid="ignore"):
        fresh_N = pools.fresh_from + _at(uniform_N / share_N, pools.fresh)
        point_N = (uniform_N - share_N) / (1 - share_N) * weight_N
        rest_N = _at((point_N - pools.popular) / (weight_N - pools.popular), pools.launched)
    is_popular_N = ~is_fresh_N & (point_N < pools.popular)
    event_N = np.where(is_popular_N, pools.popular_from + _whole(point_N), -1)
    launch_N = np.where(is_fresh_N, fresh_N, np.where(is_popular_N, -1, rest_N))
    return event_N, launch_N


def _at(share_N: np.ndarray, size_N: np.ndarray) -> np.ndarray:
    """The place at a share of a list."""
    return np.minimum(_whole(share_N * size_N), size_N - 1)


def _whole(values_N: np.ndarray) -> np.ndarray:
    """int64; of values that are not used, such as 0 / 0, anything."""
    return np.where(np.isfinite(values_N), values_N, 0.0).astype(np.int64)
