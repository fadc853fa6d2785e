"""Several label columns: kept by preparation, one named by the recipe as the target."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec import schema
from sidrec.config.item import HidItem
from sidrec.config.model import ModelConfig
from sidrec.config.recipe import DataConfig
from sidrec.data.item_tables import item_tables
from sidrec.data.loader import columns_of, open_split
from sidrec.data.rows import broken_rows
from sidrec.io.files import write_json
from sidrec.schema import ContractError
from tests.data_prep.event_lists import DAY, read_rows

ROWS = 30
NUMBER = np.arange(ROWS)
LABELS = {"click": NUMBER % 3 % 2, "like": NUMBER % 7 % 2, "long play": NUMBER % 2}
COLUMNS = Columns(label_column="click", other_label_columns=("like", "long play"))
SETTINGS = LogSettings(validation_share=0.0, test_share=0.2)


def write_log(folder: Path, **columns: object) -> Path:
    path = folder / "log.parquet"
    own = {"user_id": NUMBER % 5, "item_id": NUMBER % 4, "timestamp": DAY * (1 + NUMBER)}
    pq.write_table(pa.table({**own, **LABELS, **columns}), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    InteractionsCommand(write_log(tmp_path), tmp_path / "out", COLUMNS, SETTINGS).run()
    return tmp_path / "out"


def config(folder: Path, label: str) -> DataConfig:
    return DataConfig(path=folder, catalog=folder, batch_size=8, lanes=2, history_length=3, workers=0, label=label)


def test_all_labels_are_kept_and_histories_follow_the_first(folder: Path) -> None:
    assert schema.load_manifest(folder / "log").labels == ("label_like", "label_long play")
    rows = read_rows(folder)
    for column, source in (("label", "click"), ("label_like", "like"), ("label_long play", "long play")):
        assert [row[column] for row in rows] == LABELS[source].tolist()
    liked = {user: [row["item_id"] for row in rows if row["user_id"] == user and row["label"]] for user in range(1, 6)}
    last = {row["user_id"]: row for row in rows}
    assert all(liked[user][: len(row["history"])] == row["history"] for user, row in last.items())


@pytest.mark.parametrize("label", ["label", "label_like", "label_long play"])
def test_batches_carry_the_label_that_the_recipe_names(folder: Path, label: str) -> None:
    manifest, model = schema.load_manifest(folder / "log"), ModelConfig(item=HidItem(), context=("user_id",))
    tables = item_tables(model.item, manifest, None)
    split = {"rank": 0, "world": 1, "seed": 0, "shuffle": True, "tables": tables, "manifest": manifest}
    loader = open_split(config(folder, label), model, "train", **split)  # type: ignore[arg-type]
    rows = [row for row in read_rows(folder) if row["split"] == "train"]
    for batch in loader.batches(0):
        for row, found in zip(batch.row_B.tolist(), batch.label_B.tolist(), strict=True):
            assert found == (rows[row][label] if row >= 0 else 0)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("label_lik", "label, label_like, label_long play, got 'label_lik'; did you mean label_like?"),
        ("like", "which has label, label_like, label_long play, got 'like'"),
        ("click", "data.label: expected a label of the log, which has label,"),
        ("", "got ''"),
        ("user_id", "got 'user_id'"),
        ("label_longplay", "did you mean label_long play?"),
        ("Label", "did you mean label?"),
        ("cat_like", "got 'cat_like'"),
    ],
)
def test_a_label_that_the_log_lacks(folder: Path, label: str, words: str) -> None:
    with pytest.raises(ContractError) as caught:
        columns_of(config(folder, label), ModelConfig(item=HidItem()), schema.load_manifest(folder / "log"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(other_label_columns=("like",)), "--label-column or --rating-column as well"),
        (Columns(label_column="click", other_label_columns=("click",)), "different columns"),
        (Columns(label_column="click", other_label_columns=("like", "like")), "different columns"),
        (replace(COLUMNS, dense_columns=("like",)), "the label's own, 'like'"),
        (replace(COLUMNS, cat_columns=("long play",)), "the label's own, 'long play'"),
        (Columns(label_column="click", cat_columns=("click",)), "the label's own, 'click'"),
    ],
)
def test_flags_that_cannot_be_meant(columns: Columns, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        columns.check()


@pytest.mark.parametrize(
    "value", [2, 2**60 + 1, -1, 0.5, None, float("nan"), "yes", "", "01.5", float("inf"), "maybe"], ids=str
)
def test_other_labels_must_be_0_or_1(tmp_path: Path, value: object) -> None:
    text = isinstance(value, str)
    likes = ["1" if text else 1] * ROWS
    likes[4] = value  # type: ignore[call-overload]
    with pytest.raises(ContractError, match=r"log.parquet, .*(line 5.*like|like.*line 5)"):
        InteractionsCommand(write_log(tmp_path, like=likes), tmp_path / "out", COLUMNS, SETTINGS).run()


def test_the_reader_refuses_other_labels_that_are_neither(folder: Path) -> None:
    manifest = schema.load_manifest(folder / "log")
    table = pq.read_table(folder / "log" / manifest.files("train")[0].path)
    place = table.column_names.index("label_like")
    table = table.set_column(place, "label_like", pa.array(np.full(len(table), 0.5, np.float32)))
    assert list(broken_rows(table, manifest)) == ["column label_like, expected 0 or 1"]


@pytest.mark.parametrize("labels", ["label_like", ["like"], ["label_like", "label_like"], [3], None, {"a": 1.0}, 7])
def test_a_manifest_with_broken_labels(folder: Path, labels: object) -> None:
    path = folder / "log" / schema.MANIFEST
    raw = schema.read_json(path, "a manifest")
    write_json(path, {**raw, "labels": labels})
    with pytest.raises(ContractError, match=r"manifest.json"):
        schema.load_manifest(folder / "log")
