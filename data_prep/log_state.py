"""The state of a log after its last event, from which the next day's preparation goes on (`--after FOLDER`).

FOLDER/state has a Parquet file for each relation; queries call it state_K:

    users       user_id, n, clicks, latest: rows, positives, time of the last row
    items       item_id, n, clicks
    positives   user_id, place, item_id: the user's latest `history` positives; place 0 is the latest, -1 the one before
    daily       item_id, day, n, clicks: of the last recent_days days, and of the last event's own day

and, of logs with sampled negatives:

    days        day, events: of the last window_days days, and of the last event's own day
    recent      event, item_id: the events of those days
    launched    item_id, day: the day of the item's launch
    pairs       user_id, item_id: the user took the item

`protocol["state"]` in the manifest has the rows of each file, the number of events so far, the time of the last one and
the settings that the state depends on. Rows of today are those that one preparation of all days makes, because every
count and window is a sum over earlier days, which a state holds as one number.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec import schema
from sidrec.errors import ContractError
from sidrec.io.files import readable, replaced_file

from .command import STATE, STATE_RELATIONS, state_file
from .engine import Engine, table
from .log_settings import LogSettings
from .ordered_events import SECONDS_PER_DAY, OrderedEvents

if TYPE_CHECKING:
    from .log_relations import LogRelations

VERSION = 1
ALWAYS = ("history", "recent_days", "seed")
KEYS = {"events", "last_timestamp", "rows", "settings"}
SAMPLING = ("negatives", "window_days", "floor_weight", "launch_draws")

ROW_GROUP = 1 << 17
ID, COUNT = pa.int32(), pa.int64()
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "users": {"user_id": ID, "n": COUNT, "clicks": COUNT, "latest": COUNT},
    "items": {"item_id": ID, "n": COUNT, "clicks": COUNT},
    "positives": {"user_id": ID, "place": COUNT, "item_id": ID},
    "daily": {"item_id": ID, "day": COUNT, "n": COUNT, "clicks": COUNT},
    "days": {"day": COUNT, "events": COUNT},
    "recent": {"event": COUNT, "item_id": ID},
    "launched": {"item_id": ID, "day": COUNT},
    "pairs": {"user_id": ID, "item_id": ID},
}
ROWS = "CAST(COUNT(*) AS BIGINT) AS n, CAST(SUM(label) AS BIGINT) AS clicks"
SUMS = "CAST(SUM(n) AS BIGINT) AS n, CAST(SUM(clicks) AS BIGINT) AS clicks"


@dataclass(frozen=True)
class State:
    """What is known of the events before a log. Without a folder, nothing is, and queries do not change.

    events: number of events so far. last: time of the last one. rows: file -> its rows. settings: see `settings_of`.
    """

    folder: Path | None = None
    events: int = 0
    last: int = -1
    rows: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path | None) -> "State":
        """Raises ContractError for a folder without a state, of another version, and for files that are not whole."""
        if folder is None:
            return cls()
        where, manifest = f"--after {folder}", folder / schema.LOG / schema.MANIFEST
        found: Any = schema.load_manifest(manifest.parent).protocol.get(STATE) if manifest.is_file() else None
        if not isinstance(found, dict):
            raise ContractError(where, "a data folder that was prepared with --keep-state", "one without a state")
        if found.get("version") != VERSION:
            expected = f"a state of version {VERSION}; prepare the folder again with this version of sidrec"
            raise ContractError(where, expected, found.get("version"))
        if not found.keys() >= KEYS or not set(found["rows"]) <= set(STATE_RELATIONS):
            raise ContractError(manifest, f"{STATE} with {sorted(KEYS)}", sorted(found))
        state = cls(folder, found["events"], found["last_timestamp"], found["rows"], found["settings"])
        for path, rows in zip(state.files, state.rows.values(), strict=True):
            with readable(path, f"{rows:,} rows of the state"):
                present = pq.read_metadata(path).num_rows
            if present != rows:
                raise ContractError(path, f"{rows:,} rows, as the manifest says", f"{present:,}")
        return state

    @property
    def known(self) -> bool:
        return self.folder is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read, besides the manifest."""
        return () if self.folder is None else tuple(state_file(self.folder, name) for name in self.rows)

    def check_settings(self, settings: LogSettings, *, sampled: bool) -> None:
        """Raises ContractError that names the first flag with another value than the state's."""
        if not self.known:
            return
        where, wanted = f"--after {self.folder}", settings_of(settings, sampled=sampled)
        kinds = {True: "positives only, with sampled negatives", False: "labels"}
        kept = SAMPLING[0] in self.settings
        if kept != sampled:
            raise ContractError(where, f"a log with {kinds[kept]}, as the state's", f"one with {kinds[sampled]}")
        for name, value in wanted.items():
            if value != self.settings.get(name):
                flag = f"--{name.replace('_', '-')}"
                raise ContractError(flag, f"{self.settings.get(name)}, as in the state of {where}", value)

    def check_later(self, first: int, log: object) -> None:
        """Raises ContractError unless `first`, the time of the log's first event, is after the state's last event."""
        if self.known and first <= self.last:
            expected = f"events after {_time(self.last)}, the last one in the state of --after {self.folder}"
            raise ContractError(log, expected, f"an event at {_time(first)}")

    def attach(self, engine: Engine) -> None:
        """Lets queries name the relations state_K."""
        for name, path in zip(self.rows, self.files, strict=True):
            engine.attach(f"state_{name}", path)

    def union(self, columns: str, relation: str, today: str) -> str:
        """SQL in brackets: `today`, a query of the columns, and those of the state's relation before it."""
        if not self.known:
            return f"({today})"
        return f"(SELECT {columns} FROM state_{relation} UNION ALL {today})"

    def days(self, log: OrderedEvents) -> pa.Table:
        """day, events: of the days with events that the state keeps, and of the log's; sorted by day."""
        today = log.days.select(["day", "events"])
        if not self.known:
            return today
        earlier = table(log.engine, "SELECT day, events FROM state_days").cast(today.schema)
        joined = pa.concat_tables([earlier, today]).group_by("day").aggregate([("events", "sum")])
        return joined.rename_columns({"events_sum": "events"}).select(["day", "events"]).sort_by("day")

    def protocol(self) -> dict[str, object]:
        """What the manifest of a folder that goes on from the state says."""
        if not self.known:
            return {}
        found: dict[str, object] = {"folder": str(self.folder), "events": self.events, "last_timestamp": self.last}
        found["words"] = "histories, counts and windows go on from the state of this folder, as if its events were read"
        if SAMPLING[0] in self.settings:
            found["words"] = (
                f"{found['words']}. Negatives of earlier days are those that were drawn then: items whose first "
                "positive came later were not launched yet, while one preparation of all days launches them up to "
                "window_days before that positive"
            )
        return {"state_from": found}


