"""Folders that --ids refuses: without maps, damaged, of another log, or OUT itself."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.amazon import AmazonCommand
from data_prep.movielens import MovieLensCommand
from sidrec import schema
from sidrec.errors import ContractError
from sidrec.id_maps import digest, map_path, source_ids
from tests.data_prep.days import (
    DAY_ONE,
    DAY_TWO,
    LISTED,
    SETTINGS,
    Days,
    items_of,
    maps,
    rows,
)
from tests.data_prep.event_lists import read_rows
from tests.digests import digest as folder_digest
from tests.golden import raw


@pytest.fixture
def days(tmp_path: Path) -> Days:
    return Days(tmp_path)


def _without_maps(data: Path) -> None:
    path = data / "log" / schema.MANIFEST
    stated = json.loads(path.read_text())
    del stated["id_maps"]
    path.write_text(json.dumps(stated))


def _rewrite(data: Path, column: str, change: object) -> None:
    """Changes a map together with the digest that the manifest states."""
    ids = source_ids(data, column).to_pylist()
    changed = change(ids)  # type: ignore[operator]
    table = pa.table({"source_id": pa.array(changed, pa.string())})
    pq.write_table(table, map_path(data, column))
    path = data / "log" / schema.MANIFEST
    stated = json.loads(path.read_text())
    stated["id_maps"][column] = {"ids": len(changed), "digest": digest(table["source_id"], len(changed))}
    path.write_text(json.dumps(stated))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _items(data: Path, change: object) -> None:
    table = pq.read_table(data / schema.ITEMS)
    pq.write_table(change(table), data / schema.ITEMS)  # type: ignore[operator]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "a data folder that data_prep wrote"),
    "no manifest": (lambda data: (data / "log" / "manifest.json").unlink(), "a data folder that data_prep wrote"),
    "no maps": (_without_maps, "a data folder with id maps"),
    "no map of users": (lambda data: map_path(data, "user_id").unlink(), r"ids/user_id\.parquet"),
    "map cut short": (lambda data: _cut(map_path(data, "item_id")), r"ids/item_id\.parquet"),
    "map of another column": (
        lambda data: shutil.copy(map_path(data, "user_id"), map_path(data, "item_id")),
        r"ids/item_id\.parquet",
    ),
    "ids swapped": (
        lambda data: pq.write_table(pa.table({"source_id": ["b", "a", "c"]}), map_path(data, "item_id")),
        r"ids/item_id\.parquet.*another digest",
    ),
    "wrong column name": (
        lambda data: pq.write_table(pa.table({"id": ["a", "b", "c"]}), map_path(data, "item_id")),
        r"ids/item_id\.parquet.*source_id",
    ),
    "repeated id": (lambda data: _rewrite(data, "user_id", lambda ids: [ids[0]] * len(ids)), "once.*'ann'"),
    "empty id": (lambda data: _rewrite(data, "cat_device", lambda ids: ["", *ids[1:]]), "once, and none empty"),
    "items in another order": (lambda data: _items(data, lambda table: table.take([1, 0, 2])), r"items\.parquet"),
    "fewer items": (lambda data: _items(data, lambda table: table.slice(1)), r"items\.parquet"),
    "other source ids": (
        lambda data: _items(data, lambda table: table.set_column(2, "source_id", pa.array(["x", "y", "z"]))),
        r"items\.parquet",
    ),
    "no impressions": (
        lambda data: _items(data, lambda table: table.drop_columns(["train_impressions"])),
        r"items\.parquet.*train_impressions",
    ),
    "two columns of a name": (
        lambda data: _items(data, lambda table: table.append_column("title", table["title"])),
        r"items\.parquet.*one column title",
    ),
    "no ids of items": (
        lambda data: _items(data, lambda table: table.drop_columns(["item_id"])),
        r"items\.parquet.*item_id",
    ),
    "no items": (lambda data: (data / schema.ITEMS).unlink(), r"items\.parquet"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_folder_that_cannot_be_used_is_refused_by_name(days: Days, kind: str) -> None:
    one = days.prepare("one", DAY_ONE)
    damage, message = DAMAGE[kind]
    damage(one)
    with pytest.raises(ContractError, match=message) as raised:
        days.prepare("two", DAY_TWO, ids=one)
    assert str(one) in str(raised.value)
    assert not (days.folder / "two").exists()
    assert not (days.folder / "two.partial").exists()


@pytest.mark.parametrize("ids", [[99] * 4, [-7] * 4])
def test_ids_of_categories_that_the_map_lacks_are_refused(days: Days, ids: list[int]) -> None:
    one = days.prepare("one", DAY_ONE, LISTED)
    _items(one, lambda table: table.set_column(table.column_names.index("cat_brand"), "cat_brand", pa.array(ids)))
    with pytest.raises(ContractError, match=r"items\.parquet: expected ids of .*ids/cat_brand\.parquet"):
        days.prepare("two", DAY_TWO, LISTED[:1], ids=one)


def test_a_folder_that_is_not_there_is_answered_with_those_that_are(days: Days) -> None:
    days.prepare("logs", DAY_ONE)
    with pytest.raises(ContractError, match=f"there are {days.folder / 'logs'}; did you mean"):
        days.prepare("two", DAY_TWO, ids=days.folder / "log")


def test_a_folder_of_another_log_is_refused_with_examples(days: Days) -> None:
    one = days.prepare("one", DAY_ONE)
    with pytest.raises(ContractError, match=r"none of its 2 users \(such as 'ann', 'bob'\) and none of its 3 items"):
        days.prepare("two", rows("zoe x tv", "yan y tv", "zoe z tv", "yan x tv"), ids=one)
    assert not (days.folder / "two.partial").exists()


def test_a_day_of_new_items_alone_gets_a_warning(days: Days, capsys: pytest.CaptureFixture[str]) -> None:
    one = days.prepare("one", DAY_ONE)
    two = days.prepare("two", rows("ann x tv", "yan y tv", "zoe z tv", "yan x tv"), ids=one)
    assert "none of its 3 items (such as 'a', 'b') in the log" in capsys.readouterr().err
    assert maps(two)["item_id"] == ["a", "b", "c", "x", "y", "z"]


def test_a_day_of_new_users_alone_gets_a_warning(days: Days, capsys: pytest.CaptureFixture[str]) -> None:
    one = days.prepare("one", DAY_ONE)
    days.prepare("two", rows("0ann a tv", "0bob b tv", "0ann c tv", "0bob a tv"), ids=one)
    assert "none of its 2 users (such as 'ann', 'bob') in the log" in capsys.readouterr().err
    days.prepare("three", rows("ann a tv", "0bob b tv", "0ann c tv", "0bob a tv"), ids=one)
    assert "in the log" not in capsys.readouterr().err


def test_a_movielens_folder_does_not_number_another_log(days: Days, tmp_path: Path) -> None:
    source = tmp_path / "ml"
    source.mkdir()
    (source / "movies.csv").write_text("movieId,title,genres\n1,One (1999),Drama\n2,Two (2001),Comedy|Drama\n")
    ratings = [f"{k % 3 + 1},{k % 2 + 1},{4.5 if k % 3 else 2.0},{60 * k}" for k in range(12)]
    (source / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]) + "\n")
    MovieLensCommand(source, tmp_path / "first", SETTINGS, vectors="none").run()
    MovieLensCommand(source, tmp_path / "second", replace(SETTINGS, ids=tmp_path / "first"), vectors="none").run()
    assert maps(tmp_path / "first") == maps(tmp_path / "second")
    assert items_of(tmp_path / "first") == items_of(tmp_path / "second")
    with pytest.raises(ContractError, match="the folder of an earlier log"):
        days.prepare("two", DAY_TWO, ids=tmp_path / "first")


def test_amazon_reviews_with_their_own_ids_give_the_same_folder(tmp_path: Path) -> None:
    raw.write_raw(tmp_path / "raw")
    for day, ids in (("one", None), ("two", tmp_path / "one")):
        AmazonCommand(tmp_path / "raw" / "amazon", tmp_path / day, replace(SETTINGS, ids=ids), "none").run()
    one, two = tmp_path / "one", tmp_path / "two"
    assert maps(one) == maps(two)
    assert items_of(one) == items_of(two)
    assert read_rows(one) == read_rows(two)


@pytest.mark.parametrize("overwrite", [False, True])
def test_out_may_not_be_the_earlier_folder(days: Days, overwrite: bool) -> None:
    one = days.prepare("one", DAY_ONE)
    before = folder_digest(one)
    with pytest.raises(ContractError, match="apart from the input"):
        days.prepare("one", DAY_TWO, ids=one, overwrite=overwrite)
    assert folder_digest(one) == before


def test_overwriting_replaces_a_folder_with_maps(days: Days) -> None:
    days.prepare("one", DAY_ONE)
    again = days.prepare("one", DAY_TWO, overwrite=True)
    assert maps(again)["item_id"] == ["a", "d", "c", "e"]
    (again / "ids" / "notes.txt").write_text("mine")
    with pytest.raises(ContractError, match=r"notes\.txt"):
        days.prepare("one", DAY_ONE, overwrite=True)
