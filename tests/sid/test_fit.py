"""`sidrec fit`: items.parquet to a catalog, whole or not at all."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.sid.catalog import load_catalog
from sidrec.sid.item_vectors import read_item_vectors
from sidrec.sid.learners.registry import learner_inputs, load_tokenizer
from sidrec.sid.quality import code_quality
from tests.sid.item_files import clustered_vectors, write_items

RECIPE = """
name: small
data: {{path: {folder}/data, catalog: {folder}/catalogs/catalog}}
tokenizer: {{vectors: [text], learner: {{kind: {kind}, levels: 2, codebook_size: 8}}}}
"""
VECTORS = clustered_vectors(120)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_items(tmp_path / "data" / "items.parquet", np.arange(1, 121), text=VECTORS)
    return write_recipe(tmp_path)


def write_recipe(folder: Path, kind: str = "residual_kmeans") -> Path:
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, kind=kind))
    return folder / "recipe.yaml"


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a fit that must fail with one sentence; returns it."""
    capsys.readouterr()
    assert cli.main(["fit", *map(str, argv)]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert "Traceback" not in sentence
    return sentence


def test_a_fit_writes_the_whole_catalog(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", str(recipe)]) == 0
    folder = tmp_path / "catalogs" / "catalog"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        "codes.parquet",
        "catalog.json",
        "report.json",
        "tokenizer/tokenizer.json",
        "tokenizer/arrays.safetensors",
        "pictures/code_usage.png",
        "pictures/collision_groups.png",
    }
    assert pq.read_schema(folder / "codes.parquet").names == ["item_id", "sid_1", "sid_2"]
    printed = capsys.readouterr().out
    assert load_catalog(folder).fingerprint[:12] in printed
    assert "collided_item_rate" in printed
    assert str(folder / "pictures") in printed


def test_codes_are_the_tokenizers_and_the_report_is_theirs(recipe: Path, tmp_path: Path) -> None:
    cli.main(["fit", str(recipe), "--tokenizer.seed", "3"])
    folder = tmp_path / "catalogs" / "catalog"
    catalog = load_catalog(folder)
    tokenizer, config = load_tokenizer(folder / "tokenizer")
    items = read_item_vectors(tmp_path / "data" / "items.parquet", config.vectors, config.normalize)
    assert config.seed == 3
    assert tokenizer.encode(items.vectors_NV).codes_NL.tolist() == catalog.codes_NL.tolist()
    report = json.loads((folder / "report.json").read_text())
    expected = asdict(code_quality(catalog.codes_NL, catalog.codebook_sizes))
    assert {name: report["quality"][name] for name in expected} == expected
    assert 0 < report["quality"]["unexplained_variance"] < 0.5
    errors = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True) - tokenizer.decode(catalog.codes_NL)
    assert report["quality"]["squared_error"] == pytest.approx(np.square(errors).sum(axis=1).mean(), rel=1e-4)


def test_the_same_fit_in_another_process_changes_nothing(recipe: Path, tmp_path: Path) -> None:
    cli.main(["fit", str(recipe)])
    folder = tmp_path / "catalogs" / "catalog"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = subprocess.run(
        [sys.executable, "-m", "sidrec", "fit", str(recipe)], check=True, capture_output=True, text=True
    )
    assert "already holds exactly these codes" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_codes_are_written_only_with_overwrite(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["fit", str(recipe)])
    folder = tmp_path / "catalogs" / "catalog"
    first = load_catalog(folder).fingerprint
    sentence = refused(capsys, recipe, "--tokenizer.seed", 1)
    assert first in sentence
    assert "--overwrite replaces it" in sentence
    assert load_catalog(folder).fingerprint == first
    assert cli.main(["fit", str(recipe), "--tokenizer.seed", "1", "--overwrite"]) == 0
    second = load_catalog(folder).fingerprint
    assert second != first
    assert second in sentence
    assert [path.name for path in folder.parent.iterdir()] == ["catalog"]


