"""A raw log held in a list, what a finished data folder says row by row, and the slow truth to compare it with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.build import LogSettings, build
from data_prep.events import EventColumns, IdMap, Items
from sidrec import schema
from sidrec.data.rows import broken_rows, check_time_order

DAY = 86_400


class Event(NamedTuple):
    user: int
    item: int
    timestamp: int
    label: int


@dataclass(frozen=True)
class EventList:
    """Events in the source's order; user and item ids keep their numbers. `block` events come at a time."""

    listed: tuple[Event, ...]
    block: int = 7
    name: str = field(default="list", init=False)
    files: tuple[Path, ...] = field(default=(), init=False)
    event_columns: EventColumns = field(default=EventColumns(), init=False)
    labels: str = field(default="as listed", init=False)

    def catalog(self) -> list[str]:
        return [str(item) for item in range(1, max(event.item for event in self.listed) + 1)]

    def events(self) -> Iterator[pa.Table]:
        for begin in range(0, len(self.listed), self.block):
            part = self.listed[begin : begin + self.block]
            yield pa.table(
                {
                    "user": [str(event.user) for event in part],
                    "item": [str(event.item) for event in part],
                    "timestamp": pa.array([event.timestamp for event in part], pa.int64()),
                    "label": pa.array([event.label for event in part], pa.float32()),
                }
            )

    def items(self, ids: IdMap) -> Items:
        names = ids.source_ids()
        return Items(pa.table({"source_id": names, "title": names, "content": names}), {}, {}, {})


def make_log(events: Sequence[Event], out: Path, implicit: bool = False, **settings: Any) -> list[dict[str, Any]]:
    """Builds and publishes a data folder, and returns its rows."""
    build(EventList(tuple(events)), out, LogSettings(**settings), implicit).publish()
    return read_rows(out)


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All rows of a data folder with their split, file by file; checks them against the contract on the way."""
    manifest = schema.load_manifest(out / "log")
    rows: list[dict[str, Any]] = []
    for split, files in manifest.splits.items():
        latest = -np.inf
        for file in files:
            table = pq.read_table(out / "log" / file.path)
            schema.check_columns(table.schema, manifest, file.path)
            assert not broken_rows(table, manifest)
            times = table[schema.TIMESTAMP].to_numpy()
            check_time_order(times, file.path, latest)
            assert (file.rows, file.first_timestamp, file.last_timestamp) == (len(times), times[0], times[-1])
            latest = times[-1]
            rows += [{**row, "split": split} for row in table.to_pylist()]
    return rows


def oracle(rows: Sequence[dict[str, Any]], row: dict[str, Any], history: int, recent_days: int) -> dict[str, Any]:
    """What the row should say, found by looking at every row that is strictly earlier. Rows in their order in time."""
    earlier = [other for other in rows if other["timestamp"] < row["timestamp"]]
    own = [other for other in earlier if other["user_id"] == row["user_id"]]
    item = [other for other in earlier if other["item_id"] == row["item_id"]]
    today = row["timestamp"] // DAY
    lately = [other for other in item if today - recent_days <= other["timestamp"] // DAY < today]
    liked = [other["item_id"] for other in own if other["label"] == 1]
    gap = row["timestamp"] - max(other["timestamp"] for other in own) if own else 0
    return {
        "history": liked[max(0, len(liked) - history) :],
        "stat_exposures": len(item),
        "stat_clicks": sum(other["label"] for other in item),
        "stat_exposures_recent": len(lately),
        "stat_clicks_recent": sum(other["label"] for other in lately),
        "int_user_events": np.log1p(len(own)),
        "int_user_click_rate": (len(liked) + 1) / (len(own) + 2),
        "int_days_since_last": np.log1p(gap / DAY),
    }
