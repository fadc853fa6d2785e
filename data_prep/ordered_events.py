"""From a source's events to relations with dense ids, in order of time.

The relations, in the order in which they are made:

    events     row, user, item (text), moment (seconds since 1970), day, label, own columns: in the source's order
    ids_user, ids_item, ids_K     text, id: the ids of a column
    list_K     row, ids: a list column of the events
    days       day, its events, events before it, the number of the part of the log that holds it
    ordered    event (its number in time), user_id, item_id, moment, day, label, own columns

Own columns, whose names are any text, are called own_K. Ids of known values come first, others follow in order of their
first row. A part is consecutive whole days with at most `partition_rows` events, or one busier day.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.errors import ContractError
from sidrec.schema import ITEM_ID, USER_ID

from .column_checks import ColumnChecks, ValueCounts
from .engine import Engine, table, value
from .events import ITEM, LABEL, TIMESTAMP, USER, EventColumns, Source

SECONDS_PER_DAY = 86_400
NEVER = np.iinfo(np.int64).max
NUMBERED = 1_000_000  # rows whose new ids are numbered together
LONGEST_LIST = 1 << 31
LOG_UNIT = 1 << 20  # logarithms of numbers are summed as integers, in units of 2^-20: no order of the sum matters


@dataclass(frozen=True)
class OrderedEvents:
    """The relations above. rows: number of events. days: the relation `days`. first: number of the first event."""

    engine: Engine
    columns: EventColumns
    rows: int
    days: pa.Table
    first: int = 0

    @property
    def own(self) -> dict[str, str]:
        """Column of the events -> its name in relations."""
        return own_columns(self.columns)

    @property
    def parts(self) -> int:
        return int(pc.max(self.days["part"]).as_py()) + 1

    def ids(self, column: str) -> Iterator[pa.Array]:
        """Source ids of an id column (user_id, item_id, cat_*), in order of their ids."""
        for batch in self.engine.read(f"SELECT text FROM {ids_relation(self.columns, column)} ORDER BY id"):
            yield batch.column(0)

    def lowest_id(self, column: str) -> int:
        """The lowest id among the events. column: user_id or item_id."""
        return int(value(self.engine, f"SELECT MIN({column}) FROM ordered"))

    def time_of(self, event: int) -> int:
        """Time of an event, by its place in this log, from 0."""
        return int(value(self.engine, f"SELECT MAX(moment) FROM ordered WHERE event = {self.first + event}"))

    @cached_property
    def times(self) -> tuple[int, int]:
        """Times of the first and the last event."""
        found = table(self.engine, "SELECT MIN(moment), MAX(moment) FROM ordered")
        return int(found.column(0)[0].as_py()), int(found.column(1)[0].as_py())

    def events_by_item(self, items: int) -> np.ndarray:
        """Number of events by item id, int64 [items + 1]."""
        counts = np.zeros(items + 1, np.int64)
        for batch in self.engine.read("SELECT item_id, CAST(COUNT(*) AS BIGINT) FROM ordered GROUP BY item_id"):
            counts[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
        return counts


def own_columns(columns: EventColumns) -> dict[str, str]:
    """Column of the events -> its name in relations."""
    kinds = (*columns.dense, *columns.numbers, *columns.labels, *columns.extra, *columns.categorical, *columns.lists)
    return {name: f"own_{place}" for place, name in enumerate(kinds)}


def ids_relation(columns: EventColumns, column: str) -> str:
    """The relation of a column's ids."""
    return {USER_ID: "ids_user", ITEM_ID: "ids_item"}.get(column) or "ids_" + own_columns(columns)[column]


def order_events(
    engine: Engine,
    source: Source,
    known: Mapping[str, Sequence[str]],
    partition_rows: int,
    *,
    implicit: bool,
    first: int = 0,
) -> OrderedEvents:
    """Makes the relations. known: id column -> source ids that have the first ids, in their order.

    implicit: the log holds positives only. first: number of the first event, after those of earlier logs. Raises
    ContractError for invalid events, an empty log, one without a positive, and columns that cannot be meant.
    """
    columns = source.event_columns
    _read(engine, source, partition_rows)
    id_columns = {USER_ID: USER, ITEM_ID: ITEM, **own_columns_of_ids(columns)}
    for column, name in id_columns.items():
        listed = column in columns.lists
        _number_ids(engine, name, ids_relation(columns, column), known.get(column, ()), listed=listed)
    days = _days(engine, partition_rows, first)
    if not engine.stored("ordered"):
        engine.make("ordered", _ordered(columns))
        engine.drop("events")
    checks = ColumnChecks(source.name, columns)
    checks.restore(table(engine, "SELECT state FROM checks").column(0)[0].as_py())
    checks.judge(implicit, value_counts(engine, columns))
    return OrderedEvents(engine, columns, int(pc.sum(days["events"]).as_py()), days, first)