NO_STATE = State()


def settings_of(settings: LogSettings, *, sampled: bool) -> dict[str, object]:
    """The settings that a state depends on."""
    names = (*ALWAYS, *SAMPLING) if sampled else ALWAYS
    return {name: value for name, value in asdict(settings).items() if name in names}


# Writing.


def write_state(folder: Path, relations: "LogRelations", settings: LogSettings) -> dict[str, object]:
    """Writes folder/state from finished relations, joined with the state before them.

    Each file is one sorted query in row groups of one size: engines write the same bytes. Files of a process that was
    killed are kept. Returns protocol["state"] of the manifest.
    """
    (folder / STATE).mkdir(exist_ok=True)
    log, last = relations.log, relations.log.times[1]
    queries = _of_rows(relations, last // SECONDS_PER_DAY)
    if relations.sampled:
        queries |= _of_negatives(relations, last // SECONDS_PER_DAY - settings.window_days)
    rows = {}
    for name, query in queries.items():
        path = state_file(folder, name)
        if not path.exists():
            _write(path, log.engine.read(query), pa.schema(COLUMNS[name]))
        rows[name] = pq.read_metadata(path).num_rows
    return {
        "version": VERSION,
        "events": relations.earlier.events + log.rows,
        "last_timestamp": last,
        "rows": rows,
        "settings": settings_of(settings, sampled=relations.sampled),
    }


def _of_rows(relations: "LogRelations", last_day: int) -> dict[str, str]:
    earlier, since = relations.earlier, last_day - relations.recent_days
    users = f"SELECT user_id, {ROWS}, MAX(moment) AS latest FROM by_item GROUP BY user_id"
    items = f"SELECT item_id, {ROWS} FROM by_item GROUP BY item_id"
    daily = f"SELECT item_id, day, {ROWS} FROM by_item GROUP BY item_id, day"
    all_users = earlier.union("user_id, n, clicks, latest", "users", users)
    all_items = earlier.union("item_id, n, clicks", "items", items)
    all_daily = earlier.union("item_id, day, n, clicks", "daily", daily)
    found = {
        "users": f"SELECT user_id, {SUMS}, MAX(latest) AS latest FROM {all_users} AS u GROUP BY user_id "
        "ORDER BY user_id",
        "items": f"SELECT item_id, {SUMS} FROM {all_items} AS u GROUP BY item_id ORDER BY item_id",
        "daily": f"SELECT item_id, day, {SUMS} FROM {all_daily} AS u WHERE day >= {since} GROUP BY item_id, day "
        "ORDER BY item_id, day",
    }
    if relations.has_histories:
        place = "1 - ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY place DESC) AS place"
        ranked = f"SELECT user_id, {place}, item_id FROM ({relations.placed_positives()}) AS p"
        kept = f"SELECT * FROM ({ranked}) AS r WHERE place > -{relations.history}"
        found["positives"] = f"{kept} ORDER BY user_id, place"
    return found


def _of_negatives(relations: "LogRelations", since: int) -> dict[str, str]:
    """since: the first day that a window of the next log may reach."""
    earlier, log = relations.earlier, relations.log
    days = earlier.days(log)
    kept = [(day, events) for day, events in zip(*days.to_pydict().values(), strict=True) if day >= since]
    first = earlier.events + log.rows - sum(events for _, events in kept)
    log.engine.put("days_kept", pa.table({"day": [day for day, _ in kept], "events": [events for _, events in kept]}))
    recent = earlier.union("event, item_id", "recent", "SELECT event, item_id FROM ordered")
    pairs = earlier.union("user_id, item_id", "pairs", "SELECT user_id, item_id FROM ordered")
    return {
        "days": "SELECT day, events FROM days_kept ORDER BY day",
        "recent": f"SELECT event, item_id FROM {recent} AS u WHERE event >= {first} ORDER BY event",
        "launched": "SELECT item_id, day FROM launched ORDER BY item_id",
        "pairs": f"SELECT user_id, item_id FROM {pairs} AS u GROUP BY user_id, item_id ORDER BY user_id, item_id",
    }


def _write(path: Path, batches: Iterator[pa.RecordBatch], arrow: pa.Schema) -> None:
    with replaced_file(path, one_writer=True) as partial, pq.ParquetWriter(partial, arrow, compression="zstd") as file:
        for rows in _groups(batches, arrow):
            file.write_table(rows, row_group_size=ROW_GROUP)


def _groups(batches: Iterator[pa.RecordBatch], arrow: pa.Schema) -> Iterator[pa.Table]:
    """The rows in tables of ROW_GROUP rows, and the rest."""
    held = arrow.empty_table()
    for batch in batches:
        held = pa.concat_tables([held, pa.Table.from_batches([batch]).cast(arrow)])
        while held.num_rows >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP)
            held = held.slice(ROW_GROUP)
    if held.num_rows:
        yield held.combine_chunks()


def _time(seconds: int) -> str:
    return f"{pd.Timestamp(seconds, unit='s').isoformat()} ({seconds})"
