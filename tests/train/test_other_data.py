"""`sidrec evaluate --data`: another data folder scored by a run that knows fewer ids, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.id_maps import save_source_ids
from sidrec.schema import ITEM_ID, LOG, USER_ID, ListColumn, Transform, load_manifest, save_manifest
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.train.run_directory import RunDirectory
from tests.small_log import write_small_log
from tests.train.refusals import recipe_of, refusal, start

TEST = "log/test/part-0.parquet"
GROWN = {USER_ID: 50, ITEM_ID: 70, "cat_a": 8}
ITEM = {"kind": "sid_coord"}
CONTEXT = ["user_id", "cat_a"]


def write_maps(data: Path, moved: str = "", **more: object) -> None:
    """Id maps for the manifest's numbers of ids; source ids of the column `moved` in another order."""
    manifest = load_manifest(data / LOG)
    maps = {}
    for column, rows in manifest.ids.items():
        names = [f"{column}-{number}" for number in range(1, rows)]
        if column == moved:
            names[3], names[4] = names[4], names[3]
        maps[column] = save_source_ids(data, column, pa.chunked_array([names]))
    save_manifest(replace(manifest, id_maps=maps, **more), data / LOG)  # type: ignore[arg-type]


def change_log(data: Path, ids: dict[str, int], **columns: np.ndarray) -> None:
    """Another number of ids, and other values in columns of the test split."""
    manifest = load_manifest(data / LOG)
    save_manifest(replace(manifest, ids={**manifest.ids, **ids}), data / LOG)
    table = pq.read_table(data / TEST)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, data / TEST, row_group_size=50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, its id maps, and a run on it; items 51 to 60 have no SID."""
    folder = write_small_log(tmp_path_factory.mktemp("yesterday"))
    whole = load_catalog(folder / "catalog")
    Catalog(whole.item_ids_N[:50], whole.codes_NL[:50], whole.codebook_sizes).save(folder / "catalog")
    transforms = {"int_a": Transform("price", 1.0, 2.0, 0, 0)}
    write_maps(folder / "data", transforms=transforms)
    sections = {"model": {"embedding_dim": 8, "context": CONTEXT, "item": ITEM}}
    assert start(recipe_of(folder, train={"epochs": 2, "runs": str(folder / "runs")}, **sections)) == 0
    return folder


def run_of(folder: Path) -> Path:
    return folder / "runs" / "small" / "seed0"


def extended(folder: Path, to: Path, ids: list[int]) -> None:
    """The catalog of `folder` with one extension: random SIDs for these items."""
    old = load_catalog(folder / "catalog")
    codes_NL = np.random.default_rng(5).integers(0, 4, (len(ids), 3))
    extension_N = np.repeat([0, 1], [len(old), len(ids)])
    all_ids, all_codes = np.concatenate([old.item_ids_N, ids]), np.concatenate([old.codes_NL, codes_NL])
    Catalog(all_ids, all_codes, old.codebook_sizes, extension_N=extension_N).save(to)


@pytest.fixture
def today(trained: Path, tmp_path: Path) -> Path:
    """Today's folder: the test split of yesterday, in a log that knows more ids, and an extended catalog."""
    data = tmp_path / "today"
    shutil.copytree(trained / "data", data)
    shutil.rmtree(data / "log" / "train")
    manifest = load_manifest(data / LOG)
    save_manifest(replace(manifest, splits={"test": manifest.splits["test"]}), data / LOG)
    change_log(data, GROWN)
    write_maps(data, transforms=manifest.transforms)
    items = pq.read_table(data / "items.parquet")
    more = pa.table({ITEM_ID: np.arange(61, 70), "train_impressions": np.zeros(9, np.int64)})
    pq.write_table(pa.concat_tables([items, more]), data / "items.parquet")
    extended(trained, tmp_path / "today-sids", list(range(51, 68)))
    return data


