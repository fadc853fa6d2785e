"""Events come out in time order, ties in the source's order, in files of bounded parts."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings, build
from data_prep.engine import DuckEngine, table
from data_prep.ordered_events import order_events
from sidrec import schema
from sidrec.schema import ContractError
from tests.data_prep.event_lists import DAY, Event, EventList, make_log, read_rows


def busy_log(rows: int, days: int, seed: int = 0) -> list[Event]:
    random = np.random.default_rng(seed)
    drawn = zip(
        random.integers(1, 30, rows).tolist(),
        random.integers(1, 50, rows).tolist(),
        random.integers(0, days * DAY, rows).tolist(),
        random.integers(0, 2, rows).tolist(),
        strict=True,
    )
    return [Event(*values) for values in drawn]


def test_time_order_with_ties_in_the_sources_order(tmp_path: Path) -> None:
    log = [Event(1, 1, 500, 1), Event(2, 2, 100, 0), Event(3, 3, 500, 0), Event(4, 4, 100, 1), Event(5, 5, 0, 0)]
    ordered = order_events(DuckEngine(tmp_path, 1 << 30, 1), EventList(tuple(log)), {}, 100, implicit=False)
    items = table(ordered.engine, "SELECT item_id FROM ordered ORDER BY event")
    assert items["item_id"].to_pylist() == [5, 2, 4, 1, 3]
    assert [ordered.time_of(event) for event in range(5)] == [0, 100, 100, 500, 500]


def test_a_part_holds_its_events_or_one_busier_day(tmp_path: Path) -> None:
    log = [Event(1, 1, day * DAY + second, 1) for day, rows in enumerate((3, 2, 9, 1)) for second in range(rows)]
    ordered = order_events(DuckEngine(tmp_path, 1 << 30, 1), EventList(tuple(log)), {}, 5, implicit=False)
    assert ordered.days["part"].to_pylist() == [0, 0, 1, 2]


def test_parts_change_files_and_no_row(tmp_path: Path) -> None:
    log = busy_log(2_000, days=60)
    assert make_log(log, tmp_path / "parts", partition_rows=100) == make_log(log, tmp_path / "whole")
    files = schema.load_manifest(tmp_path / "parts" / "log").files("train")
    assert len(files) > 10
    assert max(file.rows for file in files) <= 100


def test_global_split_never_divides_a_timestamp(tmp_path: Path) -> None:
    """Ten events, the last four at one second: the last 20% are 2 events, and their whole second goes to test."""
    log = [Event(1, 1, second, 1) for second in range(6)] + [Event(2, 2, 50, 0)] * 4
    rows = make_log(log, tmp_path / "out", test_share=0.2, validation_share=0)
    assert [row["split"] for row in rows] == ["train"] * 6 + ["test"] * 4


def test_per_user_split_takes_each_users_last_share(tmp_path: Path) -> None:
    """User 1 has ten events, user 2 five: 20% are the last two and the last one."""
    log = [Event(1, 1, second, 1) for second in range(10)] + [Event(2, 2, 100 + second, 0) for second in range(5)]
    rows = make_log(log, tmp_path / "out", split="per-user-last", test_share=0.2, validation_share=0.1)
    of = {
        split: [(r["user_id"], r["timestamp"]) for r in rows if r["split"] == split] for split in ("validation", "test")
    }
    assert of == {"validation": [(1, 7)], "test": [(1, 8), (1, 9), (2, 104)]}


def test_last_event_split_takes_one_event_of_each_user_for_test_and_one_for_validation(tmp_path: Path) -> None:
    """User 1 has four events, the last three at one time, in the source's order; user 2 three; user 3 only two."""
    log = [Event(1, 1, 0, 1), Event(1, 2, 9, 1), Event(1, 3, 9, 0), Event(1, 1, 9, 1)]
    log += [
        Event(2, 1, 5 * DAY, 1),
        Event(2, 3, 2 * DAY, 1),
        Event(2, 2, 3 * DAY, 1),
        Event(3, 1, 0, 1),
        Event(3, 2, 8, 1),
    ]
    rows = make_log(log, tmp_path / "out", split="last", partition_rows=2)
    of = {
        split: [(r["user_id"], r["item_id"]) for r in rows if r["split"] == split]
        for split in ("train", "validation", "test")
    }
    assert of == {
        "train": [(1, 1), (3, 1), (3, 2), (1, 2), (2, 3)],
        "validation": [(1, 3), (2, 2)],
        "test": [(1, 1), (2, 1)],
    }
    test = next(row for row in rows if row["split"] == "test")
    assert test["history"] == [1], "events at the row's own time are not before it"


def test_last_event_split_has_no_shares(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="--split last: expected no --test-share"):
        make_log(busy_log(50, days=5), tmp_path / "out", split="last", test_share=0.2)


def test_train_impressions_count_train_rows_only(tmp_path: Path) -> None:
    log = [Event(1, 1, second, 1) for second in range(8)] + [Event(1, 2, 8, 0), Event(1, 1, 9, 0)]
    make_log(log, tmp_path / "out", test_share=0.2, validation_share=0)
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items["item_id"].to_pylist() == [1, 2]
    assert items["train_impressions"].to_pylist() == [8, 0]


def test_existing_folder_is_kept_unless_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_log(busy_log(50, days=5), out)
    with pytest.raises(ContractError, match="--overwrite"):
        make_log(busy_log(60, days=5), out)
    assert len(read_rows(out)) == 50
    assert len(make_log(busy_log(60, days=5), out, overwrite=True)) == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_foreign_partial_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(ContractError, match="unfinished run"):
        build(EventList((Event(1, 1, 1, 1),)), tmp_path / "out", LogSettings(), implicit=False)
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"
