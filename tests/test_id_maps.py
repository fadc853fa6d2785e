"""Id maps: digests depend on ids alone; grown maps pass, renumbered ones are refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import schema
from sidrec.errors import ContractError
from sidrec.id_maps import IdMaps, check_grown, digest, map_path, save_source_ids, source_ids
from sidrec.preflight.data_sample import id_map_findings
from sidrec.schema import load_manifest

TEXTS = ["a", "bc", "", "Käse", "東京", "x" * 300, "a", "7", "007", " 7"]


def data_folder(data: Path, maps: dict[str, list[str]]) -> Path:
    """A data folder with a manifest, maps and no rows."""
    found = {column: save_source_ids(data, column, pa.chunked_array([ids])) for column, ids in maps.items()}
    rows = {schema.USER_ID: 1, schema.ITEM_ID: 1} | {column: len(ids) + 1 for column, ids in maps.items()}
    (data / schema.LOG).mkdir(parents=True, exist_ok=True)
    schema.save_manifest(schema.Manifest("test", 0, rows, (), (), 0, {}, id_maps=found), data / schema.LOG)
    return data


def test_digest_depends_on_the_ids_alone() -> None:
    whole = pa.chunked_array([TEXTS])
    wanted = digest(whole, len(TEXTS))
    cut = pa.chunked_array([TEXTS[:3], [], TEXTS[3:4], TEXTS[4:]], pa.string())
    sliced = pa.chunked_array([pa.array(["other", *TEXTS, "more"]).slice(1)])
    for same in (cut, sliced, whole.cast(pa.large_string()), pa.chunked_array([["q", *TEXTS]]).slice(1)):
        assert digest(same, len(TEXTS)) == wanted
    others = (TEXTS[::-1], [*TEXTS[:-1], "7 "], ["ab", "c", *TEXTS[2:]], ["abc", "", *TEXTS[2:]], [*TEXTS, ""])
    assert len({wanted, *(digest(pa.chunked_array([ids]), len(ids)) for ids in others)}) == 1 + len(others)
    assert digest(pa.chunked_array([], pa.string()), 0) != digest(pa.chunked_array([[""]]), 1)


def test_digest_of_the_first_ids_is_that_of_the_shorter_column() -> None:
    for ids in range(len(TEXTS) + 1):
        shorter = pa.chunked_array([pa.array(TEXTS[:ids], pa.string())])
        assert digest(pa.chunked_array([TEXTS[:4], TEXTS[4:]]), ids) == digest(shorter, ids)


@pytest.mark.parametrize("ids", [["a"], ["a", None]])
def test_digest_refuses_too_few_and_missing_ids(ids: list[str | None]) -> None:
    with pytest.raises(ValueError, match="source ids"):
        digest(pa.chunked_array([ids]), 2)


@pytest.mark.parametrize("column", ["user_id", "cat_brand", "cat_a/b", "cat_50%", "cat_%2F", "cat_Größe", "cat_.."])
def test_a_map_is_read_back(tmp_path: Path, column: str) -> None:
    data = data_folder(tmp_path, {column: TEXTS})
    assert source_ids(data, column).to_pylist() == TEXTS
    assert map_path(data, column).parent == data / schema.IDS


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "no parquet": lambda path: path.write_text("source_id\na\n"),
    "a row less": lambda path: write(path, TEXTS[:-1]),
    "a row more": lambda path: write(path, [*TEXTS, "more"]),
    "another order": lambda path: write(path, TEXTS[::-1]),
    "a null": lambda path: write(path, [None, *TEXTS[1:]]),
    "another type": lambda path: write(path, list(range(len(TEXTS)))),
    "another column": lambda path: pq.write_table(pa.table({"id": TEXTS}), path),
    "two columns of the name": lambda path: pq.write_table(pa.table([TEXTS, TEXTS], ["source_id"] * 2), path),
}


def write(path: Path, ids: Sequence[object]) -> None:
    pq.write_table(pa.table({"source_id": ids}), path)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_map_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    data = data_folder(tmp_path, {"item_id": TEXTS})
    DAMAGE[kind](map_path(data, "item_id"))
    with pytest.raises(ContractError, match=r"ids/item_id\.parquet"):
        source_ids(data, "item_id")


def test_a_column_without_a_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="a map of cat_brand"):
        source_ids(data_folder(tmp_path, {"item_id": ["a"]}), "cat_brand")


BEFORE = {"user_id": ["u", "v"], "item_id": ["a", "b", "c"], "cat_brand": ["x"]}
GROWN: list[dict[str, list[str]]] = [
    {},
    {"user_id": ["u", "v", "w"]},
    {"item_id": ["a", "b", "c", "d", "e"], "cat_brand": ["x", "y"]},
    {"cat_new": ["k"]},
]
MOVED: dict[str, dict[str, list[str]]] = {
    "id 1 is 'v', there 'u'": {"user_id": ["v", "u"]},
    "id 3 is missing": {"item_id": ["a", "b"]},
    "id 2 is 'd', there 'b'": {"item_id": ["a", "d", "b", "c"]},
    "id 1 is 'y', there 'x'": {"cat_brand": ["y"]},
}


@pytest.mark.parametrize("change", GROWN)
def test_equal_and_grown_maps_pass(tmp_path: Path, change: dict[str, list[str]]) -> None:
    earlier = IdMaps.of(data_folder(tmp_path / "one", BEFORE))
    assert check_grown(earlier, "runs/demo", data_folder(tmp_path / "two", BEFORE | change)) == ""


@pytest.mark.parametrize("example", MOVED)
def test_moved_ids_are_refused_by_name(tmp_path: Path, example: str) -> None:
    one, two = data_folder(tmp_path / "one", BEFORE), data_folder(tmp_path / "two", BEFORE | MOVED[example])
    earlier = IdMaps.of(one)
    with pytest.raises(ContractError, match=example) as raised:
        check_grown(earlier, "runs/demo", two, one)
    (column,) = MOVED[example]
    message = str(raised.value)
    for part in (f"ids of {column}", earlier.fingerprint, "--ids"):
        assert part in message
    with pytest.raises(ContractError, match="ids that are others"):
        check_grown(earlier, "runs/demo", two)


def test_folders_without_maps_are_not_checked(tmp_path: Path) -> None:
    with_maps, without = data_folder(tmp_path / "one", BEFORE), data_folder(tmp_path / "two", {})
    assert f"{without} has no id maps" in check_grown(IdMaps.of(with_maps), "runs/demo", without)
    assert "runs/demo has no id maps" in check_grown(IdMaps.of(without), "runs/demo", with_maps)


def test_the_doctor_compares_maps_with_the_manifest(tmp_path: Path) -> None:
    data = data_folder(tmp_path, BEFORE)
    manifest = load_manifest(data / schema.LOG)
    (found,) = id_map_findings(data, manifest)
    assert (found.state, found.found) == ("ok", f"3 are what was written (fingerprint {IdMaps.of(data).fingerprint})")
    write(map_path(data, "cat_brand"), ["y"])
    (found,) = id_map_findings(data, manifest)
    assert found.state == "problem"
    assert "ids/cat_brand.parquet" in found.found
    assert id_map_findings(data, replace(manifest, id_maps={})) == []


def test_fingerprints_differ_with_any_column(tmp_path: Path) -> None:
    all_maps = [BEFORE, *(BEFORE | change for change in (*GROWN[1:], *MOVED.values()))]
    found = {IdMaps.of(data_folder(tmp_path / str(place), maps)).fingerprint for place, maps in enumerate(all_maps)}
    assert len(found) == len(all_maps)


def test_json_round_trip(tmp_path: Path) -> None:
    maps = IdMaps.of(data_folder(tmp_path, BEFORE))
    assert IdMaps.from_json(json.loads(json.dumps(maps.to_json())), "x") == maps


ENTRY = {"ids": 1, "digest": "0" * 64}


@pytest.mark.parametrize(
    "value",
    [
        [],
        None,
        {"user_id": 3},
        {"user_id": {}},
        {"user_id": {"ids": 1}},
        {"user_id": ENTRY | {"ids": -1}},
        {"user_id": ENTRY | {"ids": 1.0}},
        {"user_id": ENTRY | {"ids": True}},
        {"user_id": ENTRY | {"digest": None}},
        {"user_id": ENTRY | {"digest": "0" * 63 + "g"}},
        {"user_id": ENTRY | {"more": 1}},
    ],
)
def test_json_of_others_is_refused(value: object) -> None:
    with pytest.raises(ContractError, match=r"position\.json"):
        IdMaps.from_json(value, "position.json, id_maps")


def test_a_manifest_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    data = data_folder(tmp_path, BEFORE)
    path = data / schema.LOG / schema.MANIFEST
    for column, ids in (("user_id", 3), ("cat_other", 1)):
        raw = json.loads(path.read_text())
        raw["id_maps"] = {column: ENTRY | {"ids": ids}}
        path.write_text(json.dumps(raw))
        with pytest.raises(ContractError, match=f"id_maps.{column}"):
            IdMaps.of(data)


def test_old_manifests_have_no_maps(tmp_path: Path) -> None:
    data = data_folder(tmp_path, {})
    path = data / schema.LOG / schema.MANIFEST
    raw = json.loads(path.read_text())
    assert "id_maps" not in raw
    assert not IdMaps.of(data)
