"""Bundles in a store: published by the last object, opened as checked copies, scored into a store."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.errors import ContractError
from sidrec.io import local_cache
from sidrec.io.places import StoreError, StorePath, listed, put
from sidrec.serve.bundle import Bundle, Description
from sidrec.serve.scorer import Scorer
from sidrec.serve.stored_bundles import check_stored_bundle, publish_in_store, use_in_store
from sidrec.serve.versions import CURRENT, DESCRIPTION, VERSIONS, version_folder
from tests.s3_server import Store
from tests.serve.conftest import World

USER, ITEMS = "user_id-3", ["item_id-5", "item_id-9", "item_id-no"]
NUMBERS = {"statistics": {"stat_exposures": 3, "stat_clicks": 1}, "dense": {"int_a": 0.5, "int_b": -1.0}}


@pytest.fixture
def stored(world: World, bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePath:
    """The world's bundle in a store, and a session of its own."""
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(local_cache, "_sessions", {})
    folder = version_folder(world.bundle)
    publish_in_store(folder, folder.name, bucket / "shop/bundle")
    return bucket / "shop/bundle"


def scores(scorer: Scorer) -> np.ndarray:
    return scorer.rank(USER, ITEMS, ["item_id-2"], **NUMBERS).score_C  # type: ignore[arg-type]


def later_version(world: World, folder: Path) -> Path:
    """A copy of the world's version that says another step: all files but bundle.json are the same."""
    shutil.copytree(version_folder(world.bundle), folder)
    about = Description.read(folder)
    (folder / DESCRIPTION).write_text(replace(about, step=about.step + 1).text())
    return folder


def test_a_stored_bundle_scores_as_the_local_one(world: World, stored: StorePath, store: Store) -> None:
    local, remote = Scorer(world.bundle), Scorer(str(stored))
    np.testing.assert_array_equal(scores(remote), scores(local))
    store.requests()
    assert not remote.reload()
    assert len(store.requests()) <= 3  # for the pointer
    version = Bundle(stored / VERSIONS / remote.model.version)
    assert version.folder == remote.model.bundle.folder


def test_a_new_version_is_taken_up_by_the_files_that_differ(
    world: World, stored: StorePath, store: Store, tmp_path: Path
) -> None:
    scorer = Scorer(stored)
    before = scorer.model.version
    folder = later_version(world, tmp_path / "later")
    version = Description.read(folder).version
    publish_in_store(folder, version, stored)
    store.requests()
    assert scorer.reload()
    assert scorer.model.version == version != before
    fetched = [request for request in store.requests() if request.startswith("GET") and VERSIONS in request]
    assert [request.rpartition("/")[2] for request in fetched] == [DESCRIPTION]
    use_in_store(stored, before)
    assert scorer.reload()
    assert scorer.model.version == before


def test_half_a_version_is_never_in_use(world: World, stored: StorePath, store: Store, tmp_path: Path) -> None:
    folder = later_version(world, tmp_path / "later")
    version = Description.read(folder).version
    store.faults(("PUT", f"{version}/{DESCRIPTION}", 99, 403))
    with pytest.raises(StoreError, match="access denied"):
        publish_in_store(folder, version, stored)
    assert any(version in entry.name for entry in listed(stored))
    before = version_folder(world.bundle).name
    assert Scorer(stored).model.version == before
    with pytest.raises(ContractError, match=f"expected one of {before}, got {version}"):
        use_in_store(stored, version)
    store.faults()
    publish_in_store(folder, version, stored)
    assert Scorer(stored).model.version == version


@pytest.mark.parametrize("fault", ["changed", "cut", "missing", "pointer"])
def test_a_broken_object_is_named_and_no_copy_is_left(
    fault: str, world: World, stored: StorePath, tmp_path: Path
) -> None:
    folder = version_folder(world.bundle)
    name = next(name for name, of in Description.read(folder).files.items() if of.bytes > 100)
    path = stored / VERSIONS / folder.name / name
    content = path.read_bytes()
    match fault:
        case "changed":
            put(path, bytes(len(content)))
        case "cut":
            put(path, content[:-1])
        case "missing":
            put(stored / VERSIONS / folder.name / DESCRIPTION, b"{}")
        case "pointer":
            put(stored / CURRENT, b"versions/../../x")
    with pytest.raises(ContractError, match=r"another one|bytes, got|format: expected|expected versions/VERSION"):
        Scorer(stored)
    assert not list((tmp_path / "cache").rglob(DESCRIPTION))


def test_scores_from_a_store_into_a_store(
    world: World, stored: StorePath, bucket: StorePath, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(bucket / "in/rows.parquet", world.rows)
    assert cli.main(["score", str(world.bundle), str(world.rows), str(tmp_path / "scores")]) == 0
    words = ["score", str(stored), f"{bucket}/in", f"{bucket}/scores"]
    store.faults(("PUT", "part-00000", 2, 503))
    assert cli.main(words) == 0
    local = pq.read_table(tmp_path / "scores/part-00000.parquet")
    (tmp_path / "part").write_bytes((bucket / "scores/part-00000.parquet").read_bytes())
    assert pq.read_table(tmp_path / "part").equals(local)
    store.requests()
    assert cli.main(words) == 0  # goes on after the last part: all are there
    puts = [request for request in store.requests() if request.startswith("PUT")]
    assert [request.rpartition("/")[2] for request in puts] == ["scores.json", "scores.json"]
    put(bucket / "in/more.parquet", world.rows)
    assert cli.main(words) == 2
    assert "give another folder, or delete this one" in capsys.readouterr().err
    assert cli.main(["score", str(stored), f"{bucket}/in", f"{bucket}/shop"]) == 2
    assert "expected a folder of sidrec score, an empty one, or none" in capsys.readouterr().err


def test_export_to_a_store(
    world: World, bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(local_cache, "_sessions", {})
    words = ["export", str(world.run), f"{bucket}/new", "--store", "f32", "--calibrate", "test"]
    assert cli.main(words) == 0
    version = version_folder(world.bundle).name
    assert f"{bucket}/new: version {version} is in use" in capsys.readouterr().out
    assert (bucket / "new" / CURRENT).read_bytes() == f"{VERSIONS}/{version}\n".encode()
    assert cli.main(["export", "--use", version, f"{bucket}/new"]) == 0
    assert cli.main(["export", "--use", "0" * 16, f"{bucket}/new"]) == 2
    assert f"expected one of {version}, got {'0' * 16}" in capsys.readouterr().err
    put(bucket / "other/file", b"not ours")
    with pytest.raises(ContractError, match="expected a bundle, or no objects yet, got objects below it: file"):
        check_stored_bundle(bucket / "other")
