"""A delta makes the version that was exported, to the last bit; a damaged one makes none."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidrec import cli
from sidrec.serve import deltas, id_lookup
from sidrec.serve.bundle import Bundle, Description, Store, file_of
from sidrec.serve.deltas import Delta, apply_delta, make_delta
from sidrec.serve.id_lookup import Texts, ids_folder, write_ids
from sidrec.serve.row_store import Precision, write_rows
from sidrec.serve.versions import DESCRIPTION, known_versions, new_version, publish
from sidrec.train.run_directory import RunDirectory
from tests.serve.conftest import World
from tests.train.refusals import refusal, start
from tests.train.test_other_data import run_of

ITEMS, WIDTH = 2000, 16
Change = Callable[[Path], None]


def version_of(bundle: Path, change: Change) -> str:
    """Puts a version in use that has the files of the one in use, if there is one, changed."""
    versions = known_versions(bundle)
    with new_version(bundle) as partial:
        if versions:
            shutil.copytree(Bundle(bundle).folder, partial, dirs_exist_ok=True)
            (partial / DESCRIPTION).unlink()
        change(partial)
        about = described(partial, step=len(versions))
        (partial / DESCRIPTION).write_text(about.text())
        publish(bundle, partial, about.version)
    return about.version


def described(folder: Path, step: int) -> Description:
    files = {path.relative_to(folder).as_posix(): file_of(path) for path in folder.rglob("*") if path.is_file()}
    precision: Any = next(name for name in files if name.startswith("hid.") and "scales" not in name).split(".")[1]
    return Description(
        run="run",
        step=step,
        recipe="small",
        catalog="",
        id_maps="",
        items=ITEMS,
        history_length=4,
        dense=(),
        stats=(),
        context=(),
        stores={"hid": Store(precision)},
        ids={"item_id": 0, "user_id": 0},
        tolerance=1.0,
        difference=0.0,
        made_with={},
        files=dict(sorted(files.items())),
    )


def first_version(folder: Path) -> None:
    items(hids())(folder)
    write_ids(ids_folder(folder, "user_id"), Texts.of([f"user-{row}" for row in range(99)]))
    (folder / "rows.onnx").write_bytes(b"a graph")


def items(rows_RD: np.ndarray, precision: Precision = "f32", ids: int | None = None) -> Change:
    """HIDs and an index of ids. ids: their number; None: one for each row but row 0."""

    def write(folder: Path) -> None:
        for path in folder.glob("hid.*"):
            path.unlink()
        write_rows(folder, "hid", rows_RD, precision)
        write_ids(ids_folder(folder, "item_id"), Texts.of([f"sku-{row}" for row in range(ids or len(rows_RD) - 1)]))

    return write


def hids(rows: int = ITEMS) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(rows, WIDTH)).astype(np.float32)


def grown(changed: int = ITEMS // 20, more: int = 20) -> np.ndarray:
    """HIDs of which some are others, and some are more."""
    rows_RD = np.concatenate([hids(), hids(more)])
    random = np.random.default_rng(8)
    rows_RD[random.choice(ITEMS, changed, replace=False)] = random.normal(size=(changed, WIDTH))
    return rows_RD


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose version in use has 2,000 HIDs. Nothing was trained: no delta reads a graph."""
    version_of(tmp_path / "bundle", first_version)
    return tmp_path / "bundle"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state_of(bundle: Path) -> list[str]:
    """All names below the bundle, and the version in use."""
    return [str((bundle / "CURRENT").readlink()), *sorted(str(path) for path in bundle.rglob("*"))]


def check_applied(source: Path, delta: Path, copy: Path) -> None:
    apply_delta(delta, copy)
    assert Bundle(copy).version == Bundle(source).version
    assert files_of(Bundle(copy).folder) == files_of(Bundle(source).folder)


