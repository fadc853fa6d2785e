"""Histories and statistics that know more than what came before a row are found; sound ones are not accused."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec.errors import printed_warnings
from tests.data_prep.own_logs import TRAIN, edit, own_log, prepare, run, with_column

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(autouse=True)
def _no_earlier_warnings() -> Iterator[None]:
    printed_warnings.clear()
    yield
    printed_warnings.clear()


def warnings_of(prepared: Path, folder: Path, change: Change) -> list[str]:
    """Warnings about a log whose train split is changed."""
    data = own_log(prepared, folder / "own")
    edit(data / "log" / TRAIN, change, group_rows=10_000)
    run(data, check=True)
    return list(printed_warnings)


def test_prepared_logs_raise_no_warning(prepared: Path, tmp_path: Path) -> None:
    assert warnings_of(prepared, tmp_path, lambda table: table) == []


@pytest.mark.parametrize("split", ["per-user-last", "last"])
def test_splits_by_user_and_sampled_negatives_overlap_and_raise_no_other(
    prepared: Path, tmp_path: Path, split: str
) -> None:
    rows = pq.read_table(prepared.parent / "raw.parquet")
    pq.write_table(rows.filter(pa.compute.field("label") == 1).drop_columns(["label"]), tmp_path / "raw.parquet")
    settings = LogSettings(split=split, history=5)  # type: ignore[arg-type]
    InteractionsCommand(tmp_path / "raw.parquet", tmp_path / "data", Columns(), settings, vectors="none").run()
    printed_warnings.clear()
    run(own_log(tmp_path / "data", tmp_path / "own"), check=True)
    assert len(printed_warnings) == 2  # validation and test begin before train ends
    assert all("training sees what is later" in line for line in printed_warnings)


def counted(table: pa.Table, count: Callable[[np.ndarray, np.ndarray, int], float]) -> list[float]:
    """A statistic for each row: count(times of the item, its labels, row's place among them)."""
    items = table["item_id"].to_numpy()
    found = np.zeros(len(items), dtype=np.float32)
    for item in np.unique(items):
        rows = np.flatnonzero(items == item)
        times, labels = (table[name].to_numpy()[rows] for name in ("timestamp", "label"))
        found[rows] = [count(times, labels, place) for place in range(len(rows))]
    return list(found)


def set_count(name: str, count: Callable[[np.ndarray, np.ndarray, int], float]) -> Change:
    return lambda table: with_column(name, lambda _: counted(table, count))(table)


STATISTICS: list[tuple[Change, str]] = [
    (set_count("stat_clicks", lambda time, label, row: label[time <= time[row]].sum()), "stat_clicks counts the row"),
    (set_count("stat_exposures", lambda time, label, row: (time <= time[row]).sum()), "stat_exposures counts the row"),
    (set_count("stat_exposures", lambda time, label, row: len(time)), "stat_exposures does not grow in "),
    (set_count("stat_clicks", lambda time, label, row: label[time >= time[row]].sum()), "stat_clicks falls in "),
    (
        set_count("stat_clicks", lambda time, label, row: label[:row].sum()),
        "stat_clicks differs between rows of one item",
    ),
    (
        set_count("stat_clicks_recent", lambda time, label, row: row),
        "stat_clicks_recent differs between rows of one item",
    ),
]


@pytest.mark.parametrize(("change", "said"), STATISTICS, ids=[said for _, said in STATISTICS])
def test_statistics_that_leak(prepared: Path, tmp_path: Path, change: Change, said: str) -> None:
    found = warnings_of(prepared, tmp_path, change)
    assert any(line.startswith(said) for line in found), found
    column = said.split()[0]
    assert all(line.startswith(f"{column} ") for line in found)


def test_counts_of_a_log_that_goes_on_are_no_leak(prepared: Path, tmp_path: Path) -> None:
    """An earlier log is counted too, and rows that this one lacks."""
    more = with_column("stat_exposures", lambda counts: counts.to_numpy() * 3 + 1000)
    assert warnings_of(prepared, tmp_path, more) == []


def histories(table: pa.Table, make: Callable[[list[int], int, bool, list[int]], list[int]]) -> pa.Table:
    """New histories: make(history, item, whether it is positive, items that the user takes later)."""
    users, times, items, labels = (table[name].to_numpy() for name in ("user_id", "timestamp", "item_id", "label"))
    made = []
    for row, history in enumerate(table["history"].to_pylist()):
        later = items[(users == users[row]) & (times > times[row]) & (labels == 1)]
        made.append(make(history, int(items[row]), bool(labels[row]), later.tolist()))
    return with_column("history", lambda _: made)(table)


def test_a_history_with_the_rows_own_event(prepared: Path, tmp_path: Path) -> None:
    found = warnings_of(
        prepared,
        tmp_path,
        lambda table: histories(table, lambda history, item, liked, later: [*history, *[item] * liked][-5:]),
    )
    assert len(found) == 1
    assert found[0].startswith("history holds the row's own event in ")


def test_a_history_of_the_future(prepared: Path, tmp_path: Path) -> None:
    found = warnings_of(
        prepared,
        tmp_path,
        lambda table: histories(table, lambda history, item, liked, later: [*history[1:], *later[:1]]),
    )
    assert any(line.startswith("history holds items that the user takes only at that time or later") for line in found)


def test_a_history_that_ends_with_the_own_item_where_users_come_once(prepared: Path, tmp_path: Path) -> None:
    def once(table: pa.Table) -> pa.Table:
        table = with_column("user_id", lambda users: np.arange(1000, 1000 + len(users)))(table)
        return histories(table, lambda history, item, liked, later: [item] if liked else [1 + item % 30])

    found = warnings_of(prepared, tmp_path, once)
    assert len(found) == 1
    assert found[0].startswith("history ends with the row's own item in ")


def test_ids_that_are_no_numbers_from_1(prepared: Path, tmp_path: Path) -> None:
    sparse = with_column("user_id", lambda users: users.to_numpy() * 7_000_000_007)
    (line,) = warnings_of(prepared, tmp_path, sparse)
    assert line.startswith("user_id has ids up to 420,000,000,420 in 3,000 rows")


def test_labels_that_are_all_equal(prepared: Path, tmp_path: Path) -> None:
    zeros = with_column("label", lambda labels: np.zeros(len(labels), np.float32))
    assert "every label of train is 0" in warnings_of(prepared, tmp_path, zeros)
