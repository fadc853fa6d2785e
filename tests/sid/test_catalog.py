"""The catalog folder: what is saved comes back, and nothing else passes for it."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.io.output_folders import replaced_folder
from sidrec.schema import ContractError
from sidrec.sid.catalog import CATALOG, Catalog, load_catalog
from sidrec.sid.learners.kmeans import ResidualKMeans

SIZES = (2, 3)


def catalog(**changes: object) -> Catalog:
    parts: dict[str, object] = {
        "item_ids_N": np.array([4, 1, 7]),
        "codes_NL": np.array([[1, 2], [0, 0], [1, 1]]),
        "codebook_sizes": SIZES,
    }
    return Catalog(**(parts | changes))  # type: ignore[arg-type]


def tens_and_ones() -> ResidualKMeans:
    """Codes are decimal digits: level 1 means 0 or 10, level 2 means 0, 1 or 2."""
    codebooks = np.array([[[0.0], [10.0], [99.0]], [[0.0], [1.0], [2.0]]], dtype=np.float32)
    return ResidualKMeans(codebooks, beam=1)


def test_codes_by_id() -> None:
    codes = catalog().codes_by_id(6)
    assert codes.dtype == np.int64
    # id 7 is beyond the log's ids; id 0 is never an item
    assert codes.tolist() == [[-1, -1], [0, 0], [-1, -1], [-1, -1], [1, 2], [-1, -1]]


def test_save_and_load(tmp_path: Path) -> None:
    weights = np.array([[1.0, 0.5], [0.25, 0.0], [2.0, 1.0]], dtype=np.float32)
    for saved in (catalog(), catalog(weights_NL=weights)):
        saved.save(tmp_path / "catalog")
        loaded = load_catalog(tmp_path / "catalog")
        assert loaded.item_ids_N.tolist() == [1, 4, 7]
        assert loaded.codes_NL.tolist() == [[0, 0], [1, 2], [1, 1]]
        assert loaded.codebook_sizes == SIZES
        assert loaded.fingerprint == saved.fingerprint
    assert loaded.weights_NL is not None
    assert loaded.weights_NL.tolist() == [[0.25, 0.0], [1.0, 0.5], [2.0, 1.0]]
    assert [path.name for path in tmp_path.iterdir()] == ["catalog"]


def test_fingerprint_is_stable_across_machines_and_releases() -> None:
    """Checkpoints of old runs must keep fitting. Header: version, items, weights or not, codebook sizes."""
    header = b"[1, 3, false, 2, 3]"
    ids, codes = struct.pack("<3q", 1, 4, 7), struct.pack("<6q", 0, 0, 1, 2, 1, 1)
    assert catalog().fingerprint == hashlib.sha256(header + ids + codes).hexdigest()


def test_fingerprint_knows_content_not_order() -> None:
    order = [2, 0, 1]
    same = catalog(item_ids_N=np.array([4, 1, 7])[order], codes_NL=np.array([[1, 2], [0, 0], [1, 1]])[order])
    assert same.fingerprint == catalog().fingerprint
    others = [
        catalog(item_ids_N=np.array([4, 1, 8])),
        catalog(codes_NL=np.array([[1, 2], [0, 0], [1, 0]])),
        catalog(codebook_sizes=(2, 4)),
        catalog(weights_NL=np.ones((3, 2))),
        catalog(weights_NL=np.zeros((3, 2))),
    ]
    assert len({catalog().fingerprint, *(other.fingerprint for other in others)}) == 6


def test_changed_codes_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    catalog().save(tmp_path / "catalog")
    codes = tmp_path / "catalog" / "codes.parquet"
    changed = catalog(codes_NL=np.array([[1, 2], [0, 1], [1, 1]]))
    columns = {"item_id": changed.item_ids_N, "sid_1": changed.codes_NL[:, 0], "sid_2": changed.codes_NL[:, 1]}
    pq.write_table(pa.table(columns), codes)
    with pytest.raises(ContractError) as refusal:
        load_catalog(tmp_path / "catalog")
    assert catalog().fingerprint in str(refusal.value)
    assert changed.fingerprint in str(refusal.value)


def test_a_damaged_folder_is_refused_by_file(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"catalog\.json: expected a catalog, .*no such file"):
        load_catalog(tmp_path)
    catalog().save(tmp_path / "catalog")
    folder = tmp_path / "catalog"
    whole, card = (folder / "codes.parquet").read_bytes(), (folder / "catalog.json").read_text()

    (folder / "codes.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ContractError, match=r"codes\.parquet: expected a readable parquet file"):
        load_catalog(folder)
    pq.write_table(pa.table({"item_id": [1], "sid_1": [0]}), folder / "codes.parquet")
    with pytest.raises(ContractError, match=r"expected the columns \['item_id', 'sid_1', 'sid_2'\], got"):
        load_catalog(folder)
    for broken in ("{", json.dumps({"version": 1}), "[]"):
        (folder / "catalog.json").write_text(broken)
        with pytest.raises(ContractError, match=r"catalog\.json: expected (JSON with version|valid JSON)"):
            load_catalog(folder)
    (folder / "catalog.json").write_text(card.replace('"version": 1', '"version": 2'))
    with pytest.raises(ContractError, match="version: expected 1, got 2"):
        load_catalog(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"item_ids_N": np.array([4, 0, 7])}, "expected ids above 0, which means unknown, got 0"),
        ({"item_ids_N": np.array([4, 7, 7])}, "expected every id once, got 7 twice"),
        ({"codes_NL": np.array([[1, 3], [0, 0], [1, 1]])}, r"item 4, level 2: expected a code in \[0, 3\), got 3"),
        ({"codes_NL": np.array([[1, 0], [-1, 0], [1, 1]])}, r"item 1, level 1: expected a code in \[0, 2\), got -1"),
        ({"codes_NL": np.array([[1], [0], [1]])}, r"codes: expected shape \(3, 2\), got \(3, 1\)"),
        ({"weights_NL": np.array([[1, np.nan], [0, 0], [1, 1]])}, "weights: expected finite values"),
    ],
)
def test_bad_catalogs_cannot_be_made(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        catalog(**changes)


def test_extend_encodes_new_items_and_leaves_old_ones_alone() -> None:
    old = catalog(codebook_sizes=(3, 3))
    new = old.extend(np.array([9, 3]), np.array([[11.9], [0.6]], dtype=np.float32), tens_and_ones())
    by_id = new.codes_by_id(10)
    assert by_id[9].tolist() == [1, 2]  # 11.9 is nearest to 10 + 2
    assert by_id[3].tolist() == [0, 1]  # 0.6 is nearest to 0 + 1
    assert by_id[[1, 4, 7]].tolist() == old.codes_by_id(10)[[1, 4, 7]].tolist()
    assert new.fingerprint != old.fingerprint


def test_extend_refuses_known_items_and_foreign_codebooks() -> None:
    vectors = np.zeros((2, 1), dtype=np.float32)
    with pytest.raises(ContractError, match="expected ids that the catalog does not hold yet, got 1, first 4"):
        catalog(codebook_sizes=(3, 3)).extend(np.array([4, 5]), vectors, tens_and_ones())
    with pytest.raises(ContractError, match=r"tokenizer: expected codebooks of \(2, 3\) codes, got \(3, 3\)"):
        catalog().extend(np.array([5, 6]), vectors, tens_and_ones())
    with pytest.raises(ContractError, match=r"expected shape \[items, 1\]"):
        catalog(codebook_sizes=(3, 3)).extend(np.array([5]), np.zeros((1, 2)), tens_and_ones())


def test_a_folder_that_fails_half_way_leaves_the_former_one(tmp_path: Path) -> None:
    catalog().save(tmp_path / "catalog")

    def fail_while_writing() -> None:
        with replaced_folder(tmp_path / "catalog", CATALOG) as partial:
            (partial / "codes.parquet").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_while_writing()
    assert load_catalog(tmp_path / "catalog").fingerprint == catalog().fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["catalog"]