def evaluate(trained: Path, data: Path, *flags: str) -> pa.Table:
    """The predictions for today's test split."""
    out = data.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    assert cli.main(["evaluate", str(run_of(trained)), "--data", str(data), "--out", str(out), *flags]) == 0
    return pq.read_table(out / "predictions_test.parquet")


def test_the_same_rows_get_the_same_scores_in_a_larger_log(trained: Path, today: Path) -> None:
    """More ids and an extended catalog change nothing for old ids, except for items that get their first SID."""
    before = pq.read_table(run_of(trained) / "predictions_test.parquet")
    metrics = (run_of(trained) / "metrics.json").read_bytes()
    plain = evaluate(trained, today)
    assert plain.select(before.column_names).to_pandas().equals(before.to_pandas())  # NaN: no SID, so no gate
    with_sids = evaluate(trained, today, "--catalog", str(today.parent / "today-sids"))
    log = pq.read_table(today / TEST)
    first_sid = np.array(
        [
            i > 50 or max(h, default=0) > 50
            for i, h in zip(*map(pa.ChunkedArray.to_pylist, (log[ITEM_ID], log["history"])), strict=True)
        ]
    )
    same = with_sids["score"].to_numpy() == before["score"].to_numpy()
    assert same[~first_sid].all()
    assert not same[first_sid].all()
    assert (run_of(trained) / "metrics.json").read_bytes() == metrics, "the run's own results stay"


