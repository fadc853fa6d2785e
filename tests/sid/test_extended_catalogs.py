"""Catalogs that grow: SIDs, table rows and fingerprints of the items before stay as they were."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.config.load import load_file
from sidrec.data.dataset import check_item_ids
from sidrec.id_maps import save_source_ids
from sidrec.schema import ContractError, Manifest, load_manifest, save_manifest
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.sid.granularity import granularity_rows, rows_by_extension
from sidrec.sid.learners.kmeans import ResidualKMeans
from tests.sid.item_files import clustered_vectors, write_items

NAMES = ("s1", "s2", "s12", "s23", "s123")
SIZES = (4, 4, 4)
RECIPE = """
name: small
data: {{path: {folder}/data, catalog: {folder}/{catalog}}}
tokenizer: {{vectors: [text], learner: {{kind: residual_kmeans, levels: 3, codebook_size: 4}}}}
"""


def growing(seed: int) -> list[Catalog]:
    """A random catalog, then the same one after each of one to four extensions by 0 to 12 random items."""
    random = np.random.default_rng(seed)
    tokenizer = ResidualKMeans(random.standard_normal((3, 4, 2)).astype(np.float32), beam=1)
    ids = random.permutation(np.arange(1, 80))  # an older id may get its SID later
    first = int(random.integers(3, 20))
    vectors = random.standard_normal((80, 2)).astype(np.float32) * random.choice([0.3, 3.0])
    codes_NL = tokenizer.encode(vectors[:first]).codes_NL
    found = [Catalog(ids[:first], codes_NL, SIZES)]
    for _ in range(int(random.integers(1, 5))):
        last = first + int(random.integers(0, 13))
        resolve = bool(random.integers(2))
        found.append(found[-1].extend(ids[first:last], vectors[first:last], tokenizer, resolve))
        first = last
    return found


@pytest.mark.parametrize("seed", range(12))
def test_an_extension_moves_no_sid_no_row_and_no_fingerprint(seed: int, tmp_path: Path) -> None:
    catalogs = growing(seed)
    last = catalogs[-1]
    last.save(tmp_path / "catalog")
    assert load_catalog(tmp_path / "catalog").fingerprints == last.fingerprints
    assert last.fingerprints == tuple(dict.fromkeys(catalog.fingerprint for catalog in catalogs))
    for earlier in catalogs:
        known = earlier.item_ids_N
        assert np.array_equal(last.codes_by_id(90)[known], earlier.codes_NL)
        extension_I = last.extension_by_id(90)
        for name in NAMES:
            before_I, before = granularity_rows(earlier.codes_by_id(90), name, earlier.extension_by_id(90))
            rows_I, rows = granularity_rows(last.codes_by_id(90), name, extension_I)
            assert np.array_equal(rows_I[known], before_I[known])
            extension = last.fingerprints.index(earlier.fingerprint)
            assert rows_by_extension(rows_I, extension_I, len(last.fingerprints))[extension] == before <= rows
            assert sorted(set(rows_I.tolist()) | {0}) == list(range(rows)), "a dense numbering"
            sids = {tuple(codes) for codes in last.codes_NL.tolist()}
            assert name != "s123" or len(sids) + 1 == rows, "one row for each SID, and that of none"


def test_the_same_items_fitted_at_once_are_another_catalog() -> None:
    """Their rows have another order, so their fingerprints must differ."""
    catalogs = growing(3)
    assert len(catalogs[-1].fingerprints) > 1
    at_once = Catalog(catalogs[-1].item_ids_N, catalogs[-1].codes_NL, SIZES)
    assert at_once.fingerprint not in catalogs[-1].fingerprints


def test_an_extension_without_items_is_the_same_catalog() -> None:
    catalog = growing(0)[0]
    tokenizer = ResidualKMeans(np.zeros((3, 4, 2), np.float32), beam=1)
    assert catalog.extend(np.zeros(0, np.int64), np.zeros((0, 2), np.float32), tokenizer) is catalog


def test_extensions_that_were_changed_are_refused(tmp_path: Path) -> None:
    growing(3)[-1].save(tmp_path / "catalog")
    codes = tmp_path / "catalog" / "codes.parquet"
    table = pq.read_table(codes)
    place = table.column_names.index("extension")
    extension_N = table["extension"].to_numpy().copy()
    for changed_N, expected in (
        (np.where(extension_N == 1, 2, extension_N), "numbers 0, 1, 2... without a gap"),
        (extension_N - 1, "numbers 0, 1, 2... without a gap"),
        (
            np.where(np.arange(len(extension_N)) == 0, extension_N.max() - extension_N[0], extension_N),
            "catalog.json says",
        ),
    ):
        pq.write_table(table.set_column(place, "extension", pa.array(changed_N, pa.int32())), codes)
        with pytest.raises(ContractError, match=expected):
            load_catalog(tmp_path / "catalog")


@pytest.fixture
def yesterday(tmp_path: Path) -> Path:
    """A folder with the catalog `sids` of 60 items, and items.parquet of 75: 15 are new, one of them has no content."""
    vectors = clustered_vectors(75)
    vectors[-1] = 0
    write_items(tmp_path / "data" / "items.parquet", np.arange(1, 61), text=vectors[:60])
    for name in ("sids", "more"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(folder=tmp_path, catalog=name))
    assert cli.main(["fit", str(tmp_path / "sids.yaml")]) == 0
    write_items(tmp_path / "data" / "items.parquet", np.arange(1, 76), text=vectors)
    return tmp_path


def test_fit_extend_encodes_what_the_catalog_lacks(yesterday: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["fit", f"{yesterday}/more.yaml", "--extend", f"{yesterday}/sids"]
    assert cli.main(argv) == 0
    old, new = load_catalog(yesterday / "sids"), load_catalog(yesterday / "more")
    assert new.fingerprints[:-1] == old.fingerprints
    assert new.item_ids_N.tolist() == list(range(1, 75))
    assert "74 items, 14 of them new" in capsys.readouterr().out
    report = json.loads((yesterday / "more" / "report.json").read_text())
    assert report["extended"] == {"catalog": f"{yesterday}/sids", "fingerprint": old.fingerprint, "new_items": 14}
    assert cli.main(argv) == 0, "the same catalog is left unchanged"
    again = ["fit", f"{yesterday}/more.yaml", "--data.catalog", f"{yesterday}/again", "--extend", f"{yesterday}/more"]
    assert cli.main(again) == 0, "without new items"
    assert load_catalog(yesterday / "again").fingerprint == new.fingerprint


def test_fit_extend_refuses_what_would_be_wrong(yesterday: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_vectors = yesterday / "other" / "items.parquet"
    write_items(other_vectors, np.arange(1, 76), text=clustered_vectors(75, seed=9))
    narrow = yesterday / "narrow" / "items.parquet"
    write_items(narrow, np.arange(1, 76), text=clustered_vectors(75, width=4))
    sids = f"{yesterday}/sids"
    for flags, expected in (
        (["--extend", f"{yesterday}/none"], "none/catalog.json: expected a catalog"),
        (["--extend", f"{yesterday}/data"], "data/catalog.json: expected a catalog"),
        (["--extend", sids, "--data.catalog", sids], "expected an output folder apart from the input"),
        (
            ["--extend", sids, "--data.path", f"{other_vectors.parent}"],
            "expected vectors as the tokenizer was fitted on",
        ),
        (["--extend", sids, "--data.path", f"{narrow.parent}"], r"expected shape \[items, 8\]"),
        (["--extend", sids, "--data.path", f"{yesterday}/absent"], "absent/items.parquet: expected item vectors"),
    ):
        capsys.readouterr()
        assert cli.main(["fit", f"{yesterday}/more.yaml", *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert re.search(expected, error), error
        assert not (yesterday / "more").exists()


def with_item_map(folder: Path, *names: str) -> None:
    """A manifest for the data folder, and the map of its items."""
    data = folder / "data"
    ids = {"user_id": 2, "item_id": len(names) + 1}
    save_manifest(Manifest("test", 0, ids, (), (), 0, {}), data / "log")
    items = save_source_ids(data, "item_id", pa.chunked_array([list(names)]))
    save_manifest(Manifest("test", 0, ids, (), (), 0, {}, id_maps={"item_id": items}), data / "log")


def test_a_catalog_knows_whose_items_it_has(yesterday: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is extended on the same ids and more alone, and a log that numbers items otherwise does not use it."""
    names = [f"sku-{number}" for number in range(80)]
    (yesterday / "data" / "log").mkdir()
    with_item_map(yesterday, *names[:75])
    assert cli.main(["fit", f"{yesterday}/sids.yaml", "--overwrite"]) == 0
    catalog = load_catalog(yesterday / "sids")
    assert catalog.item_map is not None
    assert catalog.item_map.ids == 75
    moved = ["other", *names[1:80]]
    with_item_map(yesterday, *moved)
    capsys.readouterr()
    assert cli.main(["fit", f"{yesterday}/more.yaml", "--extend", f"{yesterday}/sids"]) == 2
    assert "ids of item_id: expected the 75 ids of" in capsys.readouterr().err
    recipe = load_file(yesterday / "sids.yaml")
    with pytest.raises(ContractError, match=r"ids of item_id: expected the 75 ids of .*/sids"):
        check_item_ids(recipe, load_manifest(yesterday / "data" / "log"), catalog)
    for count, warned in ((75, False), (80, False), (60, True)):
        with_item_map(yesterday, *names[:count])
        check_item_ids(recipe, load_manifest(yesterday / "data" / "log"), catalog)
        assert ("is not checked" in capsys.readouterr().err) == warned
    with_item_map(yesterday, *names)
    assert cli.main(["fit", f"{yesterday}/more.yaml", "--extend", f"{yesterday}/sids"]) == 0
    assert load_catalog(yesterday / "more").item_map == load_manifest(yesterday / "data" / "log").id_maps["item_id"]
