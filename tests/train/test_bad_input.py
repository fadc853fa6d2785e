"""What `sidrec train` refuses: one sentence and status 2, and nothing that stands in the way of the next try."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.config import save
from tests.small_log import ITEMS_COUNT, write_small_log
from tests.train.refusals import CODES, ITEMS, TEST, TRAIN, cast, drop, edit, put, recipe_of, refusal, start, truncate


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("sound"), rows=200)


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A sound data folder and catalog, to break."""
    return Path(shutil.copytree(sound, tmp_path / "f"))


def rename_split(folder: Path, before: str, after: str) -> None:
    path = folder / "data/log/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"][after] = manifest["splits"].pop(before)
    path.write_text(json.dumps(manifest))


AT_THE_DOOR: dict[str, tuple[Callable[[Path], object], str]] = {
    "no data": (lambda f: shutil.rmtree(f / "data"), "{f}/data/log/manifest.json: expected .*, got no such file"),
    "no train file": (lambda f: (f / TRAIN).unlink(), "{f}/" + TRAIN + ": expected .*, got no such file"),
    "no test file": (lambda f: (f / TEST).unlink(), "{f}/" + TEST + ": expected .*, got no such file"),
    "train file cut off": (lambda f: truncate(f / TRAIN), "{f}/" + TRAIN + ": expected a whole parquet file, got .*"),
    "test file cut off": (lambda f: truncate(f / TEST), "{f}/" + TEST + ": expected a whole parquet file, got .*"),
    "empty file": (lambda f: (f / TRAIN).write_bytes(b""), "{f}/" + TRAIN + ": expected a whole parquet file, got .*"),
    "column": (lambda f: drop(f / TRAIN, "item_id"), "{f}/" + TRAIN + ": expected a column item_id, got columns .*"),
    "statistic": (lambda f: drop(f / TRAIN, "stat_clicks"), "{f}/" + TRAIN + ": expected a column stat_clicks, got .*"),
    "type": (
        lambda f: cast(f / TRAIN, "stat_clicks", pa.string()),
        "{f}/" + TRAIN + ", column stat_clicks: expected float, got string",
    ),
    "column of test": (lambda f: drop(f / TEST, "int_b"), "{f}/" + TEST + ": expected a column int_b, got .*"),
    "no train split": (
        lambda f: rename_split(f, "train", "trian"),
        r"manifest.json: expected one of the splits \['test', 'trian'\], got 'train'",
    ),
    "no test split": (
        lambda f: rename_split(f, "test", "tset"),
        r"manifest.json: expected one of the splits \['train', 'tset'\], got 'test'",
    ),
    "no items": (lambda f: (f / ITEMS).unlink(), "{f}/" + ITEMS + ": expected .*, got no such file"),
    "items cut off": (
        lambda f: truncate(f / ITEMS),
        "{f}/" + ITEMS + ": expected a readable parquet file of items, .*",
    ),
    "column of items": (
        lambda f: drop(f / ITEMS, "train_impressions"),
        "{f}/" + ITEMS + r": expected a column train_impressions, got columns \['item_id'\]",
    ),
    "no catalog": (lambda f: shutil.rmtree(f / "catalog"), "{f}/catalog/catalog.json: expected .*, got no such file"),
    "no codes": (lambda f: (f / CODES).unlink(), "{f}/" + CODES + ": expected the catalog's codes, got no such file"),
    "a code less": (
        lambda f: put(f / CODES, "sid_1", 3, None),
        "{f}/" + CODES + ", column sid_1: expected integers without missing values, got int32 with 1 missing",
    ),
    "codes as text": (
        lambda f: cast(f / CODES, "sid_2", pa.string()),
        "{f}/" + CODES + ", column sid_2: expected integers without missing values, got string .*",
    ),
    "another code": (
        lambda f: put(f / CODES, "sid_1", 3, (pq.read_table(f / CODES)["sid_1"][3].as_py() + 1) % 4),
        "{f}/catalog, fingerprint: expected [0-9a-f]{{64}} as catalog.json says, got [0-9a-f]{{64}}",
    ),
    "runs is a file": (
        lambda f: (f / "runs").write_text(""),
        "train.runs: expected a folder that can be written, got {f}/runs, which is a file",
    ),
}


