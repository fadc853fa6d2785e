"""What was known strictly before each row, as relations: counts, windows of days, histories.

The relations, from `ordered` (`data_prep.ordered_events`) and `negatives` (`data_prep.negatives`):

    split_events   ordered, without own columns, and split: the index in SPLITS or BEFORE
    by_user        the rows of the log: events, and negatives (attempt, which), with user_rows, user_clicks, latest: the
                   user's earlier rows and positives, and the time of the last one
    by_item        by_user, and item_rows, item_clicks: earlier rows and positives of the item
    daily          item_id, day, recent, recent_clicks: rows and positives on the preceding days
    chunks         user_id, chunk, items: the user's positives, `history` at a time, in order (`data_prep.histories`)
    impressions    item_id, train, test: rows of train and before it, and of test

Rows with the same time do not see each other: a frame of a window ends one second before the row. A window of days is
a sum of totals by item and day.
"""

from dataclasses import dataclass

import numpy as np

from .engine import Engine, table, value
from .log_state import NO_STATE, SUMS, State
from .ordered_events import OrderedEvents
from .splits import Split

EVENT = "event, user_id, item_id, moment, day, label, split"
EARLIER = "RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
IN_TIME = "moment, user_id, item_id, attempt, event, which"
"""Order of rows with negatives: within a time by user and item, so that a row's place says nothing of its label."""


