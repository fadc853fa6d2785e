"""Data that breaks the contract: one sentence each, naming the place, what was expected and what was found."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.schema import LOG, ContractError, LogFile, save_manifest
from tests.data.log_files import Log, log_of, manifest_of, table_of, write_log


def with_value(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    index = table.schema.get_field_index(column)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def sentence(error: pytest.ExceptionInfo[ContractError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


BAD_VALUES = [
    ("label", 2.0, "0 or 1", "2.0"),
    ("label", None, "no missing value", "a missing value"),
    ("int_a", float("nan"), "finite values", "nan"),
    ("int_b", float("inf"), "finite values", "inf"),
    ("stat_e", -1.0, "finite counts of at least 0", "-1.0"),
    ("item_id", -3, "ids in [0, 30)", "-3"),
    ("item_id", 30, "ids in [0, 30)", "30"),
    ("cat_a", 7, "ids in [0, 7)", "7"),
    ("user_id", None, "no missing value", "a missing value"),
    ("history", [1, 30], "item ids in [0, 30)", "[1, 30]"),
    ("history", [None, 2], "item ids in [0, 30)", "[None, 2]"),
    ("history", None, "no missing value", "a missing value"),
    ("timestamp", None, "no missing value", "a missing value"),
]


@pytest.mark.parametrize(("column", "value", "expected", "got"), BAD_VALUES)
def test_a_bad_value_is_refused_by_file_group_row_and_column(
    tmp_path: Path, column: str, value: object, expected: str, got: str
) -> None:
    log = write_log(tmp_path, [table_of(40), with_value(table_of(40, 40), column, 21, value)])
    loader = log.loader()
    with pytest.raises(ContractError) as error:
        list(loader.batches(0))
    where = f"{log.file(1)}, row group 2, row 21 of the file, column {column}"
    assert sentence(error) == f"{where}: expected {expected}, got {got}"


@pytest.mark.parametrize(("column", "value", "expected", "got"), BAD_VALUES)
def test_a_bad_row_in_quarantine_is_counted_named_and_leaves_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, value: object, expected: str, got: str
) -> None:
    log = write_log(tmp_path, [with_value(table_of(40), column, 21, value)])
    loader = log.loader(bad_rows="quarantine")
    with caplog.at_level(logging.WARNING):
        batches = list(loader.batches(0))
    assert loader.quarantined == 1
    assert f"row 21 of the file, column {column}: expected {expected}, got {got}" in caplog.text
    good = [row for b in batches for row, weight in zip(b.row_B.tolist(), b.weight_B.tolist(), strict=True) if weight]
    assert sorted(good) == [row for row in range(40) if row != 21]
    batch, place = next((b, b.row_B.tolist().index(21)) for b in batches if 21 in b.row_B)
    assert batch.target_B[place] == 0
    assert batch.history_BT[place].tolist() == [0] * 5
    assert batch.dense_BX[place].tolist() == [0, 0]
    assert batch.stats_BS[place].tolist() == [0]
    assert [int(values[place]) for values in (batch.label_B, batch.item_B, batch.user_B)] == [0, 0, 0]
    assert all(batch.dense_BX[:, 0][batch.weight_B > 0] == batch.row_B[batch.weight_B > 0])


def test_only_a_few_quarantined_rows_are_named_but_all_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = table_of(40)
    log = write_log(tmp_path, [table.set_column(0, table.schema.field(0), pa.array(np.full(40, 7, np.float32)))])
    loader = log.loader(bad_rows="quarantine")
    assert all(float(batch.weight_B.sum()) == 0 for batch in loader.batches(0))
    assert loader.quarantined == 40
    assert [record.name for record in caplog.records].count("sidrec.data.loader") == 5


def test_a_history_without_entries_is_fine(tmp_path: Path) -> None:
    table = with_value(table_of(8), "history", 3, [])
    (batch,) = write_log(tmp_path, [table]).loader(shuffle=False, lanes=1).batches(0)
    assert batch.history_BT[3].tolist() == [0] * 5
    assert batch.weight_B.sum() == 8


def test_the_latest_history_is_kept_oldest_first(tmp_path: Path) -> None:
    table = with_value(table_of(8), "history", 3, [9, 8, 7, 6, 5, 4, 3])
    (batch,) = write_log(tmp_path, [table]).loader(shuffle=False, lanes=1, history_length=3).batches(0)
    item_of_bag = [0, *batch.items.values().tolist()]
    assert [item_of_bag[bag] for bag in batch.history_BT[3].tolist()] == [5, 4, 3]


def truncate(log: Log) -> None:
    content = log.file(1).read_bytes()
    log.file(1).write_bytes(content[: len(content) // 2])


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Log], None]:
    return lambda log: pq.write_table(change(pq.read_table(log.file(1))), log.file(1), row_group_size=8)


def unsorted_files(log: Log) -> None:
    save_manifest(manifest_of(*reversed(log.manifest.files("train"))), log.folder / LOG)


BAD_FILES: dict[str, tuple[Callable[[Log], object], str]] = {
    "missing file": (lambda log: log.file(1).unlink(), "{file}: expected a parquet file, .*, got no such file"),
    "empty file": (lambda log: log.file(1).write_bytes(b""), "{file}: expected a whole parquet file, got .*"),
    "truncated file": (truncate, "{file}: expected a whole parquet file, got .*"),
    "missing column": (
        rewrite(lambda table: table.drop_columns(["cat_a"])),
        r"{file}: expected a column cat_a, got columns \['label', .*\]",
    ),
    "wrong type": (
        rewrite(lambda table: table.set_column(3, "item_id", table["item_id"].cast(pa.int32()))),
        "{file}, column item_id: expected int64, got int32",
    ),
    "other rows than the manifest": (
        rewrite(lambda table: table.slice(0, 39)),
        "{file}: expected 40 rows, as the manifest says, got 39",
    ),
    "other times than the manifest": (
        rewrite(lambda table: with_value(table, "timestamp", 39, 2000)),
        "{file}, column timestamp: expected times from 1013 to 1026, as the manifest says, got 1013 to 2000",
    ),
    "row groups out of order": (
        rewrite(lambda table: table.take([*range(8), *range(16, 24), *range(8, 16), *range(24, 40)])),
        "{file}, row group 2, column timestamp: expected times from 1021 on, where the rows before end, got 1016",
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_refused_at_opening(tmp_path: Path, fault: str) -> None:
    log = write_log(tmp_path, [table_of(40), table_of(40, 40)])
    breaks, expected = BAD_FILES[fault]
    breaks(log)
    with pytest.raises(ContractError) as error:
        log.loader()
    assert re.fullmatch(expected.format(file=re.escape(str(log.file(1)))), sentence(error))


def test_files_out_of_order_are_refused_at_opening(tmp_path: Path) -> None:
    log = write_log(tmp_path, [table_of(40), table_of(40, 40)])
    unsorted_files(log)
    with pytest.raises(ContractError) as error:
        log.loader()
    where = f"{log.file(0)}, row group 0, column timestamp"
    assert sentence(error) == f"{where}: expected times from 1026 on, where the rows before end, got 1000"


def test_a_split_without_rows_is_refused_at_opening(tmp_path: Path) -> None:
    log = log_of(tmp_path, 10)
    save_manifest(manifest_of(LogFile("train/0.parquet", 0, 0, 0)), log.folder / LOG)
    with pytest.raises(ContractError, match=r"split train: expected at least one row, got none$"):
        log.loader()


def test_a_column_of_the_recipe_that_the_log_lacks_is_refused(tmp_path: Path) -> None:
    log = log_of(tmp_path, 10)
    with pytest.raises(ContractError) as error:
        log.loader(context=("user_id", "cat_b"))
    expected = "model.context: expected columns of the log, which has ['cat_a', 'item_id', 'user_id'], got 'cat_b'"
    assert sentence(error) == expected


@pytest.mark.parametrize("bad_rows", ["refuse", "quarantine"])
def test_rows_out_of_order_inside_a_row_group_are_refused_when_they_are_read(tmp_path: Path, bad_rows: str) -> None:
    table = table_of(40).take([*range(10), 13, 11, 12, 10, *range(14, 40)])
    log = write_log(tmp_path, [table])
    loader = log.loader(bad_rows=bad_rows)
    with pytest.raises(ContractError) as error:
        list(loader.batches(0))
    assert sentence(error) == (
        f"{log.file()}, row group 1, column timestamp: expected rows sorted by time, got 1003 after 1004 at row 3"
    )


@pytest.mark.parametrize(
    ("row", "time", "expected"), [(39, 2000, "times up to 1013, got 2000"), (0, 900, "times from 1000 on, got 900")]
)
def test_times_are_held_against_the_manifest_where_a_file_has_no_statistics(
    tmp_path: Path, row: int, time: int, expected: str
) -> None:
    log = log_of(tmp_path, 40)
    pq.write_table(with_value(table_of(40), "timestamp", row, time), log.file(), write_statistics=False)
    with pytest.raises(ContractError, match=f"row group 0, column timestamp: expected {expected}$"):
        list(log.loader().batches(0))


def test_a_file_that_is_damaged_inside_is_refused_when_it_is_read(tmp_path: Path) -> None:
    log = log_of(tmp_path, 40)
    content = bytearray(log.file().read_bytes())
    content[4:400] = bytes(396)
    log.file().write_bytes(content)
    with pytest.raises(ContractError, match="row group 0: expected readable column data, got ") as error:
        list(log.loader().batches(0))
    sentence(error)


def test_a_file_that_vanishes_after_opening_is_refused(tmp_path: Path) -> None:
    log = log_of(tmp_path, 40)
    loader = log.loader()
    log.file().unlink()
    with pytest.raises(ContractError, match="expected the parquet file that was there at the start, got ") as error:
        list(loader.batches(0))
    sentence(error)