def test_a_folder_that_is_no_catalog_is_never_replaced(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "catalogs" / "catalog"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    assert "expected nothing there yet, or a catalog" in refused(capsys, recipe, "--overwrite")
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_random_codes_have_a_catalog_without_reconstruction(recipe: Path, tmp_path: Path) -> None:
    assert cli.main(["fit", str(write_recipe(tmp_path, "random"))]) == 0
    report = json.loads((tmp_path / "catalogs" / "catalog" / "report.json").read_text())
    assert "squared_error" not in report["quality"]
    assert report["tokenizer"]["learner"]["kind"] == "random"


def with_nan(vectors: np.ndarray) -> np.ndarray:
    broken = vectors.copy()
    broken[5, 0] = np.nan
    return broken


@pytest.mark.parametrize(
    ("ids", "columns", "sentence"),
    [
        (np.arange(1, 121), {"txt": VECTORS}, "expected a vector column text"),
        (np.arange(1, 121), {"text": with_nan(VECTORS)}, "row 5 (item 6), column text: expected finite values"),
        (np.arange(1, 121), {"text": VECTORS * 0}, "expected vectors with some content, got all zeros"),
        (np.arange(120), {"text": VECTORS}, "column item_id: expected ids above 0, got 0"),
        (np.ones(120, dtype=int), {"text": VECTORS}, "expected every item once, got 1, already in row 0"),
        (np.arange(1, 6), {"text": VECTORS[:5]}, "expected at least 8 items for codebook_size 8, got 5 items"),
        ([], {"text": VECTORS[:0]}, "expected at least one item, got no rows"),
    ],
)
def test_bad_items_are_one_message_and_no_file(
    ids: object,
    columns: dict[str, np.ndarray],
    sentence: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    write_items(tmp_path / "data" / "items.parquet", ids, None, **columns)
    assert sentence in refused(capsys, recipe)
    assert not (tmp_path / "catalogs").exists()
    assert list(scratch.iterdir()) == []


def test_a_truncated_file_and_a_missing_one(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = tmp_path / "data" / "items.parquet"
    items.write_bytes(items.read_bytes()[:-50])
    assert f"{items}: expected a readable parquet file" in refused(capsys, recipe)
    items.unlink()
    assert f"{items}: expected item vectors" in refused(capsys, recipe)
    assert not (tmp_path / "catalogs").exists()


def test_collisions_are_resolved_when_asked_for(recipe: Path, tmp_path: Path) -> None:
    """120 items, 8 * 8 SIDs: some are left over, and the report says how many."""
    recipe.write_text(recipe.read_text().replace("{vectors:", "{resolve_collisions: true, vectors:"))
    assert cli.main(["fit", str(recipe)]) == 0
    folder = tmp_path / "catalogs" / "catalog"
    report = json.loads((folder / "report.json").read_text())
    catalog = load_catalog(folder)
    tokenizer, loaded = load_tokenizer(folder / "tokenizer")
    vectors = read_item_vectors(tmp_path / "data" / "items.parquet", loaded.vectors, loaded.normalize).vectors_NV
    before = tokenizer.encode(vectors).codes_NL
    assert loaded.resolve_collisions
    assert (catalog.codes_NL[:, 0] == before[:, 0]).all()
    assert report["quality"]["moved_items"] == (catalog.codes_NL != before).any(axis=1).sum() > 0
    unique = len(np.unique(catalog.codes_NL, axis=0))
    assert unique > len(np.unique(before, axis=0))
    assert report["quality"]["unresolved_items"] == 120 - unique
    assert report["quality"]["collision_rate"] == (120 - unique) / 120


ADC_SID = """
name: small
data: {{path: {folder}/data, catalog: {folder}/catalog}}
tokenizer:
  vectors: [text, behavior]
  learner:
    kind: adc_sid
    codebook_size: 6
    width: 8
    hidden: 8
    training: {{epochs: 2, batch_size: 40, least_utilisation: 0}}
"""


def test_adc_sid_with_items_of_unknown_behavior(tmp_path: Path) -> None:
    """The catalog has weights; behaviour keeps its norm, and items without any get the smallest factor."""
    behavior = 5 * clustered_vectors(120, width=4, seed=1)
    behavior[7:10] = 0
    write_items(tmp_path / "data" / "items.parquet", np.arange(1, 121), text=VECTORS, behavior=behavior)
    (tmp_path / "recipe.yaml").write_text(ADC_SID.format(folder=tmp_path))
    assert cli.main(["fit", str(tmp_path / "recipe.yaml")]) == 0
    catalog = load_catalog(tmp_path / "catalog")
    tokenizer, config = load_tokenizer(tmp_path / "catalog" / "tokenizer")
    needs = learner_inputs(config.learner)
    items = read_item_vectors(tmp_path / "data" / "items.parquet", config.vectors, config.normalize, None, needs)
    assert np.array_equal(items.vectors_NV[:, 8:], behavior)
    encoded = tokenizer.encode(items.vectors_NV)
    assert encoded.codes_NL.tolist() == catalog.codes_NL.tolist()
    assert catalog.weights_NL is not None
    assert encoded.weights_NL is not None
    assert np.array_equal(encoded.weights_NL, catalog.weights_NL)
    assert catalog.codebook_sizes == (6,) * 5  # shared, text, three of behaviour
    assert (catalog.weights_NL[:, :2] == 1).all()
    assert len(np.unique(catalog.weights_NL[7:10], axis=0)) == 1
