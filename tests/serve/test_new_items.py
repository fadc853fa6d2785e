"""New items are exported without training: the model's own scores of them, and old scores to the last bit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.schema import ITEM_ID, USER_ID
from sidrec.serve.batch_scoring import score_table
from sidrec.serve.bundle import Bundle
from sidrec.serve.scorer import Model
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.sid.granularity import granularity_rows
from tests.serve.conftest import World, write_rows
from tests.small_log import write_small_log
from tests.train.refusals import recipe_of, refusal, start
from tests.train.test_other_data import TEST, change_log, one_code_moved, refitted, rewrite, run_of, write_maps

TRAIN = "log/train/part-0.parquet"
CONTEXT = ["user_id", "cat_a"]
MORE = {USER_ID: 50, ITEM_ID: 70, "cat_a": 8}
"""Ids of tomorrow: those of the small log, 40 users, 60 items and 4 categories, and more."""


def extended(source: Path, to: Path, ids: list[int], codes_NL: np.ndarray) -> Path:
    """The catalog `source` with one extension."""
    old = load_catalog(source)
    extension_N = np.repeat([0, 1], [len(old), len(ids)])
    all_ids, all_codes = np.concatenate([old.item_ids_N, ids]), np.concatenate([old.codes_NL, codes_NL])
    Catalog(all_ids, all_codes, old.codebook_sizes, extension_N=extension_N).save(to)
    return to


def tomorrow_of(folder: Path, to: Path) -> Path:
    """Data with more ids, all of them in the test split, and the catalog today-sids, where items 61 to 67 are new."""
    data = to / "today"
    shutil.copytree(folder / "data", data)
    random = np.random.default_rng(3)
    history = [random.integers(1, 70, size=n).tolist() for n in random.integers(0, 7, size=200)]
    columns = {name: random.integers(1, ids, size=200) for name, ids in MORE.items()}
    change_log(data, MORE, **columns, history=np.array(history, dtype=object))
    write_maps(data)
    write_items(data, 69)
    ids = list(range(51, 68))
    extended(folder / "catalog", to / "today-sids", ids, random.integers(0, 4, (len(ids), 3)))
    return data


def write_items(data: Path, items: int) -> None:
    """items.parquet with items 1 to `items`; new ones have no impressions."""
    known = pq.read_table(data / "items.parquet")
    new = np.arange(len(known) + 1, items + 1)
    more = pa.table({ITEM_ID: new, "train_impressions": np.zeros(len(new), np.int64)})
    pq.write_table(pa.concat_tables([known, more]), data / "items.parquet")


def export(run: Path, bundle: Path, *flags: str) -> Bundle:
    assert cli.main(["export", str(run), str(bundle), *flags]) == 0
    return Bundle(bundle)


def scores(bundle: Bundle, log: Path, to: Path) -> np.ndarray:
    """Probabilities of a log's rows, asked by source id."""
    write_rows(log, to)
    found: np.ndarray = score_table(Model(bundle, threads=1), pq.read_table(to), "here")["score"].to_numpy()
    return found


@pytest.mark.parametrize(("store", "difference"), [("f32", 1e-6), ("f16", 1e-3), ("int8", 2e-2)])
def test_new_items_users_and_categories_score_as_in_an_evaluation(
    world: World, tmp_path: Path, store: str, difference: float
) -> None:
    data = tomorrow_of(world.folder, tmp_path)
    grown = ["--data", str(data), "--catalog", str(tmp_path / "today-sids")]
    assert cli.main(["evaluate", str(world.run), *grown, "--out", str(tmp_path / "out")]) == 0
    expected = pq.read_table(tmp_path / "out/predictions_test.parquet")["probability"].to_numpy()
    shutil.copytree(world.bundle, tmp_path / "bundle", symlinks=True)
    bundle = export(world.run, tmp_path / "bundle", "--store", store, *grown)
    assert np.abs(scores(bundle, data / TEST, tmp_path / "rows.parquet") - expected).max() <= difference
    assert bundle.description.items == 70
    found = bundle.of_items(np.array([60, 61, 69]))
    assert [bool(row.any()) for row in found["hid"]] == [True, False, False]
    assert found["has_sid"].tolist() == [True, True, False]
    before = Bundle(world.bundle).version
    assert cli.main(["export", "--use", before, str(tmp_path / "bundle")]) == 0
    assert Bundle(tmp_path / "bundle").version == before