@pytest.mark.parametrize("fault", AT_THE_DOOR)
def test_refused_before_anything_is_written(fault: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    breaks, expected = AT_THE_DOOR[fault]
    breaks(folder)
    sentence = refusal(capsys, start(recipe_of(folder)))
    assert "\n" not in sentence
    assert re.fullmatch(expected.format(f=re.escape(str(folder))), sentence), sentence
    assert not (folder / "runs").is_dir()


RECIPES: dict[str, tuple[dict[str, object], str]] = {
    "deep granularity": (
        {"model": {"item": {"kind": "sid_coord", "granularities": ["s1", "s4"]}}},
        "granularity s4: expected levels among the 3 of the catalog, got 4",
    ),
    "unknown id column": (
        {"model": {"context": ["cat_z"]}},
        "model.context: expected columns of the log, which has ['cat_a', 'item_id', 'user_id'], got 'cat_z'",
    ),
    "unknown dense column": (
        {"model": {"dense": ["int_z"]}},
        "model.dense: expected columns of the log, which has ['int_a', 'int_b'], got 'int_z'",
    ),
    "lanes": ({"data": {"lanes": 5}}, "data.batch_size: expected a multiple of data.lanes = 5, got 64"),
    "split": (
        {"evaluate": {"splits": ["tset"]}},
        "manifest.json: expected one of the splits ['test', 'train'], got 'tset'",
    ),
}


@pytest.mark.parametrize("fault", RECIPES)
def test_a_recipe_that_does_not_fit_the_data(fault: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections, expected = RECIPES[fault]
    assert refusal(capsys, start(recipe_of(folder, **sections))) == expected
    assert not (folder / "runs").exists()


MISTAKES: dict[str, tuple[tuple[str, str], str]] = {
    "key": (
        ("batch_size:", "batchsize:"),
        "data.batchsize: Unexpected keyword argument; expected one of path, .*; did you mean batch_size[?]",
    ),
    "tag": (("kind: sid_coord", "kind: sidcoord"), "model.item: Input tag 'sidcoord' found using 'kind' does not .*"),
    "granularity": (
        ("- s23", "- s13"),
        r"model.item.sid_coord.granularities.4: expected adjacent, ascending levels .*, got 's13'",
    ),
    "granularity twice": (
        ("- s23", "- s1"),
        "model.item.sid_coord.granularities: expected every name once, got 's1' twice",
    ),
    "context twice": (("- cat_a", "- user_id"), "model.context: expected every name once, got 'user_id' twice"),
    "width": (("embedding_dim: 8", "embedding_dim: 6"), "model.embedding_dim: Input should be a multiple of 4, got 6"),
    "history": (("history_length: 4", "history_length: 0"), "data.history_length: .* greater than 0, got 0"),
    "shares": (
        ("head_share: 0.1", "head_share: 0.7"),
        "evaluate: expected head_share [+] tail_share of at most 1, got 0.7 [+] 0.5",
    ),
}


@pytest.mark.parametrize("fault", MISTAKES)
def test_a_mistake_in_the_recipe(fault: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (right, wrong), expected = MISTAKES[fault]
    path = tmp_path / "recipe.yaml"
    save(recipe_of(sound), path)
    assert path.read_text().count(right) == 1
    path.write_text(path.read_text().replace(right, wrong))
    first, mistake = refusal(capsys, cli.main(["train", str(path)])).splitlines()
    assert first == f"{path}: 1 mistake(s) in the recipe"
    assert re.fullmatch(expected, mistake.strip()), mistake


@pytest.mark.parametrize(
    ("target", "end"),
    [
        ("a file/catalog", "expected a folder to write, got a path below the file {file}; name another one"),
        ("a file", "{file}: expected nothing there yet, or a catalog, got something without catalog.json"),
    ],
)
def test_a_catalog_that_cannot_be_written(
    target: str, end: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before the fit, not after it."""
    (folder / "a file").write_text("")
    (folder / ITEMS).unlink()
    recipe = recipe_of(folder)
    recipe = replace(recipe, data=replace(recipe.data, catalog=folder / target))
    save(recipe, folder / "recipe.yaml")
    sentence = refusal(capsys, cli.main(["fit", str(folder / "recipe.yaml")]))
    assert sentence.endswith(end.format(file=folder / "a file"))


BAD_ROWS = [
    ("label", 2.0, "expected 0 or 1, got 2.0"),
    ("int_a", float("nan"), "expected finite values, got nan"),
    ("int_b", float("-inf"), "expected finite values, got -inf"),
    ("stat_clicks", float("nan"), "expected finite counts of at least 0, got nan"),
    ("item_id", ITEMS_COUNT + 1, f"expected ids in [0, {ITEMS_COUNT + 1}), got {ITEMS_COUNT + 1}"),
    ("user_id", -1, "expected ids in [0, 41), got -1"),
]


@pytest.mark.parametrize(("column", "value", "complaint"), BAD_ROWS)
def test_a_bad_row_is_named_and_the_corrected_recipe_may_start(
    column: str, value: object, complaint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(folder / TRAIN, column, 177, value)
    recipe = recipe_of(folder)
    where = f"{folder / TRAIN}, row group 3, row 177 of the file, column {column}"
    assert refusal(capsys, start(recipe)) == f"{where}: {complaint}"
    assert not list(recipe.run.rglob("*partial*"))
    if column == "stat_clicks":  # a count also enters the moments that standardise all counts
        assert start(replace(recipe, data=replace(recipe.data, bad_rows="quarantine"))) == 0
        assert json.loads((recipe.run / "metrics.json").read_text())["test"]["all"]["log_loss"] < 1


def test_rows_that_are_fine(folder: Path) -> None:
    """No history anywhere, an item that is not known, and one class only: metrics without meaning are null."""
    for path in (folder / TRAIN, folder / TEST):
        edit(path, lambda table: table.set_column(7, "history", pa.array([[]] * len(table), pa.list_(pa.int64()))))
        put(path, "item_id", 5, 0)
    edit(folder / TEST, lambda table: table.set_column(0, "label", pa.array(np.zeros(len(table), np.float32))))
    recipe = recipe_of(folder)
    assert start(recipe) == 0
    metrics = json.loads((recipe.run / "metrics.json").read_text())["test"]["all"]
    assert (metrics["auc"], metrics["gauc"], metrics["uauc"]) == (None, None, None)


def test_sidrec_traceback_shows_where_a_sentence_came_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDREC_TRACEBACK", "1")
    (folder / TRAIN).unlink()
    with pytest.raises(ValueError, match="got no such file"):
        start(recipe_of(folder))