def test_unknown_ids_are_read_as_unknown(trained: Path, today: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new user or category scores as id 0 does, but stays a user of its own in metrics and predictions."""
    random, rows = np.random.default_rng(0), 200
    new_N = random.random(rows) < 0.5
    user_N = np.where(new_N, random.integers(41, 50, rows), random.integers(1, 41, rows))
    cat_N = np.where(new_N, random.integers(5, 8, rows), random.integers(1, 5, rows))
    change_log(today, {}, user_id=user_N, cat_a=cat_N)
    found = evaluate(trained, today)
    assert "ids that the run does not know: 9 of user_id, 3 of cat_a, 9 of item_id" in capsys.readouterr().out
    users = json.loads((today.parent / "out" / "metrics.json").read_text())["test"]["all"]["users"]
    assert users == len(np.unique(user_N))
    assert found["user"].to_pylist() == [f"user_id-{user}" for user in user_N]
    change_log(today, {}, user_id=np.where(new_N, 0, user_N), cat_a=np.where(new_N, 0, cat_N))
    as_zero = evaluate(trained, today)
    assert found["score"].equals(as_zero["score"])
    assert as_zero["user"].to_pylist() == [
        None if new else f"user_id-{u}" for u, new in zip(user_N, new_N, strict=True)
    ]


def test_new_items_are_known_by_their_sid_alone(trained: Path, today: Path) -> None:
    """Two new items with one SID score alike; without a catalog that has it, all new items do."""
    sids = today.parent / "today-sids"
    catalog = load_catalog(sids)
    catalog.codes_NL[np.isin(catalog.item_ids_N, [61, 62])] = catalog.codes_NL[0]
    shutil.rmtree(sids)
    replace(catalog, codes_NL=catalog.codes_NL).save(sids)
    scores = {}
    for item in (61, 62, 63, 69):
        change_log(today, {}, item_id=np.full(200, item))
        scores[item] = evaluate(trained, today, "--catalog", str(sids))["score"].to_numpy()
        scores[-item] = evaluate(trained, today)["score"].to_numpy()
    assert np.array_equal(scores[61], scores[62])
    assert not np.array_equal(scores[61], scores[63])
    assert np.array_equal(scores[-61], scores[-63])
    assert np.array_equal(scores[-61], scores[69]), "item 69 is in no catalog"
    assert not np.array_equal(scores[-61], scores[61])


def test_predictions_name_users_and_items_by_source_id(trained: Path) -> None:
    found = pq.read_table(run_of(trained) / "predictions_test.parquet")
    log = pq.read_table(trained / "data" / TEST)
    assert found["row"].to_pylist() == list(range(200))
    assert found["user"].to_pylist() == [f"user_id-{user}" for user in log[USER_ID].to_pylist()]
    assert found["item"].to_pylist() == [f"item_id-{item}" for item in log[ITEM_ID].to_pylist()]
    score = found["score"].to_numpy().astype(np.float64)
    assert np.allclose(found["probability"].to_numpy(), 1 / (1 + np.exp(-score)), rtol=1e-5)
    assert RunDirectory(run_of(trained)).id_maps.is_file()


def rewrite(data: Path, **changes: object) -> None:
    manifest = load_manifest(data / LOG)
    save_manifest(replace(manifest, **changes), data / LOG)  # type: ignore[arg-type]


def scaled(data: Path, **values: float) -> None:
    found = load_manifest(data / LOG).transforms["int_a"]
    rewrite(data, transforms={"int_a": Transform(**{**asdict(found), **values})})


def refitted(data: Path) -> None:
    """The items of the extended catalog, fitted at once."""
    found = load_catalog(data.parent / "today-sids")
    shutil.rmtree(data.parent / "today-sids")
    Catalog(found.item_ids_N, found.codes_NL, found.codebook_sizes).save(data.parent / "today-sids")


def one_code_moved(data: Path) -> None:
    found = load_catalog(data.parent / "today-sids")
    found.codes_NL[3, 1] = (found.codes_NL[3, 1] + 1) % 4
    shutil.rmtree(data.parent / "today-sids")
    Catalog(found.item_ids_N, found.codes_NL, found.codebook_sizes, extension_N=found.extension_N).save(
        data.parent / "today-sids"
    )


def fewer_ids(data: Path) -> None:
    rewrite(data, id_maps={})
    change_log(data, {USER_ID: 41, ITEM_ID: 61, "cat_a": 4}, cat_a=np.ones(200))
    write_maps(data)


def listed(data: Path) -> None:
    """cat_a with one value in a row becomes a column of lists."""
    table = pq.read_table(data / TEST)
    place = table.schema.get_field_index("cat_a")
    lists = pa.array([[value] for value in table["cat_a"].to_pylist()], pa.list_(pa.int64()))
    pq.write_table(table.set_column(place, "cat_a", lists), data / TEST, row_group_size=50)
    rewrite(data, lists={"cat_a": ListColumn(longest=1, mean=1.0)})


def without_map_file(data: Path) -> None:
    (data / "ids" / "user_id.parquet").unlink()


SIDS = ("--catalog", "today-sids")
REFUSALS: list[tuple[Callable[[Path], None], tuple[str, ...], str]] = [
    (lambda data: write_maps(data, "user_id"), (), "today, ids of user_id: expected the 40 ids of"),
    (lambda data: write_maps(data, "item_id"), (), "prepare today with --ids and the data folder of"),
    (lambda data: write_maps(data, "cat_a"), SIDS, "today, ids of cat_a: expected the 4 ids of"),
    (fewer_ids, (), "today, ids of cat_a: expected the 4 ids of"),
    (refitted, SIDS, "or one that `sidrec fit --extend` made from it, got"),
    (one_code_moved, SIDS, "whose codes are other rows"),
    (lambda data: None, ("--catalog", "nowhere"), "nowhere/catalog.json: expected a catalog"),
    (lambda data: rewrite(data, dense=("int_b", "int_a")), (), "expected the dense columns it was trained with, int_a"),
    (lambda data: scaled(data, mean=1.5), (), "expected int_a with the mean 1 and deviation 2 it was trained with"),
    (lambda data: scaled(data, deviation=1.5), (), "got mean 1 and deviation 1.5; prepare the data with --ids"),
    (lambda data: rewrite(data, transforms={}), (), "it was trained with, got none"),
    (lambda data: rewrite(data, stats=("stat_clicks", "stat_exposures")), (), "expected the statistics columns"),
    (listed, (), "expected the list columns it was trained with, none, got cat_a"),
    (without_map_file, (), "ids/user_id.parquet: expected the id map that"),
    (lambda data: None, ("train",), "manifest.json: expected one of the splits ['test'], got 'train'"),
    (lambda data: None, ("--out", "today/scores"), "expected an output folder apart from the input"),
    (lambda data: None, ("--out", "today-sids"), "expected no files yet, or an evaluation to replace, got other files"),
    (lambda data: (data.parent / "file").touch(), ("--out", "file"), "expected a folder to write, got a file"),
    (shutil.rmtree, (), "today/log/manifest.json: expected a log manifest"),
]


@pytest.mark.parametrize(("change", "flags", "sentence"), REFUSALS)
def test_refusals(
    change: Callable[[Path], None],
    flags: tuple[str, ...],
    sentence: str,
    trained: Path,
    today: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(today)
    monkeypatch.chdir(today.parent)
    there = sorted(path.name for path in run_of(trained).rglob("*"))
    files = sorted(map(str, today.parent.rglob("*")))
    capsys.readouterr()
    assert sentence in refusal(capsys, cli.main(["evaluate", str(run_of(trained)), "--data", "today", *flags]))
    assert sorted(path.name for path in run_of(trained).rglob("*")) == there, "nothing is left behind"
    assert sorted(map(str, today.parent.rglob("*"))) == files


def test_flags_that_need_data(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--catalog", "--out"):
        assert f"{flag}: expected --data" in refusal(capsys, cli.main(["evaluate", str(run_of(trained)), flag, "x"]))


def test_evaluations_of_two_folders_are_kept_apart(
    trained: Path, today: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default in RUN/evaluations/NAME; another folder of that name is refused, the same one replaces its results."""
    argv = ["evaluate", str(run_of(trained)), "--data"]
    kept = run_of(trained) / "evaluations" / "today"
    assert cli.main([*argv, str(today)]) == cli.main([*argv, str(today)]) == 0
    assert json.loads((kept / "evaluation.json").read_text())["unknown"] == {"user_id": 9, "cat_a": 3, "item_id": 9}
    other = today.parent / "other" / "today"
    shutil.copytree(today, other)
    capsys.readouterr()
    assert "name another --out" in refusal(capsys, cli.main([*argv, str(other)]))
    shutil.rmtree(kept.parent)


def test_splits_that_a_folder_lacks_are_left_out(trained: Path, today: Path, tmp_path: Path) -> None:
    shutil.copytree(run_of(trained), run_of(tmp_path))
    config = run_of(tmp_path) / "config.yaml"
    config.write_text(config.read_text().replace("splits:\n  - test", "splits: [train, test]"))
    assert "[train, test]" in config.read_text()
    evaluate(tmp_path, today)
    assert list(json.loads((today.parent / "out" / "metrics.json").read_text())) == ["test"]


def test_folders_without_maps_are_scored_with_a_warning(
    trained: Path, today: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(today, id_maps={})
    found = evaluate(trained, today)
    assert "sidrec: warning:" in capsys.readouterr().err
    assert "user" not in found.column_names


def test_the_runs_own_data_must_not_change(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prepared again with other ids, or with more, it is refused by `evaluate` and by a training that resumes."""
    for moved, ids in (("item_id", {}), ("", GROWN)):
        folder = tmp_path / f"copy{moved}"
        shutil.copytree(trained, folder)
        config = folder / "runs" / "small" / "seed0" / "config.yaml"
        config.write_text(config.read_text().replace(str(trained), str(folder)))
        change_log(folder / "data", ids)
        write_maps(folder / "data", moved, transforms=load_manifest(folder / "data" / LOG).transforms)
        capsys.readouterr()
        assert "it was trained with (id maps" in refusal(capsys, cli.main(["evaluate", str(config.parent)]))
        assert "it was trained with (id maps" in refusal(capsys, cli.main(["train", str(config)]))


# A new run on today's data that starts from yesterday's checkpoint.


def next_run(trained: Path, to: Path, change: Callable[[Path], None], **start_section: object) -> int:
    """Trains on a larger log with an extended catalog, changed by `change`. Returns the exit status."""
    data = to / "data"
    shutil.copytree(trained / "data", data)
    change_log(data, GROWN)
    write_maps(data)
    extended(trained, to / "today-sids", list(range(51, 68)))
    change(data)
    sections = {
        "model": {"embedding_dim": 8, "context": CONTEXT, "item": ITEM},
        "data": {"catalog": f"{to}/today-sids"},
    }
    start_section = {"checkpoint": str(run_of(trained)), **start_section}
    return start(recipe_of(to, train={"epochs": 1, "runs": str(to / "runs")}, start=start_section, **sections))


STARTS: list[tuple[Callable[[Path], None], tuple[str, ...], str]] = [
    (lambda data: None, (), ""),
    (lambda data: write_maps(data, "user_id"), (), "ids of user_id: expected the 40"),
    (lambda data: write_maps(data, "item_id"), (), "ids of item_id: expected the 60"),
    (lambda data: write_maps(data, "cat_a"), (), "start.without: [cat_a] starts"),
    (lambda data: write_maps(data, "cat_a"), ("cat_a",), ""),
    (lambda data: write_maps(data, "item_id"), ("hid",), ""),
    (
        refitted,
        (),
        "other rows; start.old_catalog carries its tables over; start.without: [s1, s2, s3, s12, s23] starts",
    ),
    (lambda data: rewrite(data, transforms={}), (), "expected int_a with the mean 1 and deviation 2 it was trained"),
]


@pytest.mark.parametrize(("change", "without", "sentence"), STARTS)
def test_warm_starts(
    change: Callable[[Path], None],
    without: tuple[str, ...],
    sentence: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ids that moved are refused, unless the tables that they number start anew."""
    capsys.readouterr()
    status = next_run(trained, tmp_path, change, without=without)
    if sentence:
        assert sentence in refusal(capsys, status)
        assert not (tmp_path / "runs").exists()
    else:
        assert (status, capsys.readouterr().err) == (0, "")


KINDS: dict[str, dict[str, object]] = {
    "hid": {"kind": "hid"},
    "managed": {"kind": "hid", "hid_index": {"kind": "managed_collision", "rows": 32, "eviction_interval": 2}},
    "hashed": {
        "kind": "hid_and_sid",
        "hid_index": {"kind": "modulo", "rows": 30},
        "index": {"kind": "modulo", "rows": 40},
    },
    "gate_sid": {"kind": "gate_sid"},
    "subwords": {"kind": "sid", "tokens": {"kind": "spm", "vocabulary": 30}},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_table_reads_a_larger_log(
    name: str, trained: Path, today: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hashed and managed tables have as many rows as before; all kinds score old ids alike. Subwords cannot grow."""
    for part in ("data", "catalog"):
        shutil.copytree(trained / part, tmp_path / part)
    model = {"embedding_dim": 8, "context": CONTEXT, "item": KINDS[name]}
    assert start(recipe_of(tmp_path, train={"epochs": 1, "runs": str(tmp_path / "runs")}, model=model)) == 0
    before = pq.read_table(run_of(tmp_path) / "predictions_test.parquet")
    assert evaluate(tmp_path, today).equals(before)
    capsys.readouterr()
    sids = ("--catalog", str(tmp_path / "today-sids"))
    if name == "subwords":
        argv = ["evaluate", str(run_of(tmp_path)), "--data", str(today), "--out", str(tmp_path / "other"), *sids]
        assert "whose codes are other rows" in refusal(capsys, cli.main(argv))
    elif name in ("hashed", "gate_sid"):
        evaluate(tmp_path, today, *sids)
    change_log(today, {}, item_id=np.full(200, 69))
    assert np.isfinite(evaluate(tmp_path, today)["score"].to_numpy()).all()