def own_columns_of_ids(columns: EventColumns) -> dict[str, str]:
    """cat_* column of the events -> its name in relations."""
    own = own_columns(columns)
    return {name: own[name] for name in (*columns.categorical, *columns.lists)}


# Reading.


def _read(engine: Engine, source: Source, partition_rows: int) -> None:
    """Writes `events`, and `checks`: what ColumnChecks counted on the way."""
    if engine.stored("checks"):
        return
    columns, rows, positives = source.event_columns, 0, 0
    checks = ColumnChecks(source.name, columns)
    with engine.writer("events", _events_schema(columns)) as writer:
        for events in source.events():
            if events.num_rows:
                checks.add(events)
                positives += pc.sum(pc.greater(events[LABEL], 0)).as_py() or 0
                writer.write_table(_as_relation(events, columns, rows, partition_rows))
                rows += events.num_rows
        if not rows:
            raise ContractError(source.files[0] if source.files else source.name, "events", "none")
        if not positives:
            raise ContractError(source.name, "at least one positive event", f"{rows} events, all negative")
    engine.put("checks", pa.table({"state": [checks.save()]}))


def _events_schema(columns: EventColumns) -> pa.Schema:
    own = own_columns(columns)
    kinds: dict[str, pa.DataType] = dict.fromkeys((*columns.dense, *columns.labels, *columns.extra), pa.float32())
    kinds |= dict.fromkeys(columns.numbers, pa.float64()) | dict.fromkeys(columns.categorical, pa.string())
    kinds |= dict.fromkeys(columns.lists, pa.list_(pa.string()))
    fixed = [("row", pa.int64()), (USER, pa.string()), (ITEM, pa.string()), ("moment", pa.int64()), ("day", pa.int64())]
    logs = [(f"log_{own[name]}", pa.int64()) for name in columns.numbers]
    return pa.schema([*fixed, (LABEL, pa.int8()), *((own[name], kinds[name]) for name in own), *logs])


def _as_relation(events: pa.Table, columns: EventColumns, rows: int, partition_rows: int) -> pa.Table:
    row_E = rows + np.arange(events.num_rows)
    at_E = events[TIMESTAMP].to_numpy()
    if not columns.timed:  # each part is given a day
        at_E = row_E // partition_rows * SECONDS_PER_DAY
    found: dict[str, object] = {
        "row": row_E,
        USER: events[USER],
        ITEM: events[ITEM],
        "moment": at_E,
        "day": at_E // SECONDS_PER_DAY,
        LABEL: events[LABEL].to_numpy().astype(np.int8),
    }
    own = own_columns(columns)
    found |= {own[name]: events[name] for name in own}
    for name in columns.numbers:
        values_E = events[name].to_numpy()
        found[f"log_{own[name]}"] = log_units(values_E)
    return pa.table(found, schema=_events_schema(columns))


def log_units(values: np.ndarray) -> pa.Array:
    """log(1 + max(x, 0)) in whole units of LOG_UNIT, int64; null where x is NaN."""
    missing = np.isnan(values)
    logs = np.rint(np.log1p(np.maximum(np.where(missing, 0.0, values), 0.0)) * LOG_UNIT)
    return pa.array(logs.astype(np.int64), mask=missing)


# Ids.


def _number_ids(engine: Engine, name: str, relation: str, known: Sequence[str], *, listed: bool) -> None:
    """Makes the ids of the column `name` of the events. listed: it holds lists, whose values count in their order."""
    exploded = engine.exploded("events", "row", name) if listed else ""
    if not engine.stored(relation):
        places = np.arange(len(known)) + 1
        engine.put(f"known_{name}", pa.table({"text": pa.array(known, pa.string()), "place": places}))
        values, place = (f"({exploded})", f"row * {LONGEST_LIST} + place") if listed else ("events", "row")
        text = "text" if listed else name
        found = f"SELECT {text} AS text, MIN({place}) AS first FROM {values} AS v WHERE {text} <> '' GROUP BY {text}"
        new = f"SELECT n.text, n.first FROM ({found}) AS n LEFT JOIN known_{name} AS k ON k.text = n.text"
        engine.make(f"new_{name}", f"{new} WHERE k.text IS NULL")
        bucket = f"CAST(FLOOR(first / {NUMBERED * (LONGEST_LIST if listed else 1)}) AS BIGINT)"
        numbered = numbering(engine, f"new_{name}", bucket, "first", len(known) + 1)
        first = f"SELECT text, CAST(place AS INTEGER) AS id FROM known_{name}"
        engine.make(relation, f"{first} UNION ALL SELECT text, CAST(number AS INTEGER) AS id FROM ({numbered}) AS n")
    if listed and not engine.stored(f"list_{name}"):
        joined = f"SELECT v.row, v.place, i.id FROM ({exploded}) AS v JOIN {relation} AS i ON i.text = v.text"
        ids = f"{engine.list_of('id', 'place')} AS ids"
        engine.make(f"list_{name}", f"SELECT row, {ids} FROM ({joined}) AS j GROUP BY row")


