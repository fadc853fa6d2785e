"""What the manifest says of its files: checksums, and paths that stay inside the log folder."""

import json
from pathlib import Path
from zlib import crc32

import pytest

from sidrec.schema import LOG, MANIFEST, ContractError, LogFile, crc32_of, load_manifest, save_manifest
from tests.small_log import write_small_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_small_log(tmp_path, rows=60) / "data" / LOG


def test_a_checksum_is_kept_and_a_manifest_without_them_loads(log: Path) -> None:
    manifest = load_manifest(log)
    assert [file.crc32 for file in manifest.files("train")] == [None]
    file = log / manifest.files("train")[0].path
    found = crc32_of(file)
    assert found == crc32(file.read_bytes())
    raw = json.loads((log / MANIFEST).read_text())
    raw["splits"]["train"][0]["crc32"] = found
    for entry in raw["splits"]["test"]:
        entry.pop("crc32", None)
    (log / MANIFEST).write_text(json.dumps(raw))
    manifest = load_manifest(log)
    assert manifest.files("train")[0].crc32 == found
    assert manifest.files("test")[0].crc32 is None
    save_manifest(manifest, log)
    assert load_manifest(log) == manifest


def test_a_file_larger_than_a_block_has_the_checksum_of_all_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert crc32_of(tmp_path / "file") == crc32(content)


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_out_of_the_log_folder_is_refused(linked: str, log: Path, tmp_path: Path) -> None:
    inside = log / load_manifest(log).files("train")[0].path
    moved = inside if linked == "file" else inside.parent
    outside = tmp_path / "elsewhere"
    moved.rename(outside)
    moved.symlink_to(outside)
    with pytest.raises(ContractError, match=r"splits.train: expected files inside the log folder, got .* a link to"):
        load_manifest(log)


def test_a_log_folder_may_itself_be_a_link_and_so_may_files_within_it(log: Path, tmp_path: Path) -> None:
    inside = log / load_manifest(log).files("train")[0].path
    inside.rename(inside.with_name("real.parquet"))
    inside.symlink_to("real.parquet")
    log.rename(tmp_path / "fast-disk")
    log.symlink_to(tmp_path / "fast-disk")
    assert load_manifest(log).rows("train") == 60


def test_a_checksum_that_is_no_number_is_refused(log: Path) -> None:
    text = (log / MANIFEST).read_text().replace('"crc32": null', '"crc32": "many"')
    (log / MANIFEST).write_text(text)
    with pytest.raises(ContractError, match="crc32: expected a whole number from 0"):
        load_manifest(log)
    assert LogFile("a", 1, 0, 0).crc32 is None