def test_a_run_that_trained_on_is_brought_to_another_copy(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = RunDirectory(world.run).recipe()
    train = replace(recipe.train, epochs=1, runs=tmp_path / "runs")
    assert start(replace(recipe, train=train, start=replace(recipe.start, checkpoint=world.run))) == 0
    shutil.copytree(world.bundle, tmp_path / "made", symlinks=True)
    assert cli.main(["export", str(run_of(tmp_path)), str(tmp_path / "made"), "--store", "f32"]) == 0
    old, new = (Bundle(path).version for path in (world.bundle, tmp_path / "made"))
    capsys.readouterr()
    assert cli.main(["delta", "make", str(tmp_path / "made"), old, str(tmp_path / "delta")]) == 0
    said = capsys.readouterr().out
    assert f"turn version {old} into {new}, which has" in said
    shutil.copytree(world.bundle, tmp_path / "copy", symlinks=True)
    assert cli.main(["delta", "apply", str(tmp_path / "delta"), str(tmp_path / "copy")]) == 0
    assert Bundle(tmp_path / "copy").version == new
    assert files_of(Bundle(tmp_path / "copy").folder) == files_of(Bundle(tmp_path / "made").folder)
    assert set(known_versions(tmp_path / "copy")) == {old, new}
    assert Delta.read(tmp_path / "delta").made["ids/of_item_id/hashes.npy"] == "same"


@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_five_percent_of_hids_and_one_percent_of_items(
    bundle: Path, tmp_path: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "BLOCK", 300)
    monkeypatch.setattr(id_lookup, "BUCKETS_AT_A_TIME", 64)
    old = version_of(bundle, items(hids(), precision))
    shutil.copytree(bundle, tmp_path / "copy", symlinks=True)
    version_of(bundle, items(grown(), precision))
    delta = make_delta(bundle, old, tmp_path / "delta")
    assert {how for name, how in delta.made.items() if name.startswith("hid.")} == {"rows"}
    assert [delta.made[f"ids/of_item_id/{part}.npy"] for part in ("hashes", "rows", "buckets")] == [
        "inserted",
        "inserted",
        "buckets",
    ]
    assert delta.made["rows.onnx"] == delta.made["ids/of_user_id/hashes.npy"] == "same"
    row_bytes = {"f32": 64 + 4, "f16": 32 + 4, "int8": 16 + 8 + 2 * 4}[precision]
    arrays, headers = (ITEMS // 20 + 20) * row_bytes + 20 * (8 + 4 + 2 * 4), 5 * 128
    about = file_of(tmp_path / "delta/bundle.json").bytes
    assert arrays <= delta.bytes - about <= arrays + headers
    check_applied(bundle, tmp_path / "delta", tmp_path / "copy")


CHANGES: dict[str, tuple[Change, str, str]] = {
    "most rows": (items(grown(changed=1990, more=0)), "hid.f32.npy", "whole"),
    "another precision": (items(hids(), "f16"), "hid.f16.npy", "whole"),
    "fewer rows": (items(hids(1500)), "hid.f32.npy", "whole"),
    "fewer ids": (items(hids(), ids=1500), "ids/of_item_id/hashes.npy", "whole"),
    "other ids": (items(hids(2100), ids=1999), "ids/of_item_id/hashes.npy", "same"),
    "many more ids": (items(hids(9000)), "ids/of_item_id/buckets.npy", "buckets"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_shipped_whole(bundle: Path, tmp_path: Path, name: str) -> None:
    change, file, how = CHANGES[name]
    old = Bundle(bundle).version
    shutil.copytree(bundle, tmp_path / "copy", symlinks=True)
    version_of(bundle, change)
    assert make_delta(bundle, old, tmp_path / "delta").made[file] == how
    check_applied(bundle, tmp_path / "delta", tmp_path / "copy")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(delta: Path) -> None:
    (delta / "hid.f32.npy.values").write_bytes(b"cut")


def other_way(delta: Path) -> None:
    card = json.loads((delta / "delta.json").read_text())
    card["made"]["hid.f32.npy"] = "same"
    (delta / "delta.json").write_text(json.dumps(card))


def outside(delta: Path) -> None:
    card = json.loads((delta / "delta.json").read_text())
    card["files"]["../secret"] = {"bytes": 3, "sha256": ""}
    (delta / "delta.json").write_text(json.dumps(card))


DAMAGES: dict[str, tuple[Change, str]] = {
    "cut": (cut, "expected 7,680 bytes, got 3"),
    "changed": (lambda delta: flip(delta / "hid.f32.npy.numbers"), "expected the content that was exported"),
    "less": (lambda delta: (delta / "bundle.json").unlink(), "bundle.json: expected a file of"),
    "described otherwise": (other_way, "hid.f32.npy: expected"),
    "outside": (outside, "files: expected files within its folder, got ../secret"),
    "no delta": (lambda delta: (delta / "delta.json").unlink(), "delta.json: expected a delta, as sidrec delta make"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_delta_changes_nothing(
    bundle: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Bundle(bundle).version
    shutil.copytree(bundle, tmp_path / "copy", symlinks=True)
    version_of(bundle, items(grown()))
    make_delta(bundle, old, tmp_path / "delta")
    before = state_of(tmp_path / "copy")
    change, sentence = DAMAGES[name]
    change(tmp_path / "delta")
    words = ["delta", "apply", str(tmp_path / "delta"), str(tmp_path / "copy")]
    assert sentence in refusal(capsys, cli.main(words))
    assert state_of(tmp_path / "copy") == before


def test_copies_that_lack_the_old_version_or_have_it_damaged(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Bundle(bundle).version
    shutil.copytree(bundle, tmp_path / "copy", symlinks=True)
    version_of(bundle, items(grown()))
    make_delta(bundle, old, tmp_path / "delta")
    folder = Bundle(tmp_path / "copy").folder
    flip(folder / "hid.f32.npy")
    before = state_of(tmp_path / "copy")
    words = ["delta", "apply", str(tmp_path / "delta"), str(tmp_path / "copy")]
    assert f"version {old} of this bundle is damaged" in refusal(capsys, cli.main(words))
    flip(folder / "hid.f32.npy")
    (folder / "rows.onnx").unlink()
    assert "rows.onnx: expected the file of which the delta was made" in refusal(capsys, cli.main(words))
    (folder / "rows.onnx").touch()
    assert state_of(tmp_path / "copy") == before
    words[-1] = str(tmp_path / "another")
    version_of(tmp_path / "another", first_version)
    there = version_of(tmp_path / "another", items(hids(9)))
    shutil.rmtree(tmp_path / "another/versions" / old)
    assert f"expected one of {there}, got {old}" in refusal(capsys, cli.main(words))
    words[-1] = str(tmp_path / "none")
    assert "expected one of none" in refusal(capsys, cli.main(words))
    assert not (tmp_path / "none").exists()


def test_a_delta_that_was_applied_is_put_in_use_again(bundle: Path, tmp_path: Path) -> None:
    old = Bundle(bundle).version
    new = version_of(bundle, items(grown()))
    make_delta(bundle, old, tmp_path / "delta")
    assert cli.main(["export", "--use", old, str(bundle)]) == 0
    before = known_versions(bundle)
    apply_delta(tmp_path / "delta", bundle)
    assert Bundle(bundle).version == new
    assert known_versions(bundle) == before


def test_versions_and_folders_of_which_no_delta_is_made(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, now = Bundle(bundle).version, version_of(bundle, items(grown()))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("mine")
    for version, out, sentence in (
        (now, "delta", "expected another one than that in use"),
        ("nothing", "delta", f"expected one of {old}, {now}, got nothing"),
        (old, "mine", "expected a delta that sidrec wrote, or nothing, to replace, got a folder with letter.txt"),
        (old, "bundle/delta", "expected an output folder apart from the input"),
    ):
        words = ["delta", "make", str(bundle), version, str(tmp_path / out)]
        assert sentence in refusal(capsys, cli.main(words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "mine"]
    for _ in range(2):
        make_delta(bundle, old, tmp_path / "delta")