def test_a_catalog_grown_by_one_percent_changes_no_old_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbered anew, most old items would read other rows of s12 and s23; such a catalog is refused."""
    folder, random = write_small_log(tmp_path), np.random.default_rng(1)
    codes_NL = random.integers(0, 64, size=(1010, 3))
    shutil.rmtree(folder / "catalog")
    Catalog(np.arange(1, 1001), codes_NL[:1000], (64, 64, 64)).save(folder / "catalog")
    for split in (TRAIN, TEST):
        spread(folder / "data" / split, random)
    change_log(folder / "data", {ITEM_ID: 1001})
    write_items(folder / "data", 1000)
    write_maps(folder / "data")
    model = {"embedding_dim": 8, "context": CONTEXT, "item": {"kind": "sid_coord"}}
    assert start(recipe_of(folder, model=model)) == 0
    before = export(run_of(folder), tmp_path / "bundle", "--store", "f32")

    data = tmp_path / "today"
    shutil.copytree(folder / "data", data)
    change_log(data, {ITEM_ID: 1011})
    write_items(data, 1010)
    write_maps(data)
    sids = extended(folder / "catalog", tmp_path / "today-sids", list(range(1001, 1011)), codes_NL[1000:])
    grown = ["--data", str(data), "--catalog", str(sids)]
    after = export(run_of(folder), tmp_path / "bundle", "--store", "f32", *grown)
    found = [scores(bundle, data / TEST, tmp_path / "rows.parquet") for bundle in (before, after)]
    assert found[0].tolist() == found[1].tolist()
    old_I = np.arange(1001)
    for name, rows in before.of_items(old_I).items():
        assert np.array_equal(rows, after.of_items(old_I)[name])
    assert after.of_items(np.arange(1001, 1011))["sid"].any(axis=1).all()

    for name in ("s12", "s23"):
        rows_N, anew_N = (granularity_rows(codes, name)[0][:1000] for codes in (codes_NL[:1000], codes_NL))
        assert (rows_N != anew_N).mean() > 0.5
    refitted(data)
    capsys.readouterr()
    said = refusal(capsys, cli.main(["export", str(run_of(folder)), str(tmp_path / "bundle"), *grown]))
    assert "or one that `sidrec fit --extend` made from it, got" in said
    assert Bundle(tmp_path / "bundle").version == after.version


def spread(log: Path, random: np.random.Generator) -> None:
    """Rows of a log on items up to 1,000."""
    table = pq.read_table(log)
    columns = {
        ITEM_ID: random.integers(1, 1001, size=len(table)),
        "history": [random.integers(1, 1001, size=len(each)).tolist() for each in table["history"].to_pylist()],
    }
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, log, row_group_size=50)


# Cold items: known from the start, or added later.


def test_cold_items_added_later_score_as_if_known_from_the_start(tmp_path: Path) -> None:
    """Items 51 to 60 are not in the train split. Their codes and pairs of codes are those of others."""
    started, later = (write_small_log(tmp_path / name) for name in ("started", "later"))
    whole = load_catalog(started / "catalog")
    warm_NL = whole.codes_NL[:50]
    cold = list(range(51, 61))
    shutil.rmtree(started / "catalog")
    shutil.rmtree(later / "catalog")
    Catalog(whole.item_ids_N, np.concatenate([warm_NL, warm_NL[7:17]]), (4, 4, 4)).save(started / "catalog")
    Catalog(whole.item_ids_N[:50], warm_NL, (4, 4, 4)).save(later / "catalog")
    change_log(started / "data", {}, item_id=np.random.default_rng(0).integers(1, 61, size=200))
    for folder, splits in ((started, (TRAIN,)), (later, (TRAIN, TEST))):
        for split in splits:
            without_cold(folder / "data" / split)
    change_log(later / "data", {ITEM_ID: 51})
    for folder in (started, later):
        write_maps(folder / "data")
    model = {"embedding_dim": 8, "context": CONTEXT, "item": {"kind": "sid_coord", "history": ["hid", "sid"]}}
    for folder in (started, later):
        train = {"epochs": 2, "runs": str(folder / "runs")}
        assert start(recipe_of(folder, train=train, model={**model, "hid_init": 0.0})) == 0
    sids = extended(later / "catalog", tmp_path / "sids", cold, warm_NL[7:17])
    known = export(run_of(started), tmp_path / "known", "--store", "f32")
    grown = ["--data", str(started / "data"), "--catalog", str(sids)]
    added = export(run_of(later), tmp_path / "added", "--store", "f32", *grown)
    log = started / "data" / TEST
    found = [scores(bundle, log, tmp_path / "rows.parquet") for bundle in (known, added)]
    is_cold = np.array([item > 50 for item in pq.read_table(log)[ITEM_ID].to_pylist()])
    assert is_cold.sum() > 20
    assert found[0].tolist() == found[1].tolist()


def without_cold(log: Path) -> None:
    """Items 51 to 60 become 41 to 50."""
    table = pq.read_table(log)
    fewer: Callable[[int], int] = lambda item: item - 10 if item > 50 else item  # noqa: E731
    columns = {
        ITEM_ID: [fewer(item) for item in table[ITEM_ID].to_pylist()],
        "history": [[fewer(item) for item in each] for each in table["history"].to_pylist()],
    }
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, log, row_group_size=50)


# Kinds, and refusals.


KINDS: dict[str, dict[str, object]] = {
    "hashed": {
        "item": {
            "kind": "hid_and_sid",
            "hid_index": {"kind": "modulo", "rows": 30},
            "index": {"kind": "modulo", "rows": 40},
        }
    },
    "pairs of codes first, counted and matched, items as context": {
        "item": {
            "kind": "sid_coord",
            "granularities": ["s123", "s12", "s1"],
            "fusion": {"kind": "counted"},
            "alignment": {"kind": "match_stats"},
        },
        "context": ["user_id", "item_id"],
    },
    "gate of updates": {"item": {"kind": "sid_coord", "gate": {"kind": "shrinkage"}}},
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_score_new_items_as_the_model_does(world: World, tmp_path: Path, name: str) -> None:
    """The export compares them with the model on tomorrow's data."""
    for part in ("data", "catalog"):
        shutil.copytree(world.folder / part, tmp_path / part)
    model = {"embedding_dim": 8, "context": CONTEXT, **KINDS[name]}
    assert start(recipe_of(tmp_path, train={"epochs": 1, "runs": str(tmp_path / "runs")}, model=model)) == 0
    data = tomorrow_of(tmp_path, tmp_path)
    grown = ["--data", str(data), "--catalog", str(tmp_path / "today-sids"), "--tolerance", "1e-5"]
    bundle = export(run_of(tmp_path), tmp_path / "bundle", "--store", "f32", *grown)
    rows = scores(bundle, data / TEST, tmp_path / "rows.parquet")
    assert len(np.unique(rows)) > 100