@dataclass(frozen=True)
class LogRelations:
    """How rows are made of ordered events. sampled: with negatives. history, recent_days: see LogSettings.

    earlier: the state of the events before the log, which is added to counts, windows and histories.
    """

    log: OrderedEvents
    split: Split
    sampled: bool
    history: int
    recent_days: int
    earlier: State = NO_STATE

    @property
    def order(self) -> str:
        """SQL: the order of rows in the log."""
        return IN_TIME if self.sampled else "event"

    def make_split(self) -> None:
        """Makes `split_events`."""
        if not self._engine.stored("split_events"):
            split = self.split.query(self._engine)
            columns = EVENT.replace("split", "CAST(split AS INTEGER) AS split")
            self._engine.make("split_events", f"SELECT {columns} FROM ({split}) AS s")

    def make(self) -> None:
        """Makes the others, after `split_events` and `negatives`."""
        steps = {
            "by_user": self._by_user,
            "by_item": self._by_item,
            "daily": self._daily,
            "impressions": self._impressions,
        }
        for name, query in steps.items():
            if not self._engine.stored(name):
                self._engine.make(name, query())
                if name == "by_item":
                    self._engine.drop("by_user")

    def rows(self, first_part: int, own: tuple[str, ...]) -> str:
        """A query of the finished rows of part `first_part` and later ones. own: own columns to include.

        Columns: those of by_item; part; recent, recent_clicks; held: the user's earlier positives that `positives`
        holds; the own columns. Where there are `chunks`, items_before and items: the chunks in which the history ends.
        """
        columns = f"r.*, d.part, c.recent, c.recent_clicks, {self._held} AS held"
        joins = [
            f"JOIN (SELECT * FROM days WHERE part >= {first_part}) AS d ON d.day = r.day",
            "JOIN daily AS c ON c.item_id = r.item_id AND c.day = r.day",
            *(["LEFT JOIN state_users AS s ON s.user_id = r.user_id"] if self.earlier.known else []),
        ]
        if self._engine.stored("chunks"):
            columns += ", e.items AS items, b.items AS items_before"
            joins += [
                f"LEFT JOIN chunks AS {name} ON {name}.user_id = r.user_id AND {name}.chunk = {self._chunk} - {back}"
                for name, back in (("e", 0), ("b", 1))
            ]
        if own:
            columns += "".join(f", o.{name}" for name in own)
            joins.append("JOIN ordered AS o ON o.event = r.event")
        return f"SELECT {columns} FROM by_item AS r {' '.join(joins)}"

    def rows_from(self, first_part: int) -> int:
        """Rows of part `first_part` and later ones."""
        later = f"SELECT day FROM days WHERE part >= {first_part}"
        count = f"SELECT CAST(COUNT(*) AS BIGINT) FROM by_item AS r JOIN ({later}) AS d ON d.day = r.day"
        return int(value(self._engine, count))

    def impressions(self, items: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of train and before it, those of the state included, and of test, by item id; int64 [items + 1]."""
        found = np.zeros((2, items + 1), np.int64)
        for batch in self._engine.read("SELECT item_id, train, test FROM impressions"):
            item_N = batch.column(0).to_numpy()
            found[0, item_N], found[1, item_N] = batch.column(1).to_numpy(), batch.column(2).to_numpy()
        if self.earlier.known:
            for batch in self._engine.read("SELECT item_id, n FROM state_items"):
                found[0, batch.column(0).to_numpy()] += batch.column(1).to_numpy()
        return found[0], found[1]

    @property
    def _engine(self) -> Engine:
        return self.log.engine

    def _rows(self) -> str:
        """Events and negatives. Without times, each row is the first."""
        if not self.sampled:
            return f"SELECT {EVENT} FROM split_events"
        drawn = EVENT.replace("label", "CAST(0 AS TINYINT) AS label")
        return (
            f"SELECT {EVENT}, CAST(-1 AS INTEGER) AS attempt, CAST(0 AS INTEGER) AS which FROM split_events "
            f"UNION ALL SELECT {drawn}, attempt, which FROM negatives"
        )

    def _by_user(self) -> str:
        if not self.log.columns.timed:
            nothing = f"{_nothing('user_rows', 'user_clicks')}, CAST(NULL AS BIGINT) AS latest"
            return f"SELECT *, {nothing} FROM ({self._rows()}) AS r"
        over = f"OVER (PARTITION BY user_id ORDER BY moment {EARLIER})"
        columns = [*_earlier("user", over), f"LAST_VALUE(moment) {over} AS latest"]
        here = f"SELECT *, {', '.join(columns)} FROM ({self._rows()}) AS r"
        return (
            here
            if not self.earlier.known
            else self._with_earlier(here, "user", "COALESCE(w.latest, b.latest) AS latest")
        )

    def _with_earlier(self, here: str, key: str, *kept: str) -> str:
        """The rows of the query `here`, whose counts of the key go on from those of the state. kept: other columns."""
        row = EVENT + (", attempt, which" if self.sampled else "")
        columns = [f"w.{name}" for name in row.split(", ")]
        counts = {"rows": "n", "clicks": "clicks"}
        columns += [f"w.{key}_{name} + COALESCE(b.{known}, 0) AS {key}_{name}" for name, known in counts.items()]
        joined = f"({here}) AS w LEFT JOIN state_{key}s AS b ON b.{key}_id = w.{key}_id"
        return f"SELECT {', '.join([*columns, *kept])} FROM {joined}"

    def _by_item(self) -> str:
        if not self.log.columns.timed:
            return f"SELECT *, {_nothing('item_rows', 'item_clicks')} FROM by_user"
        over = f"OVER (PARTITION BY item_id ORDER BY moment {EARLIER})"
        here = f"SELECT *, {', '.join(_earlier('item', over))} FROM by_user"
        if not self.earlier.known:
            return here
        return self._with_earlier(here, "item", *(f"w.{name}" for name in ("user_rows", "user_clicks", "latest")))

    def _daily(self) -> str:
        totals = "SELECT item_id, day, COUNT(*) AS n, SUM(label) AS clicks FROM by_item GROUP BY item_id, day"
        if self.earlier.known:  # both have the day on which the state ends, if the log goes on within it
            both = self.earlier.union("item_id, day, n, clicks", "daily", totals)
            totals = f"SELECT item_id, day, {SUMS} FROM {both} AS u GROUP BY item_id, day"
        if not self.log.columns.timed:
            return f"SELECT item_id, day, {_nothing('recent', 'recent_clicks')} FROM ({totals}) AS t"
        over = f"OVER (PARTITION BY item_id ORDER BY day RANGE BETWEEN {self.recent_days} PRECEDING AND 1 PRECEDING)"
        columns = f"{_sum('n', over)} AS recent, {_sum('clicks', over)} AS recent_clicks"
        return f"SELECT item_id, day, {columns} FROM ({totals}) AS t"

    @property
    def has_histories(self) -> bool:
        return self.history > 0 and self.log.columns.timed

    @property
    def _held(self) -> str:
        """SQL: the state keeps the latest `history` positives of its users."""
        return "r.user_clicks" + (
            f" - GREATEST(COALESCE(s.clicks, 0) - {self.history}, 0)" if self.earlier.known else ""
        )

    @property
    def _chunk(self) -> str:
        return f"CAST(FLOOR(({self._held} - 1) / {self.history}) AS BIGINT)"

    def placed_positives(self) -> str:
        """A query of user_id, place, item_id: the log's positives from place 1, those of the state up to place 0."""
        place = f"ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY {self.order}) AS place"
        today = f"SELECT user_id, {place}, item_id FROM by_item WHERE label > 0"
        both = self.earlier.union("user_id, place, item_id", "positives", today)
        return f"SELECT user_id, place, item_id FROM {both} AS u"

    def positives(self) -> str:
        """A query of user_id and item_id by user and in order: all positives, and before them those of the state."""
        if self.earlier.known:
            of_today = "WHERE user_id IN (SELECT user_id FROM by_item) ORDER BY user_id, place"
            return f"SELECT user_id, item_id FROM ({self.placed_positives()}) AS p {of_today}"
        return f"SELECT user_id, item_id FROM by_item WHERE label > 0 ORDER BY user_id, {self.order}"

    def chunks(self) -> str:
        """A query of the relation `chunks`, for engines that have no file which all their processes read."""
        number = "ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY place) - 1 AS number"
        of_today = "WHERE user_id IN (SELECT user_id FROM by_item)" if self.earlier.known else ""
        positives = f"SELECT user_id, item_id, {number} FROM ({self.placed_positives()}) AS p {of_today}"
        chunk = f"CAST(FLOOR(number / {self.history}) AS BIGINT)"
        items = self._engine.list_of("item_id", "number")
        return f"SELECT user_id, {chunk} AS chunk, {items} AS items FROM ({positives}) AS p GROUP BY user_id, {chunk}"

    def _impressions(self) -> str:
        train, test = (f"SUM(CASE WHEN {rule} THEN 1 ELSE 0 END)" for rule in ("split <= 0", "split = 2"))
        columns = f"CAST({train} AS BIGINT) AS train, CAST({test} AS BIGINT) AS test"
        return f"SELECT item_id, {columns} FROM by_item GROUP BY item_id"


def _earlier(key: str, over: str) -> list[str]:
    rank = f"RANK() OVER (PARTITION BY {key}_id ORDER BY moment) - 1"  # cheaper than a count over a frame
    return [f"{rank} AS {key}_rows", f"{_sum('label', over)} AS {key}_clicks"]


def _sum(column: str, over: str) -> str:
    # Engines add integers in a wider type, which Parquet may not have: hence the cast.
    return f"COALESCE(CAST(SUM({column}) {over} AS BIGINT), 0)"


def _nothing(*names: str) -> str:
    return ", ".join(f"CAST(0 AS BIGINT) AS {name}" for name in names)


def moments(engine: Engine, values: str) -> list[int]:
    """Of a query with the columns logs (null: missing), negative and train (0 or 1), exactly:

    number, sum and sum of squares of the logarithms of train, in units of `ordered_events.LOG_UNIT`; missing values and
    negative numbers of all rows.
    """
    known = "train = 1 AND logs IS NOT NULL"
    columns = (
        f"SUM(CASE WHEN {known} THEN 1 ELSE 0 END)",
        f"SUM(CASE WHEN {known} THEN CAST(logs AS DECIMAL(38, 0)) END)",
        f"SUM(CASE WHEN {known} THEN CAST(logs * logs AS DECIMAL(38, 0)) END)",
        "SUM(CASE WHEN logs IS NULL THEN 1 ELSE 0 END)",
        "SUM(negative)",
    )
    texts = ", ".join(f"CAST(COALESCE({sql}, 0) AS VARCHAR(50))" for sql in columns)
    row = table(engine, f"SELECT {texts} FROM ({values}) AS v")
    return [int(column[0].as_py().partition(".")[0]) for column in row.columns]
