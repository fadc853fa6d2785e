"""No row sees its own or a later event: against a slow oracle, on random logs full of ties, for any partition size."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data_prep.event_lists import DAY, Event, make_log, oracle

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
times = st.one_of(st.integers(0, 6 * DAY), st.integers(0, 6).map(lambda day: day * DAY))
event = st.builds(Event, st.integers(1, 4), st.integers(1, 5), times, st.integers(0, 1))
logs = st.lists(event, min_size=8, max_size=40).filter(
    lambda log: any(e.label for e in log) and len({e.timestamp for e in log}) > 5
)


def rows_of(log: list[Event], **flags: Any) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        return make_log(log, Path(folder) / "out", test_share=0.3, validation_share=0.0, **flags)


@QUICK
@given(log=logs, partition_rows=st.integers(1, 50), history=st.integers(0, 3), days=st.integers(1, 3))
def test_statistics_of_a_row_count_earlier_rows_only(
    log: list[Event], partition_rows: int, history: int, days: int
) -> None:
    rows = rows_of(log, partition_rows=partition_rows, history=history, recent_days=days)
    assert len(rows) == len(log)
    for row in rows:
        expected = oracle(rows, row, history, days)
        assert row["history"] == expected.pop("history")
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)


@QUICK
@given(log=logs, partition_rows=st.integers(1, 50), data=st.data())
def test_a_later_event_changes_no_earlier_row(log: list[Event], partition_rows: int, data: st.DataObject) -> None:
    """The last events get other users, items and labels; per-user splits aside, rows before them stay as they were."""
    moment = data.draw(st.sampled_from(sorted({e.timestamp for e in log})[4:]), label="moment")
    changed = [
        e if e.timestamp < moment else data.draw(event, label="instead")._replace(timestamp=e.timestamp) for e in log
    ]
    if not any(e.label for e in changed):
        changed[0] = changed[0]._replace(label=1)
        log = [changed[0], *log[1:]]
    before = [row for row in rows_of(log, partition_rows=partition_rows) if row["timestamp"] < moment]
    after = [row for row in rows_of(changed, partition_rows=partition_rows) if row["timestamp"] < moment]
    assert _users_by_first_row(before) == _users_by_first_row(after)


def _users_by_first_row(rows: list[dict]) -> list[dict]:
    """User ids are given out in the source's order, which a changed event may alter: name users by their first row."""
    names: dict[int, int] = {}
    return [{**row, "user_id": names.setdefault(row["user_id"], len(names))} for row in rows]


def test_worked_example(tmp_path: Path) -> None:
    """User 1 likes item 1 on day 0 and item 2 on day 1; two users meet item 1 at the same second of day 2."""
    log = [
        Event(1, 1, 100, 1),
        Event(1, 2, DAY + 100, 1),
        Event(1, 1, 2 * DAY, 0),
        Event(2, 1, 2 * DAY, 1),
        Event(2, 2, 2 * DAY + 1, 0),
    ]
    rows = make_log(log, tmp_path / "out", history=2, recent_days=1, test_share=0.2, validation_share=0)
    assert [row["history"] for row in rows] == [[], [1], [1, 2], [], [1]]
    assert [row["stat_exposures"] for row in rows] == [0, 0, 1, 1, 1]
    assert [row["stat_clicks"] for row in rows] == [0, 0, 1, 1, 1]
    assert [row["stat_exposures_recent"] for row in rows] == [0, 0, 0, 0, 1]  # day 0 has left the window of day 2
    assert [row["int_user_events"] for row in rows] == pytest.approx(np.log1p([0, 1, 2, 0, 1]))
    assert rows[1]["int_days_since_last"] == pytest.approx(np.log1p(1.0))
