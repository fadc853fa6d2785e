"""Columns that are wrong as a whole: warned of with figures, or refused where nothing else can be meant."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.column_checks import _Numbers
from data_prep.interactions import Columns, InteractionsCommand
from sidrec.schema import ContractError
from tests.data_prep.event_lists import DAY

ROWS = 120
NUMBER = np.arange(ROWS)
RANDOM = np.random.default_rng(0)
LABEL = RANDOM.integers(0, 2, ROWS)
TIME = 1_700_000_000 + NUMBER * DAY // 4
SOUND: dict[str, Any] = {
    "user_id": RANDOM.integers(0, 20, ROWS),
    "item_id": RANDOM.integers(0, 30, ROWS),
    "timestamp": TIME,
    "label": LABEL,
    "like": RANDOM.integers(0, 2, ROWS),
    "price": RANDOM.gamma(2, 10, ROWS),
    "brand": RANDOM.choice(["a", "b", "c"], ROWS),
    "tags": [["x"]] * ROWS,
}
COLUMNS = Columns(
    label_column="label",
    other_label_columns=("like",),
    cat_columns=("brand",),
    cat_list_columns=("tags",),
    dense_columns=("price",),
)


def prepare(folder: Path, columns: Columns = COLUMNS, settings: LogSettings | None = None, **changed: Any) -> None:
    pq.write_table(pa.table({**SOUND, **changed}), folder / "log.parquet")
    settings = settings or LogSettings(partition_rows=50)
    InteractionsCommand(folder / "log.parquet", folder / "out", columns, settings, vectors="none").run()


def test_a_sound_log_is_no_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path)
    assert "warning" not in capsys.readouterr().err


def sparse(values: Any, missing: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(values), mask=missing)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"user_id": NUMBER}, "the user column: 120 rows have 120 different values: no row has a history"),
        ({"user_id": [f"u{n}" for n in NUMBER]}, "the user column: 120 rows have 120 different values"),
        ({"user_id": np.r_[NUMBER[:115], [0] * 5]}, "the user column: 115 different values in 120 rows"),
        ({"user_id": [7] * ROWS}, "the user column: all 120 rows have one value"),
        ({"item_id": [7] * ROWS}, "the item column: all 120 rows have one value"),
        ({"item_id": RANDOM.permutation(ROWS)}, "the item column: 120 rows have 120 different values"),
        (
            {"item_id": np.r_[SOUND["user_id"][:118], [99, 98]]},
            "118 of 120 rows have the same value as in the user column",
        ),
        ({"user_id": TIME}, "the user column: all 120 rows have the same value as in the column of times"),
        ({"user_id": LABEL * 2 + NUMBER % 2}, "the user column: its 4 values tell the label of all 120 rows"),
        ({"brand": ["a"] * ROWS}, "column brand: all 120 rows have one value"),
        ({"brand": pa.array([None] * ROWS, pa.string())}, "column brand: all 120 values are missing"),
        ({"brand": [f"b{n}" for n in NUMBER]}, "column brand: 120 different values in 120 rows: an id of the row"),
        ({"brand": SOUND["user_id"]}, "column brand: all 120 rows have the same value as in the user column"),
        ({"brand": SOUND["item_id"]}, "column brand: all 120 rows have the same value as in the item column"),
        ({"tags": [[]] * ROWS}, "column tags: all 120 lists are empty"),
        ({"price": [3.5] * ROWS}, "column price: every number is 3.5"),
        ({"price": pa.array([None] * ROWS, pa.float64())}, "column price: all 120 numbers are missing"),
        (
            {"price": RANDOM.permutation(ROWS) * 17},
            "column price: about 120 different whole numbers in 120 rows: an id",
        ),
        ({"price": SOUND["user_id"]}, "column price: all 120 rows have the same value as in the user column"),
        ({"price": TIME}, "column price: all 120 rows have the same value as in the column of times"),
        (
            {"price": np.where(LABEL.argmin() == NUMBER, 50, LABEL * 50) + RANDOM.random(ROWS)},
            "column price: correlates with the label by 0.9",
        ),
        ({"like": [0] * ROWS}, "column like: all 120 labels are 0"),
        ({"like": [1] * ROWS}, "column like: all 120 labels are 1"),
        ({"like": LABEL}, "column like: all 120 rows have the same label as in the label column"),
        ({"timestamp": TIME - TIME[0] + 5000 * DAY}, "all times are from 1983-09-10 to 1983-10-09: check their unit"),
        ({"timestamp": np.where(NUMBER < 3, 0, TIME)}, "3 of 120 times are 0, 1970-01-01: are they missing?"),
        ({"timestamp": TIME + 60 * 365 * DAY}, "120 of 120 times are later than now; all are from 2083"),
        ({"timestamp": np.where(NUMBER > 100, TIME + 60 * 365 * DAY, TIME)}, "19 of 120 times are later than now"),
    ],
    ids=range(28),
)
def test_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], words: str) -> None:
    prepare(tmp_path, **changed)
    said = [line for line in capsys.readouterr().err.splitlines() if words in line]
    assert len(said) == 1, words
    assert "warning: interactions log.parquet" in said[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"item_id": SOUND["user_id"]}, "other values than the user column has, got the same in all 120 rows"),
        ({"item_id": NUMBER}, "the item column: expected items, .* got 0, 1, 2, … in 120 rows: the number of the row"),
        ({"item_id": [str(n + 1) for n in NUMBER]}, "got 1, 2, 3, …"),
        ({"item_id": LABEL}, "the item column: expected ids, got the label in all 120 rows"),
        ({"label": [1] * ROWS}, "labels 0 and 1, got 120 events, all positive"),
        ({"label": [0] * ROWS}, "at least one positive event"),
        ({"price": LABEL}, "tells the label of every row, 0 to 0 where it is 0; 1 to 1 where it is 1"),
        ({"price": 1 - LABEL}, "tells the label of every row"),
        ({"price": LABEL * 5 + RANDOM.random(ROWS)}, "column price: expected what is known before the label"),
        ({"price": -np.exp(LABEL + RANDOM.random(ROWS) / 2)}, "tells the label of every row"),
        ({"price": sparse(RANDOM.random(ROWS), LABEL == 0)}, "missing in just the rows of one label"),
        ({"price": sparse(RANDOM.random(ROWS), LABEL == 1)}, "missing in just the rows of one label"),
        ({"brand": np.where(LABEL, "bought", "not")}, "column brand: .* whose 2 values tell the label of all 120 rows"),
        ({"brand": sparse(np.where(LABEL, "paid", ""), LABEL == 0)}, "whose 1 values tell the label"),
        ({"brand": [f"{label}{n % 2}" for n, label in enumerate(LABEL)]}, "whose 4 values tell the label"),
        ({"timestamp": np.where(NUMBER % 10, TIME * 1000, TIME)}, "before the year 2100"),
    ],
    ids=range(16),
)
def test_refusals(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        prepare(tmp_path, **changed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "columns",
    [
        Columns(user_column="item_id"),
        Columns(item_column="user_id"),
        Columns(user_column="timestamp"),
        Columns(label_column="user_id"),
        Columns(rating_column="timestamp"),
    ],
    ids=str,
)
def test_one_column_in_two_roles(columns: Columns) -> None:
    with pytest.raises(ContractError, match=r"different columns, got '\w+' twice"):
        columns.check()


def test_few_positives_prove_no_leak(tmp_path: Path) -> None:
    label = (NUMBER < 4).astype(int)
    prepare(tmp_path, label=label, price=label * 5.0 + RANDOM.random(ROWS), brand=np.where(label, "x", "y"))


@pytest.mark.parametrize(
    ("unit", "factor", "other"),
    [("ms", 1000, 1), ("us", 10**6, 1), ("us", 10**6, 1000), ("ns", 10**9, 1000), ("ns", 10**9, 10**6)],
)
def test_times_of_mixed_units(tmp_path: Path, unit: Any, factor: int, other: int) -> None:
    columns = replace(COLUMNS, timestamp_unit=unit)
    with pytest.raises(ContractError, match="times of one unit in all rows, got 12 of 120 times before 1970-02-18"):
        prepare(tmp_path, columns, timestamp=np.where(NUMBER % 10, TIME * factor, TIME * other))


def test_one_time_for_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, settings=LogSettings(split="random"), timestamp=[TIME[0]] * ROWS)
    assert "all 120 rows have one time: no row has a history or statistics" in capsys.readouterr().err


def test_a_number_that_repeats_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, replace(COLUMNS, dense_columns=("price", "cost")), cost=SOUND["price"])
    assert "column cost: all 120 rows have the same value as in column price" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("brands", "weights", "words"),
    [
        (["a"] * 30, range(30), "column maker: all items that have a value have the same"),
        ([""] * 30, range(30), "column maker: no item has a value"),
        ([f"m{n}" for n in range(30)], range(30), "column maker: 30 different values of 30 items: an id of the item?"),
        (["a", "b"] * 15, [5] * 30, "column weight: all items that have a value have the same"),
        (["a", "b"] * 15, range(100, 130), "column weight: 30 different values of 30 items: an id of the item?"),
        (["a", "b"] * 15, [""] * 30, "column weight: no item has a value"),
    ],
    ids=range(6),
)
def test_columns_of_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], brands: list[str], weights: Any, words: str
) -> None:
    lines = [f"{item},{brand},{weight}" for item, (brand, weight) in enumerate(zip(brands, weights, strict=True))]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,maker,weight", *lines]) + "\n")
    items = {"items_file": tmp_path / "items.csv", "item_cat_columns": ("maker",), "item_dense_columns": ("weight",)}
    prepare(tmp_path, replace(COLUMNS, **items))  # type: ignore[arg-type]
    assert words in capsys.readouterr().err


def test_positives_alone_are_no_constant_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, Columns(cat_columns=("brand",), dense_columns=("price",)))
    assert "warning" not in capsys.readouterr().err


def test_distinct_numbers_are_estimated() -> None:
    for different in (10, 5_000, 60_000):
        numbers = _Numbers()
        for block in np.array_split(RANDOM.integers(0, different, 200_000).astype(float), 7):
            numbers.add(block, np.zeros(len(block), bool))
        found = len(np.unique(np.arange(different)))
        assert numbers.distinct == pytest.approx(found, rel=0.06)
