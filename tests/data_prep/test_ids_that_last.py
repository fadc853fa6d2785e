"""Days prepared one after another with --ids: ids never move, maps only grow, items and what is known of them stay."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.synthetic import SyntheticCommand, WorldSettings
from sidrec import schema
from sidrec.id_maps import IdMaps, check_grown, digest, source_ids
from tests.data_prep.days import (
    COLUMNS,
    DAY_ONE,
    DAY_TWO,
    HEADER,
    LISTED,
    SETTINGS,
    WITH_ITEMS,
    Days,
    items_of,
    maps,
    rows,
)
from tests.data_prep.event_lists import DAY, read_rows
from tests.digests import digest as folder_digest
from tests.killed import killed_when


@pytest.fixture
def days(tmp_path: Path) -> Days:
    return Days(tmp_path)


def by_source(data: Path) -> set[tuple[str, str, str, int]]:
    """User, item, device (source ids) and time of every row."""
    texts = {column: ["", *ids] for column, ids in maps(data).items()}
    return {
        (
            texts["user_id"][row["user_id"]],
            texts["item_id"][row["item_id"]],
            texts["cat_device"][row["cat_device"]],
            row["timestamp"],
        )
        for row in read_rows(data)
    }


# Ids never move.

NAMES = st.sampled_from(["a", "b", "B", "7", "007", "Käse", "東京", "née ", "x y", "🎧", "e\u0301", "é"])
EVENTS = st.tuples(NAMES, NAMES, st.sampled_from(["", "tv", "web", "größer", "0"]))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(EVENTS, min_size=5, max_size=18), min_size=2, max_size=4))
def test_maps_of_each_day_begin_with_those_of_the_day_before(log: list[list[tuple[str, str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        days, before = Days(Path(folder)), None
        known: dict[str, list[str]] = {}
        for number, events in enumerate(log):
            lines = [f"{u},{i},{number * DAY + 60 * k},1,{d}" for k, (u, i, d) in enumerate(events)]
            shared = f"a,a,{number * DAY + 6000},1,tv"  # a log that shares nothing with the day before is refused
            data = days.prepare(f"day{number}", [*lines, shared], ids=before)
            found = maps(data)
            stated = schema.load_manifest(data / "log")
            for column, ids in found.items():
                earlier = known.get(column, [])
                assert ids[: len(earlier)] == earlier
                assert len(set(ids)) == len(ids)
                assert "" not in ids
                assert stated.ids[column] == len(ids) + 1
                assert stated.id_maps[column].ids == len(ids)
                if before is not None:
                    prefix = digest(source_ids(data, column), len(earlier))
                    assert prefix == IdMaps.of(before).columns[column].digest
            assert {event[:2] for event in by_source(data)} == {(u.strip(), i.strip()) for u, i, _ in events} | {
                ("a", "a")
            }
            assert [row["source_id"] for row in items_of(data)] == found["item_id"]
            assert [row["item_id"] for row in items_of(data)] == list(range(1, len(found["item_id"]) + 1))
            if before is not None:
                assert check_grown(IdMaps.of(before), before, data) == ""
            known, before = found, data


def test_ids_of_users_items_and_categories_go_on(days: Days) -> None:
    one = days.prepare("one", rows("ann b tv", "bob a web", "ann c tv", "cid b tv"))
    two = days.prepare("two", rows("dan a app", "bob d", "eve a tv", "dan e web", day=1), ids=one)
    assert maps(one) == {"user_id": ["ann", "bob", "cid"], "item_id": ["b", "a", "c"], "cat_device": ["tv", "web"]}
    assert maps(two) == {
        "user_id": ["ann", "bob", "cid", "dan", "eve"],
        "item_id": ["b", "a", "c", "d", "e"],
        "cat_device": ["tv", "web", "app"],
    }
    assert by_source(two) == {
        ("dan", "a", "app", DAY),
        ("bob", "d", "", DAY + 60),
        ("eve", "a", "tv", DAY + 120),
        ("dan", "e", "web", DAY + 180),
    }
    stated = schema.load_manifest(two / "log").protocol["ids_from"]
    assert stated["fingerprint"] == IdMaps.of(one).fingerprint  # type: ignore[index]
    assert stated["ids"] == {"user_id": 3, "item_id": 3, "cat_device": 2}  # type: ignore[index]


def test_the_same_log_with_its_own_ids_gives_the_same_rows(days: Days) -> None:
    log = rows("ann b tv", "bob a web", "ann c tv", "cid b tv", "bob b app")
    one = days.prepare("one", log, ["c,see,X", "z,zoo,Y", "a,aye,X"])
    again = days.prepare("again", log, ["c,see,X", "z,zoo,Y", "a,aye,X"], ids=one)
    assert read_rows(one) == read_rows(again)
    assert items_of(one) == items_of(again)
    assert maps(one) == maps(again)
    assert IdMaps.of(one) == IdMaps.of(again)


def test_summary_counts_new_ids(days: Days, capsys: pytest.CaptureFixture[str]) -> None:
    one = days.prepare("one", rows("ann a tv", "bob b tv", "ann b tv", "bob a tv"))
    days.prepare("two", rows("ann a tv", "cid c web", "dan a tv", "ann b tv"), ids=one)
    found = capsys.readouterr().out
    assert f"ids go on from {one}: user_id 2 new of 4, item_id 1 new of 3, cat_device 1 new of 2" in found
    assert "histories and statistics begin with this log" not in found
    days.prepare("three", rows("ann a tv", "cid c web", "dan a tv", "ann b tv", day=1), ids=one)
    assert "histories and statistics begin with this log" in capsys.readouterr().out


# Items.


def brands(data: Path) -> dict[object, str]:
    texts = ["", *maps(data)["cat_brand"]]
    return {row["source_id"]: texts[row["cat_brand"]] for row in items_of(data)}


LINES = st.tuples(NAMES, st.sampled_from(["", "Bread", "Käse"]), st.sampled_from(["", "Farm", "Kiln", "é"]))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(LINES, max_size=8, unique_by=lambda line: line[0].strip()), min_size=2, max_size=4))
def test_the_latest_listing_of_an_item_counts(listings: list[list[tuple[str, str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        days, before = Days(Path(folder)), None
        known: dict[str, tuple[str, str]] = {}
        order: list[str] = []
        for number, listing in enumerate(listings):
            lines = [(source_id.strip(), name, brand) for source_id, name, brand in listing if source_id != "a"]
            lines.append(("a", "Apples", "Farm"))
            events = rows("u a tv", "v b tv", "u 東京 tv", "u 7 tv", day=number)
            data = days.prepare(f"day{number}", events, [",".join(line) for line in lines], ids=before)
            known |= {source_id: (name, brand) for source_id, name, brand in lines}
            order += [item for item in (*(line[0] for line in lines), "a", "b", "東京", "7") if item not in order]
            found, brand_of = items_of(data), brands(data)
            assert [row["source_id"] for row in found] == list(dict.fromkeys(order))
            for row in found:
                item = row["source_id"]
                assert (row["title"], brand_of[item]) == known.get(item, ("", ""))
            before = data


def test_items_that_today_does_not_list_keep_what_is_known_of_them(days: Days) -> None:
    one = days.prepare("one", DAY_ONE, LISTED)
    two = days.prepare("two", DAY_TWO, ["d,Dates,Oasis", "a,Red apples,Orchard"], ids=one)
    assert [row["source_id"] for row in items_of(one)] == ["b", "a", "q", "c"]
    assert [row["source_id"] for row in items_of(two)] == ["b", "a", "q", "c", "d", "e"]
    assert [row["title"] for row in items_of(two)] == ["Bread", "Red apples", "Quince", "", "Dates", ""]
    assert maps(two)["cat_brand"] == ["Baker", "Farm", "Oasis", "Orchard"]
    assert brands(two) == {"b": "Baker", "a": "Orchard", "q": "Farm", "c": "", "d": "Oasis", "e": ""}
    notes = schema.load_manifest(two / "log").protocol["items"]
    assert notes == {"items": 6, "not_in_items_file": 4, "without_text": 2, "carried_over": 3}
    three = days.prepare("three", rows("ann b tv", "bob q tv", "cid d tv", "ann a tv", day=2), ["f,Figs,Farm"], ids=two)
    assert brands(three) == {**brands(two), "f": "Farm"}
    by_item = {row["item_id"]: row["cat_brand"] for row in read_rows(three)}
    assert by_item == {row["item_id"]: row["cat_brand"] for row in items_of(three) if row["item_id"] in by_item}


def test_a_folder_without_todays_categories_gives_unknown(days: Days) -> None:
    one = days.prepare("one", DAY_ONE)
    two = days.prepare("two", DAY_TWO, ["d,Dates,Oasis", "a,Apples,"], ids=one)
    assert brands(two) == {"a": "", "b": "", "c": "", "d": "Oasis", "e": ""}


def test_a_day_without_a_file_of_items_keeps_all_text(days: Days, capsys: pytest.CaptureFixture[str]) -> None:
    one = days.prepare("one", DAY_ONE, LISTED)
    assert "forgotten flags" not in capsys.readouterr().err
    two = days.prepare("two", DAY_TWO, ids=one)
    assert f"--ids {one}: its columns cat_brand are not in this preparation" in capsys.readouterr().err
    assert [row["title"] for row in items_of(two)] == ["Bread", "Apples", "Quince", "", "", ""]
    assert "cat_brand" not in maps(two)


@pytest.mark.parametrize("group", [2, 3, 1000])
def test_vectors_are_carried_over_and_new_items_have_zeros(days: Days, group: int) -> None:
    one = days.prepare("one", DAY_ONE, LISTED)
    table = pq.read_table(one / schema.ITEMS)
    vectors = np.arange(len(table) * 3, dtype=np.float32).reshape(-1, 3) + 1
    for name in ("text", "behavior"):
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3)
        table = table.append_column(name, column)
    pq.write_table(table, one / schema.ITEMS, row_group_size=group)
    two = days.prepare("two", DAY_TWO, LISTED[:1], ids=one)
    found = pq.read_table(two / schema.ITEMS)
    for name in ("text", "behavior"):
        assert found[name].to_pylist() == [*vectors.tolist(), [0.0] * 3, [0.0] * 3]
    assert found["title"].to_pylist() == ["Bread", "Apples", "Quince", "", "", ""]


def test_vectors_made_today_replace_those_of_the_day_before(days: Days, tmp_path: Path) -> None:
    for items, day, log, ids in ((4, "one", DAY_ONE, None), (6, "two", DAY_TWO, tmp_path / "one")):
        np.save(tmp_path / f"{day}.npy", np.full((items, 2), items, np.float32))
        (tmp_path / f"{day}.csv").write_text("\n".join([HEADER, *log]) + "\n")
        (tmp_path / "items.csv").write_text("sku,name,brand\nq,Quince,Farm\na,Apples,Farm\nb,Bread,\n")
        columns = replace(WITH_ITEMS, items_file=tmp_path / "items.csv") if day == "one" else COLUMNS
        flags = replace(SETTINGS, ids=ids)
        InteractionsCommand(tmp_path / f"{day}.csv", tmp_path / day, columns, flags, str(tmp_path / f"{day}.npy")).run()
    found = pq.read_table(tmp_path / "two" / schema.ITEMS)
    assert found["text"].to_pylist() == [[6.0, 6.0]] * 6


def test_lists_of_items_are_carried_over_and_their_values_numbered_on(tmp_path: Path) -> None:
    columns = Columns(items_id_column="sku", item_cat_list_columns=("tags",), list_separator="|")
    logs = {"one": ["u,a,1", "v,b,2", "u,c,3", "v,a,4"], "two": ["u,a,5", "v,d,6", "w,e,7", "u,b,8"]}
    lists = {"one": ["a,red|new", "b,blue", "c,", "q,new|old"], "two": ["d,green|red", "a,blue"]}
    for day, log in logs.items():
        (tmp_path / f"{day}.csv").write_text("\n".join(["user_id,item_id,timestamp", *log]) + "\n")
        (tmp_path / f"{day}-items.csv").write_text("\n".join(["sku,tags", *lists[day]]) + "\n")
        here = replace(columns, items_file=tmp_path / f"{day}-items.csv")
        flags = replace(SETTINGS, ids=None if day == "one" else tmp_path / "one")
        InteractionsCommand(tmp_path / f"{day}.csv", tmp_path / day, here, flags, "none").run()
    assert maps(tmp_path / "one")["cat_tags"] == ["blue", "new", "old", "red"]
    assert maps(tmp_path / "two")["cat_tags"] == ["blue", "new", "old", "red", "green"]
    texts = ["", *maps(tmp_path / "two")["cat_tags"]]
    found = {row["source_id"]: [texts[tag] for tag in row["cat_tags"]] for row in items_of(tmp_path / "two")}
    wanted = {"a": ["blue"], "b": ["blue"], "c": [], "q": ["new", "old"], "d": ["green", "red"], "e": []}
    assert found == wanted


def test_a_smaller_synthetic_world_keeps_the_items_of_a_larger_one(tmp_path: Path) -> None:
    for items, day, ids in ((60, "one", None), (50, "two", tmp_path / "one")):
        world = WorldSettings(rows=1_000, users=60, items=items, branching=4, width=12)
        SyntheticCommand(tmp_path / day, world, LogSettings(history=5, ids=ids)).run()
    assert maps(tmp_path / "two")["item_id"] == [str(item + 1) for item in range(60)]
    one, two = (pq.read_table(tmp_path / day / schema.ITEMS) for day in ("one", "two"))
    assert two["cluster_3"].to_pylist() == one["cluster_3"].to_pylist()
    assert [any(vector) for vector in two["text"].to_pylist()] == [True] * 50 + [False] * 10


def test_numbers_of_items_and_the_constants_of_their_transform_are_kept(tmp_path: Path) -> None:
    columns = Columns(items_id_column="sku", item_dense_columns=("price",), dense_columns=("seconds",))
    head = "user_id,item_id,timestamp,seconds"
    first = [f"u{k % 3},{'abc'[k % 3]},{60 * k},{k}" for k in range(12)]
    second = [f"u{k % 4},{'abcd'[k % 4]},{DAY + 60 * k},{1000 * k}" for k in range(12)]
    found = {}
    for day, log, items in (("one", first, ["a,1", "b,20", "c,"]), ("two", second, ["d,400", "a,5"])):
        (tmp_path / f"{day}.csv").write_text("\n".join([head, *log]) + "\n")
        (tmp_path / f"{day}-items.csv").write_text("\n".join(["sku,price", *items]) + "\n")
        here = replace(columns, items_file=tmp_path / f"{day}-items.csv")
        flags = replace(SETTINGS, ids=None if day == "one" else tmp_path / "one")
        InteractionsCommand(tmp_path / f"{day}.csv", tmp_path / day, here, flags, "none").run()
        found[day] = schema.load_manifest(tmp_path / day / "log")
    prices = [row["int_price"] for row in items_of(tmp_path / "two")]
    assert prices == [5, 20, None, 400]
    for column in ("int_price", "int_seconds"):
        one, two = (manifest.transforms[column] for manifest in found.values())
        assert (one.mean, one.deviation) == (two.mean, two.deviation)
    assert found["one"].dense == found["two"].dense


# Killed and continued.


def _killed(log: Path, out: Path, ids: Path) -> None:
    command = ["-m", "data_prep.interactions", str(log), str(out), "--partition-rows", "40", "--ids", str(ids)]
    killed_when(out.with_name(f"{out.name}.partial") / "scratch" / "written" / "part-00001.json", command)
    assert not out.exists()


def test_killed_and_continued_equals_uninterrupted_unless_the_folder_changed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for day in (0, 1):
        items, start = 200 + 100 * day, 300 * DAY * day
        lines = [
            f"u{random.integers(300)},i{random.integers(items)},{start + random.integers(300 * DAY)}"
            for _ in range(3_000)
        ]
        (tmp_path / f"{day}.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    one, log = tmp_path / "one", tmp_path / "1.csv"
    InteractionsCommand(tmp_path / "0.csv", one, Columns(), LogSettings()).run()
    flags = LogSettings(partition_rows=40, ids=one)
    InteractionsCommand(log, tmp_path / "straight", Columns(), flags).run()
    _killed(log, tmp_path / "out", one)
    first = next((tmp_path / "out.partial").rglob("part-00000.parquet"))
    written = first.stat().st_mtime_ns
    shutil.copytree(tmp_path / "out.partial", tmp_path / "other.partial")
    InteractionsCommand(log, tmp_path / "out", Columns(), flags).run()
    assert folder_digest(tmp_path / "out") == folder_digest(tmp_path / "straight")
    part = first.relative_to(tmp_path / "out.partial" / "data")
    assert (tmp_path / "out" / part).stat().st_mtime_ns == written
    shutil.rmtree(tmp_path / "out")
    shutil.move(tmp_path / "other.partial", tmp_path / "out.partial")
    shutil.rmtree(one)
    InteractionsCommand(tmp_path / "0.csv", one, Columns(), LogSettings()).run()  # other file times
    InteractionsCommand(log, tmp_path / "out", Columns(), flags).run()
    assert (tmp_path / "out" / part).stat().st_mtime_ns != written