def test_kinds_that_cannot_grow_are_refused(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("data", "catalog"):
        shutil.copytree(world.folder / part, tmp_path / part)
    model = {"embedding_dim": 8, "item": {"kind": "sid", "tokens": {"kind": "spm", "vocabulary": 30}}}
    assert start(recipe_of(tmp_path, train={"epochs": 1, "runs": str(tmp_path / "runs")}, model=model)) == 0
    capsys.readouterr()
    words = ["export", str(run_of(tmp_path)), str(tmp_path / "bundle"), "--data", str(tmp_path / "data")]
    said = refusal(capsys, cli.main(words))
    assert said.startswith("model.item.tokens: expected granularities for an export with --data, got spm")


REFUSALS: list[tuple[Callable[[Path], None], str]] = [
    (lambda data: write_maps(data, "item_id"), "ids of item_id: expected the 60 ids of"),
    (lambda data: write_maps(data, "user_id"), "ids of user_id: expected the 40 ids of"),
    (refitted, "or one that `sidrec fit --extend` made from it, got"),
    (one_code_moved, "whose codes are other rows"),
    (lambda data: rewrite(data, stats=("stat_clicks", "stat_exposures")), "expected the statistics columns"),
    (lambda data: rewrite(data, dense=("int_b", "int_a")), "expected the dense columns it was trained with"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSALS)
def test_what_is_no_extension_is_refused(
    world: World,
    tmp_path: Path,
    change: Callable[[Path], None],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tomorrow_of(world.folder, tmp_path)
    change(data)
    words = ["--data", str(data), "--catalog", str(tmp_path / "today-sids")]
    capsys.readouterr()
    assert sentence in refusal(capsys, cli.main(["export", str(world.run), str(tmp_path / "bundle"), *words]))
    assert not (tmp_path / "bundle").exists()


def test_a_catalog_needs_its_data(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(world.run), str(tmp_path / "bundle"), "--catalog", str(world.folder / "catalog")]
    assert "--catalog: expected --data with it" in refusal(capsys, cli.main(words))
