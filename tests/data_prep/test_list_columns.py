"""Columns of several values in a row: read from text and lists, kept as ids, batched, averaged by the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec import schema
from sidrec.config.item import HidItem
from sidrec.config.model import ModelConfig
from sidrec.config.recipe import DataConfig
from sidrec.data.batch import Batch
from sidrec.data.item_tables import item_tables
from sidrec.data.loader import columns_of, open_split
from sidrec.data.rows import broken_rows
from sidrec.io.files import write_json
from sidrec.model.tables import embedding_tables, one_feature_each
from sidrec.preflight.resource_estimate import bytes_per_row
from sidrec.schema import ContractError, ListColumn, Manifest
from tests.data_prep.event_lists import DAY, read_rows

ROWS = 30
NUMBER = np.arange(ROWS)
COLUMNS = Columns(label_column="label", cat_columns=("device",), cat_list_columns=("tags",))
SETTINGS = LogSettings(validation_share=0.2, test_share=0.2, partition_rows=7)
TAGS = [["sun", "sea"], [], ["sea"], None, ["sun", None, "", "sun", "new"]] * 6
EXPECTED = [[1, 2], [], [2], [], [1, 3]] * 6


def write_log(folder: Path, tags: Any, text: bool = False) -> Path:
    own = {"user_id": NUMBER % 5, "item_id": NUMBER % 4, "timestamp": DAY * (1 + NUMBER), "label": NUMBER % 3 % 2}
    table = pa.table({**own, "device": NUMBER % 3, "tags": tags})
    path = folder / ("log.csv" if text else "log.parquet")
    if text:
        lines = [",".join("" if value is None else f'"{value}"' for value in row.values()) for row in table.to_pylist()]
        path.write_text("\n".join([",".join(table.column_names), *lines]) + "\n")
    else:
        pq.write_table(table, path)
    return path


def prepare(log: Path, columns: Columns = COLUMNS) -> list[dict[str, Any]]:
    InteractionsCommand(log, log.parent / "out", columns, SETTINGS, vectors="none").run()
    return read_rows(log.parent / "out")


def manifest_of(folder: Path) -> Manifest:
    return schema.load_manifest(folder / "out" / "log")


def joined(separator: str) -> list[str | None]:
    return [None if tags is None else separator.join(tag or "" for tag in tags) for tags in TAGS]


@pytest.mark.parametrize(
    ("tags", "columns"),
    [
        (TAGS, COLUMNS),
        (pa.array(TAGS, pa.large_list(pa.large_string())), COLUMNS),
        (pa.array(TAGS, pa.list_(pa.dictionary(pa.int32(), pa.string()))), COLUMNS),
        (pa.chunked_array([TAGS[:7], TAGS[7:]]), COLUMNS),
        (pa.array([tags and [f" {tag} " for tag in tags if tag] for tags in TAGS]), COLUMNS),
        (pa.array(joined("|")), COLUMNS),
        (pa.array(joined("|")).dictionary_encode(), COLUMNS),
        (pa.array(joined(" | ")), COLUMNS),
        (pa.array(joined(", ")), replace(COLUMNS, list_separator=",")),
        (pa.array(joined(" ")), replace(COLUMNS, list_separator=" ")),
        (pa.array(joined("::")), replace(COLUMNS, list_separator="::")),
        (pa.array([tags and [b"x" * 0 if not tag else tag.encode() for tag in tags] for tags in TAGS]), COLUMNS),
    ],
    ids=range(12),
)
def test_lists_and_text_of_many_forms(tmp_path: Path, tags: Any, columns: Columns) -> None:
    rows = prepare(write_log(tmp_path, tags), columns)
    assert [row["cat_tags"] for row in rows] == EXPECTED
    manifest = manifest_of(tmp_path)
    assert manifest.ids["cat_tags"] == 4
    assert manifest.lists == {"cat_tags": ListColumn(2, 1.0)}


def test_delimited_text(tmp_path: Path) -> None:
    assert [row["cat_tags"] for row in prepare(write_log(tmp_path, joined("|"), text=True))] == EXPECTED


@pytest.mark.parametrize(
    ("tags", "first"),
    [
        (pa.array([[3, 5], [5]] * 15), [[1, 2], [2]]),
        (pa.array([[3, 5], [5, 5]] * 15, pa.list_(pa.int16(), 2)), [[1, 2], [2]]),
        (pa.array([[3.0, 5.0], [5.0, None]] * 15), [[1, 2], [2]]),
        (pa.array([[True, False], [False]] * 15), [[1, 2], [2]]),
        (pa.array([7, 8] * 15), [[1], [2]]),
        (pa.array(["7", "8"] * 15), [[1], [2]]),
        (pa.array([None] * ROWS, pa.list_(pa.string())), [[], []]),
        (pa.array([None] * ROWS, pa.string()), [[], []]),
    ],
    ids=range(8),
)
def test_lists_of_numbers_flags_and_nothing(tmp_path: Path, tags: pa.Array, first: list[list[int]]) -> None:
    assert [row["cat_tags"] for row in prepare(write_log(tmp_path, tags))[:2]] == first


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["['sun', 'sea']"] * ROWS, r"line 1: expected values parted by '\|', or lists in Parquet, got \"\['sun'"),
        (["a"] * 4 + ["[a]"] + ["b"] * 25, r"column tags, line 5: expected values parted"),
        ([[["a"]]] * ROWS, r"column tags: expected text, numbers, dates or times, got the type list"),
        ([{"a": 1}] * ROWS, r"got the type struct"),
        ([[{"a": 1}]] * ROWS, r"got the type struct"),
        (pa.array([[b"\xff"]] * ROWS), r"expected UTF-8 text"),
    ],
    ids=range(6),
)
def test_values_that_are_no_lists(tmp_path: Path, tags: Any, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        prepare(write_log(tmp_path, tags))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_names_the_list(tmp_path: Path) -> None:
    """Hive and Spark write a column into the names of folders."""
    (tmp_path / "tags=sea%7Csun").mkdir()
    path = write_log(tmp_path, TAGS)
    table = pq.read_table(path).drop_columns(["tags"])
    pq.write_table(table, tmp_path / "tags=sea%7Csun" / "log.parquet")
    path.unlink()
    InteractionsCommand(tmp_path / "tags=sea%7Csun", tmp_path / "out", COLUMNS, SETTINGS, vectors="none").run()
    assert {tuple(row["cat_tags"]) for row in read_rows(tmp_path / "out")} == {(1, 2)}


def test_long_lists_are_cut_with_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prepare(write_log(tmp_path, [["a", "b", "c", "d"]] * ROWS), replace(COLUMNS, list_length=3))
    assert {tuple(row["cat_tags"]) for row in rows} == {(1, 2, 3)}
    assert "column tags: 30 values beyond the first 3 of a row left out" in capsys.readouterr().err


def test_lists_of_items(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item_id,genres\n1,war|drama\n0,drama\n2,\n")
    columns = replace(COLUMNS, items_file=items, item_cat_list_columns=("genres",), text_columns=("genres",))
    rows = prepare(write_log(tmp_path, TAGS), columns)
    by_item = {row["item_id"]: row["cat_genres"] for row in rows}
    assert by_item == {1: [2, 1], 2: [1], 3: [], 4: []}
    assert manifest_of(tmp_path).ids["cat_genres"] == 3
    assert pq.read_table(tmp_path / "out" / "items.parquet")["content"].to_pylist() == ["war drama", "drama", "", ""]


def test_lists_keep_their_ids_in_a_later_preparation(tmp_path: Path) -> None:
    columns = replace(COLUMNS, items_file=tmp_path / "items.csv", item_cat_list_columns=("genres",))
    (tmp_path / "items.csv").write_text("item_id,genres\n1,war|drama\n0,drama\n")
    before = {row["item_id"]: row["cat_genres"] for row in prepare(write_log(tmp_path, TAGS), columns)}
    (tmp_path / "items.csv").write_text("item_id,genres\n0,art|drama\n")
    settings = replace(SETTINGS, ids=tmp_path / "out")
    later = write_log(tmp_path, [["new", "sea", "foam"]] * ROWS)
    InteractionsCommand(later, tmp_path / "later", columns, settings, vectors="none").run()
    rows = read_rows(tmp_path / "later")
    assert {tuple(row["cat_tags"]) for row in rows} == {(3, 2, 4)}
    after = {row["item_id"]: row["cat_genres"] for row in rows}
    assert (before, after) == ({1: [2, 1], 2: [1], 3: [], 4: []}, {1: [2, 1], 2: [3, 1], 3: [], 4: []})
    assert schema.load_manifest(tmp_path / "later" / "log").ids["cat_genres"] == 4


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(cat_columns=("a",), cat_list_columns=("a",)), "different names"),
        (Columns(cat_list_columns=("a", "a")), "different names"),
        (Columns(item_cat_list_columns=("a",)), "an --items-file"),
        (Columns(cat_list_columns=("a",), dense_columns=("a",)), "no other flag names, got 'a'"),
        (Columns(cat_list_columns=("user_id",)), "no other flag names, got 'user_id'"),
        (Columns(label_column="b", other_label_columns=("a",), cat_list_columns=("a",)), "give the label away"),
        (Columns(items_file=Path("x"), item_cat_list_columns=("item_id",)), "no other flag names"),
        (
            Columns(items_file=Path("x"), item_cat_list_columns=("a",), item_dense_columns=("a",)),
            "no other flag names",
        ),
        (Columns(cat_list_columns=("a",), list_separator=""), "a separator"),
        (Columns(cat_list_columns=("a",), list_length=0), "a length of at least 1"),
        (Columns(label_column="a", cat_list_columns=("a",)), "give the label away"),
    ],
)
def test_flags_that_cannot_be_meant(columns: Columns, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        columns.check()


# The reader, the batch, the model.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(write_log(tmp_path, TAGS))
    return tmp_path


def batches(folder: Path, context: tuple[str, ...]) -> list[Batch]:
    manifest, model = manifest_of(folder), ModelConfig(item=HidItem(), context=context)
    data = DataConfig(path=folder / "out", catalog=folder, batch_size=8, lanes=2, history_length=3, workers=0)
    tables = item_tables(model.item, manifest, None)
    split = {"rank": 0, "world": 1, "seed": 0, "shuffle": True, "tables": tables, "manifest": manifest}
    return list(open_split(data, model, "train", **split).batches(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [("cat_tags",), ("user_id", "cat_tags"), ("cat_tags", "cat_device", "user_id")])
def test_batches_carry_a_bag_for_each_row(folder: Path, context: tuple[str, ...]) -> None:
    rows = [row for row in read_rows(folder / "out") if row["split"] == "train"]
    for batch in batches(folder, context):
        found = batch.context.to_dict()
        assert tuple(found) == context
        for name in context:
            bags = [bag.tolist() for bag in found[name].to_dense()]
            none: list[int] = [] if name == "cat_tags" else [0]
            for row, bag in zip(batch.row_B.tolist(), bags, strict=True):
                value = rows[row][name] if row >= 0 else none
                assert bag == (value if isinstance(value, list) else [value])


def test_bags_of_lists_are_averaged(folder: Path) -> None:
    tables = embedding_tables(
        one_feature_each({"user_id": 6, "cat_tags": 4}), 8, device=None, averaged={"cat_tags": 1.0}
    )
    weights = {name: weight.detach() for name, weight in zip(("user_id", "cat_tags"), tables.parameters(), strict=True)}
    for batch in batches(folder, ("user_id", "cat_tags")):
        found = tables(batch.context).to_dict()
        for name, jagged in batch.context.to_dict().items():
            for bag, vector in zip(jagged.to_dense(), found[name], strict=True):
                expected = weights[name][bag].mean(dim=0) if len(bag) else torch.zeros(8)
                torch.testing.assert_close(vector, expected)


def test_memory_of_rows_counts_all_places(folder: Path) -> None:
    data = DataConfig(path=folder / "out", catalog=folder, history_length=3)
    one, two = (
        bytes_per_row(columns_of(data, ModelConfig(item=HidItem(), context=context), manifest_of(folder)))
        for context in (("cat_device",), ("cat_device", "cat_tags"))
    )
    assert two - one == 4 * 2


@pytest.mark.parametrize(
    ("tags", "rule"),
    [
        ([4], "ids in [0, 4)"),
        ([-1, 1], "ids in [0, 4)"),
        ([1, None], "ids in [0, 4)"),
        (None, "no missing value"),
        ([1, 2, 3], "at most 2 ids"),
    ],
)
def test_the_reader_refuses_broken_lists(folder: Path, tags: list[int] | None, rule: str) -> None:
    manifest = manifest_of(folder)
    table = pq.read_table(folder / "out" / "log" / manifest.files("train")[0].path)
    place, kind = table.column_names.index("cat_tags"), pa.list_(pa.int64())
    changed = pa.array([tags, *table["cat_tags"].to_pylist()[1:]], kind)
    rules = broken_rows(table.set_column(place, pa.field("cat_tags", kind), changed), manifest)
    assert list(rules) == [f"column cat_tags, expected {rule}"]
    assert np.flatnonzero(next(iter(rules.values()))).tolist() == [0]


@pytest.mark.parametrize(
    "lists",
    [
        {"cat_tags": {"longest": -1, "mean": 1.0}},
        {"cat_tags": {"longest": 2}},
        {"cat_tags": {"longest": 2, "mean": -1}},
        {"cat_tags": {"longest": 2.5, "mean": 1}},
        {"cat_tags": {"longest": 2, "mean": "1"}},
        {"cat_tags": [2, 1]},
        {"cat_other": {"longest": 2, "mean": 1.0}},
        {"user_id": {"longest": 2, "mean": 1.0}},
        ["cat_tags"],
        7,
    ],
    ids=json.dumps,
)
def test_a_manifest_with_broken_lists(folder: Path, lists: Any) -> None:
    path = folder / "out" / "log" / schema.MANIFEST
    write_json(path, {**schema.read_json(path, "a manifest"), "lists": lists})
    with pytest.raises(ContractError, match=r"manifest.json"):
        manifest_of(folder)
