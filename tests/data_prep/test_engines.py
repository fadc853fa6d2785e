"""Every engine, with any threads, memory and parts, makes the rows of the specification in plain loops."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec import schema
from tests.data_prep.event_lists import DAY, read_rows
from tests.data_prep.plain_log import Raw, plain_rows
from tests.digests import digest


def hard_log(rows: int, days: int, seed: int = 0) -> list[Raw]:
    """Ties in time, repeated events, a user and an item with a tenth of the rows each, gaps of days."""
    random = np.random.default_rng(seed)
    users, items = max(4, rows // 12), max(6, rows // 25)
    user_N = np.where(random.random(rows) < 0.1, 1, (users * random.random(rows) ** 2).astype(int))
    item_N = np.where(random.random(rows) < 0.1, 2, (items * random.random(rows) ** 3).astype(int))
    day_N = np.sort(random.choice(3 * days, days, replace=False))[random.integers(0, days, rows)]
    second_N = day_N * DAY + random.integers(0, 1 + rows // days // 2, rows) * 60  # so many have equal times
    events = [
        Raw(f"u{user}", f"i{item}", int(second), int(random.random() < 0.4))
        for user, item, second in zip(user_N, item_N, second_N, strict=True)
    ]
    return events + events[: rows // 50]


def write_log(events: list[Raw], folder: Path) -> Path:
    """Three files of unequal length, as another program leaves them."""
    for number, part in enumerate((events[:10], events[10 : len(events) // 2], events[len(events) // 2 :])):
        columns = {
            "user_id": pa.array([event.user for event in part]),
            "item_id": pa.array([event.item for event in part]),
            "timestamp": pa.array([event.second for event in part], pa.int64()),
            "label": pa.array([event.label for event in part], pa.int8()),
        }
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet")
    return folder


def prepare(log: Path, out: Path, *, implicit: bool, **settings: Any) -> list[dict[str, Any]]:
    columns = Columns() if implicit else Columns(label_column="label")
    InteractionsCommand(log, out, columns, LogSettings(**settings), vectors="none").run()
    return read_rows(out)


SETTINGS: dict[str, Any] = {"history": 5, "recent_days": 7, "window_days": 9, "test_share": 0.2}


@pytest.mark.parametrize("implicit", [False, True], ids=["labels", "negatives"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_those_of_the_specification(implicit: bool, seed: int, tmp_path: Path) -> None:
    events = hard_log(600, days=40, seed=seed)
    settings = {**SETTINGS, "seed": seed, "negatives": 1 + seed}
    found = prepare(write_log(events, tmp_path / "log"), tmp_path / "out", implicit=implicit, **settings)
    assert found == plain_rows(events, LogSettings(**settings), implicit=implicit)


def test_twenty_thousand_events(tmp_path: Path) -> None:
    events = hard_log(20_000, days=200)
    found = prepare(write_log(events, tmp_path / "log"), tmp_path / "out", implicit=True, **SETTINGS)
    assert found == plain_rows(events, LogSettings(**SETTINGS), implicit=True)


@pytest.mark.parametrize("implicit", [False, True], ids=["labels", "negatives"])
def test_threads_memory_and_parts_change_no_row(implicit: bool, tmp_path: Path) -> None:
    log = write_log(hard_log(3_000, days=60), tmp_path / "log")
    bytes_of, rows_of = set(), []
    for threads, memory in itertools.product((1, 2), ("900MB", "2GB")):
        out = tmp_path / f"{threads}-{memory}"
        rows_of.append(prepare(log, out, implicit=implicit, threads=threads, memory=memory, **SETTINGS))
        bytes_of.add(str(digest(out)))
    rows_of.append(prepare(log, tmp_path / "parts", implicit=implicit, partition_rows=100, **SETTINGS))
    assert len(bytes_of) == 1
    assert all(rows == rows_of[0] for rows in rows_of)


def test_every_column_has_the_type_of_the_contract_in_files_of_many_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`read_rows` compares each file's columns and order in time with the contract; ids must not become doubles."""
    monkeypatch.setattr("data_prep.log_files.ROW_GROUP", 64)
    rows = prepare(write_log(hard_log(2_000, days=30), tmp_path / "log"), tmp_path / "out", implicit=True, **SETTINGS)
    files = schema.load_manifest(tmp_path / "out" / "log").files("train")
    groups = [pq.ParquetFile(tmp_path / "out" / "log" / file.path).metadata for file in files]
    assert max(group.num_row_groups for group in groups) > 10
    assert {group.row_group(0).num_rows for group in groups} == {64}
    assert len(rows) > 3_900