def numbering(engine: Engine, relation: str, bucket: str, order: str, first: int) -> str:
    """A query of the relation's columns and `number`: `first` and up, in the order of bucket and `order`.

    bucket: SQL that does not decrease with `order`. Rows are sorted within a bucket only, so that no sort is of all.
    """
    counts = table(engine, f"SELECT {bucket} AS bucket, CAST(COUNT(*) AS BIGINT) AS n FROM {relation} GROUP BY 1")
    counts = counts.sort_by("bucket") if counts.num_rows else pa.table({"bucket": pa.array([], pa.int64()), "n": []})
    sizes = counts["n"].to_numpy()
    before = np.cumsum(sizes, dtype=np.int64) - sizes
    engine.put(f"{relation}_buckets", pa.table({"bucket": counts["bucket"], "before": before.astype(np.int64)}))
    place = f"ROW_NUMBER() OVER (PARTITION BY r.bucket ORDER BY r.{order}) - 1 + b.before + {first}"
    return (
        f"SELECT r.*, {place} AS number FROM (SELECT *, {bucket} AS bucket FROM {relation}) AS r "
        f"JOIN {relation}_buckets AS b ON b.bucket = r.bucket"
    )


# Order.


def _days(engine: Engine, partition_rows: int, first: int) -> pa.Table:
    """day, events, before (number of the day's first event), part."""
    if not engine.stored("days"):
        found = table(engine, "SELECT day, CAST(COUNT(*) AS BIGINT) AS events FROM events GROUP BY day").sort_by("day")
        events = found["events"].to_numpy()
        parts: list[int] = []
        filled = 0
        for number in events:
            begins = not parts or filled + number > partition_rows
            parts.append((parts[-1] + 1 if parts else 0) if begins else parts[-1])
            filled = number if begins else filled + number
        columns = {"before": first + np.cumsum(events) - events, "part": np.asarray(parts, np.int64)}
        engine.put("days", pa.table({"day": found["day"], "events": events, **columns}))
    return table(engine, "SELECT day, events, before, part FROM days").sort_by("day")


def _ordered(columns: EventColumns) -> str:
    own = own_columns(columns)
    whole = [own[name] for name in own if name not in (*columns.categorical, *columns.lists)]
    whole += [f"log_{own[name]}" for name in columns.numbers]
    selected = [f"e.{name}" for name in whole]
    joins = ["JOIN days AS d ON d.day = e.day"]
    joins += [f"JOIN ids_{name} AS i_{name} ON i_{name}.text = e.{name}" for name in (USER, ITEM)]
    for name in (own[column] for column in columns.categorical):
        selected.append(f"COALESCE(i_{name}.id, 0) AS {name}")
        joins.append(f"LEFT JOIN ids_{name} AS i_{name} ON i_{name}.text = e.{name}")
    for name in (own[column] for column in columns.lists):
        selected.append(f"l_{name}.ids AS {name}")
        joins.append(f"LEFT JOIN list_{name} AS l_{name} ON l_{name}.row = e.row")
    event = "d.before + ROW_NUMBER() OVER (PARTITION BY e.day ORDER BY e.moment, e.row) - 1 AS event"
    fixed = [event, "i_user.id AS user_id", "i_item.id AS item_id", "e.moment", "e.day", "e.label"]
    return f"SELECT {', '.join([*fixed, *selected])} FROM events AS e {' '.join(joins)}"


def value_counts(engine: Engine, columns: EventColumns) -> dict[str, ValueCounts]:
    """Facts about the values of users, items and categories, for `ColumnChecks.judge`."""
    own = own_columns(columns)
    names = {USER: USER_ID, ITEM: ITEM_ID, **{name: own[name] for name in columns.categorical}}
    found = {}
    for name, column in names.items():
        by_id = f"SELECT {column} AS id, COUNT(*) AS n, SUM(label) AS p FROM ordered GROUP BY {column}"
        known = "SUM(CASE WHEN id > 0 THEN 1 ELSE 0 END)"
        missing = "SUM(CASE WHEN id = 0 THEN n ELSE 0 END)"
        mixed = "SUM(CASE WHEN p > 0 AND p < n THEN 1 ELSE 0 END)"
        wanted = ", ".join(f"CAST({sql} AS BIGINT)" for sql in (known, missing, mixed))
        row = table(engine, f"SELECT {wanted} FROM ({by_id}) AS v")
        found[name] = ValueCounts(*(int(column[0].as_py()) for column in row.columns))
    return found
