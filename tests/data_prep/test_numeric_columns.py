"""Numbers of a log as dense columns: the transform, what it is fitted on, and what is refused."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.log_files import _Part
from sidrec import schema
from sidrec.schema import ContractError, Transform
from tests.data_prep.event_lists import DAY, read_rows

ROWS = 40
SETTINGS: dict[str, Any] = {"validation_share": 0.2, "test_share": 0.2, "partition_rows": 7}


def write_log(folder: Path, price: Any, rows: int = ROWS) -> Path:
    """A log of two rows a day with one column of numbers. Returns its file."""
    path = folder / "log.parquet"
    number = np.arange(rows)
    columns = {"user_id": number % 5, "item_id": number % 4, "timestamp": DAY * (1 + number // 2)}
    pq.write_table(pa.table({**columns, "label": number % 3 % 2, "price": price}), path)
    return path


def prepare(log: Path, columns: Columns, **settings: Any) -> list[dict[str, Any]]:
    out = log.parent / "out"
    InteractionsCommand(log, out, columns, LogSettings(**SETTINGS, **settings), vectors="none").run()
    return read_rows(out)


def transform_of(folder: Path, column: str = "int_price") -> Transform:
    return schema.load_manifest(folder / "out" / "log").transforms[column]


COLUMNS = Columns(label_column="label", dense_columns=("price",))
RANDOM = np.random.default_rng(0)
AMOUNTS = RANDOM.gamma(2.0, 30.0, ROWS)


@pytest.mark.parametrize("split", ["global", "per-user-last"])
def test_constants_come_from_train_rows_alone(tmp_path: Path, split: str) -> None:
    """Numbers of later splits change neither the constants nor any train row."""
    rows = prepare(write_log(tmp_path, AMOUNTS), COLUMNS, split=split)
    first = transform_of(tmp_path)
    train = [row["split"] == "train" for row in rows]
    number_of = {(DAY * (1 + n // 2), n % 5 + 1): n for n in range(ROWS)}
    values = np.array([AMOUNTS[number_of[row["timestamp"], row["user_id"]]] for row in rows])
    logs = np.log1p(values)
    assert (first.mean, first.deviation) == pytest.approx((logs[train].mean(), logs[train].std()), rel=1e-6)
    scaled = (logs - first.mean) / first.deviation
    assert [row["int_price"] for row in rows] == pytest.approx(scaled, rel=1e-4, abs=1e-5)

    changed = AMOUNTS.copy()
    later = [number_of[row["timestamp"], row["user_id"]] for row in rows if row["split"] != "train"]
    assert 0 < len(later) < ROWS
    changed[later] = 1e9
    (tmp_path / "again").mkdir()
    again = prepare(write_log(tmp_path / "again", changed), COLUMNS, split=split)
    second = transform_of(tmp_path / "again")
    assert (second.mean, second.deviation) == (first.mean, first.deviation)
    assert [row for row in again if row["split"] == "train"] == [row for row in rows if row["split"] == "train"]


@pytest.mark.parametrize(
    ("price", "missing", "negative"),
    [
        (pa.array([1, 2, 3, 4] * 10), 0, 0),
        (pa.array([1.5, None, 3.0, 4.0] * 10), 10, 0),
        (pa.array([1.5, float("nan"), 3.0, None] * 10), 20, 0),
        (pa.array(["1.5", "", "3e2", "nan"] * 10), 20, 0),
        (pa.array([" 7", "8 ", "+9", ".5"] * 10), 0, 0),
        (pa.array([True, False, None, True] * 10), 10, 0),
        (pa.array([-1.0, -2.0, 3.0, 0.0] * 10), 0, 20),
        (pa.array([1, None, 3, -4] * 10, pa.int8()), 10, 10),
        (pa.array([2**60 + 1, 5, 6, 7] * 10), 0, 0),
        (pa.array([1.25, 2, 3, None] * 10, pa.float32()), 10, 0),
        (pa.array([Decimal("1.10"), Decimal(2), Decimal(3), None] * 10), 10, 0),
        (pa.array([None] * ROWS, pa.float64()), ROWS, 0),
    ],
    ids=range(12),
)
def test_types_missing_and_negative_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], price: pa.Array, missing: int, negative: int
) -> None:
    rows = prepare(write_log(tmp_path, price), COLUMNS)
    found = transform_of(tmp_path)
    assert (found.source, found.missing, found.negative) == ("price", missing, negative)
    flags = [row["int_price_missing"] for row in rows] if missing else []
    assert sum(flags) == missing
    assert all(row["int_price"] == 0 for row, flag in zip(rows, flags, strict=False) if flag)
    train = [row["int_price"] for row in rows if row["split"] == "train" and not row.get("int_price_missing")]
    assert not train or abs(np.mean(train)) < 1e-5
    said = capsys.readouterr().err
    assert ("are missing" in said, "are below 0" in said) == (missing > 0, negative > 0)


@pytest.mark.parametrize(
    "value", ["cheap", "1,5", "12 EUR", "inf", "-inf", "1e999", "0x10", "null", "2024-01-01", "1_000", "½"]
)
def test_text_that_is_no_number_is_refused_by_line(tmp_path: Path, value: str) -> None:
    log = write_log(tmp_path, pa.array(["3"] * 12 + [value] + ["3"] * (ROWS - 13)))
    with pytest.raises(ContractError, match=r"log.parquet, column price, line 13: expected a finite number, got"):
        prepare(log, COLUMNS)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_numbers_of_items_count_by_their_train_events(tmp_path: Path) -> None:
    log = write_log(tmp_path, AMOUNTS)
    (tmp_path / "items.csv").write_text("item_id,weight\n0,10\n1,20\n2,\n3,-5\n9,1000000\n")
    rows = prepare(log, replace(COLUMNS, items_file=tmp_path / "items.csv", item_dense_columns=("weight",)))
    found = transform_of(tmp_path, "int_weight")
    logs = np.log1p([10.0, 20.0, 0.0])  # item 9 is in no event
    shown = [row["item_id"] for row in rows if row["split"] == "train"]
    train = np.repeat(logs, [shown.count(item) for item in (1, 2, 4)])
    assert (found.mean, found.deviation) == pytest.approx((train.mean(), train.std()))
    assert (found.missing, found.negative) == (10, 10)
    assert {row["item_id"] for row in rows if row["int_weight_missing"]} == {3}
    dense = schema.load_manifest(tmp_path / "out" / "log").dense
    assert dense[3:] == ("int_price", "int_weight", "int_weight_missing")


def test_an_item_number_that_is_none_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,weight\n0,10\n1,heavy\n")
    columns = Columns(label_column="label", items_file=tmp_path / "items.csv", item_dense_columns=("weight",))
    with pytest.raises(ContractError, match=r"items.csv, column weight, line 3: expected a finite number, got 'heavy'"):
        prepare(write_log(tmp_path, AMOUNTS), columns)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(dense_columns=("price", "price")), "int_price twice"),
        (Columns(dense_columns=("user_events",)), "int_user_events twice"),
        (Columns(dense_columns=("price", "price_missing")), "int_price_missing twice"),
        (Columns(dense_columns=("a",), item_dense_columns=("a",), items_file=Path("x")), "int_a twice"),
        (Columns(item_dense_columns=("a",)), "an --items-file that has them"),
        (Columns(label_column="label", dense_columns=("label",)), "the label's own, 'label'"),
        (Columns(rating_column="stars", dense_columns=("stars",)), "the label's own, 'stars'"),
    ],
)
def test_names_that_cannot_be_meant(tmp_path: Path, columns: Columns, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        columns.check()


def test_a_killed_preparation_ends_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constants are fitted again, from the ordered events."""
    whole = prepare(write_log(tmp_path, AMOUNTS), COLUMNS)
    (tmp_path / "killed").mkdir()
    log = write_log(tmp_path / "killed", AMOUNTS)
    monkeypatch.setattr("data_prep.log_files._Part.finish", _killed_at(3))
    with pytest.raises(KeyboardInterrupt):
        prepare(log, COLUMNS)
    monkeypatch.undo()
    assert prepare(log, COLUMNS) == whole


def _killed_at(part: int) -> Any:
    finish = _Part.finish

    def watched(self: _Part) -> dict[str, object]:
        if self.number == part:
            raise KeyboardInterrupt
        return finish(self)

    return watched
