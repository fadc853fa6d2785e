"""Anchors: FuxiCTR gets the rows that a recipe's own run gets, and its scores come back as predictions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import fuxictr_anchors
from benchmarks.fuxictr_anchors import MODELS, POINTS, RECIPES, Anchors, Export, predictions, report, twin_recipe
from sidrec.config import Recipe
from sidrec.data.dataset import read_dataset
from sidrec.data.loader import open_split
from sidrec.errors import ContractError
from sidrec.io.files import read_json
from sidrec.io.places import local_path
from sidrec.metrics.predictions import load_predictions
from sidrec.schema import LOG, ListColumn, LogFile, load_manifest, save_manifest
from tests.small_log import small_recipe, write_small_log

WORK = Path(__file__).parents[2] / "build" / "fuxictr"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe of item kind `hid` on a small log of 600, 100 and 100 rows."""
    log = write_small_log(tmp_path) / "data" / LOG
    table = pq.read_table(log / "test" / "part-0.parquet")
    files = {"train": load_manifest(log).files("train")}
    for split, part in (("validation", table.slice(0, 100)), ("test", table.slice(100))):
        (log / split).mkdir(exist_ok=True)
        pq.write_table(part, log / split / "part-0.parquet", row_group_size=50)
        times = part["timestamp"].to_numpy()
        files[split] = (LogFile(f"{split}/part-0.parquet", 100, int(times[0]), int(times[-1])),)
    save_manifest(replace(load_manifest(log), splits=files), log)
    data = {"train_on": ["train", "validation"], "order": "time"}
    return small_recipe(tmp_path, model={"item": {"kind": "hid"}}, data=data)


def test_rows_are_those_of_the_recipes_own_run_in_its_batches(recipe: Recipe, tmp_path: Path) -> None:
    data = read_dataset(recipe)
    own = open_split(
        recipe.data,
        recipe.model,
        recipe.data.train_on,
        rank=0,
        world=1,
        seed=3,
        shuffle=True,
        tables=data.tables,
        manifest=data.manifest,
    )
    exported = Export(recipe, tmp_path / "out").rows(recipe.data.train_on, seed=3)
    first = 0
    for batch in own.batches(0):
        row_B = batch.row_B[batch.weight_B > 0].tolist()
        assert exported.row_N[first : first + len(row_B)].tolist() == row_B
        first += len(row_B)
        assert len(row_B) == 64 or first == 700
    assert first == len(exported) == 700


def test_columns_are_the_inputs_of_the_ranker(recipe: Recipe, tmp_path: Path) -> None:
    export = Export(recipe, tmp_path / "out")
    rows = export.rows(("test",))
    assert rows.row_N.tolist() == list(range(100)), "scored rows are in file order"
    export.write("test", rows)
    table = pq.read_table(local_path(recipe.data.path, "data.path") / LOG / "test" / "part-0.parquet")
    with np.load(tmp_path / "out" / "test.npz") as found:
        for column in ("user_id", "cat_a", "item_id", "int_a", "int_b", "label"):
            np.testing.assert_array_equal(found[column], table[column].to_numpy())
        latest = [[*items[-4:], 0, 0, 0, 0][:4] for items in table["history"].to_pylist()]
        assert found["history"].tolist() == latest
        lengths = [min(4, len(items)) for items in table["history"].to_pylist()]
        np.testing.assert_allclose(found["history_length"], np.log1p(lengths), rtol=1e-6)
        train = np.log1p(
            pq.read_table(local_path(recipe.data.path, "data.path") / LOG / "train")["stat_clicks"].to_numpy()
        )
        expected = (np.log1p(table["stat_clicks"].to_numpy()) - train.mean()) / train.std()
        np.testing.assert_allclose(found["stat_clicks"], expected, rtol=1e-4, atol=1e-5)
        described = read_json(tmp_path / "out" / "feature_map.json", "a feature map")
        names = [name for feature in described["features"] for name in feature]
        assert [*names, *described["labels"]] == list(found)
    specs = {name: spec for feature in described["features"] for name, spec in feature.items()}
    assert specs["user_id"] == {"source": "", "type": "categorical", "vocab_size": 41}
    assert specs["history"]["share_embedding"] == "item_id"
    assert (specs["history"]["max_len"], specs["history"]["vocab_size"]) == (4, 61)
    assert names.index("item_id") < names.index("history"), "FuxiCTR shares tables that it has built"
    assert specs["stat_clicks"]["type"] == "numeric"


def test_a_context_column_of_lists_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    log = local_path(recipe.data.path, "data.path") / LOG
    save_manifest(replace(load_manifest(log), lists={"cat_a": ListColumn(3, 1.5)}), log)
    with pytest.raises(ContractError, match=r"one id a row.*cat_a"):
        Export(recipe, tmp_path / "out")


def test_scores_come_back_as_logits_of_the_same_rows(recipe: Recipe, tmp_path: Path) -> None:
    rows = Export(recipe, tmp_path / "out").rows(("test",))
    probability_N = np.full(100, 0.5)
    probability_N[:3] = 0.2, 0.0, 1.0
    predictions("test", rows, probability_N).save(tmp_path / "scores.parquet")
    found = load_predictions(tmp_path / "scores.parquet", "test")
    np.testing.assert_allclose(found.score_N[:4], [np.log(0.25), np.log(1e-7), -np.log(1e-7), 0], rtol=1e-5)
    np.testing.assert_array_equal(found.item_N, rows.item_N)
    np.testing.assert_array_equal(found.label_N, rows.label_N)
    with pytest.raises(ContractError, match="100 probabilities"):
        predictions("test", rows, probability_N[1:])
    with pytest.raises(ContractError, match="100 probabilities"):
        predictions("test", rows, probability_N - 1)


class FakeFits(Anchors):
    """Scores that are right for a share of the rows, 0.9 at point 1 and 0.6 at others; counts the runs."""

    fitted: list[tuple[str, int, int, str]]

    def _fit(
        self, runs: Sequence[tuple[str, int, int]], split: str
    ) -> Iterator[tuple["np.ndarray[Any, Any]", dict[str, Any]]]:
        with np.load(self.export.folder / f"{split}.npz") as rows:
            label_N = rows["label"]
        for model, point, seed in runs:
            self.fitted.append((model, point, seed, split))
            right_N = np.random.default_rng(seed).random(len(label_N)) < (0.9 if point == 1 else 0.6)
            yield np.where(right_N, label_N, 1 - label_N), {"cpu_seconds": 1.0, "packages": {"fuxictr": "none"}}


def test_the_point_is_chosen_on_validation_and_recorded_runs_are_skipped(recipe: Recipe, tmp_path: Path) -> None:
    FakeFits.fitted = []
    for _ in range(2):  # the second time, everything is recorded
        anchors = FakeFits("small", recipe, tmp_path / "work", tmp_path / "results" / "small.json")
        anchors.tune(["DIN"], 3)
        anchors.measure(["DIN"], 2)
    tuning = [("DIN", point, 0, "validation") for point in range(3)]
    assert FakeFits.fitted == [*tuning, ("DIN", 1, 0, "test"), ("DIN", 1, 1, "test")]
    found = read_json(tmp_path / "results" / "small.json", "a result")
    assert found["settings"]["points"][1] == POINTS[1]
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["runs"][0]["metrics"]["all"]["rows"] == 100
    kept = load_predictions(tmp_path / "work" / "small" / "DIN-test-point1-seed0.parquet", "test")
    assert len(kept) == 100
    assert "| DIN | 2 | " in report("small", found)
    other = replace(recipe, data=replace(recipe.data, batch_size=32))
    changed = FakeFits("small", other, tmp_path / "work", tmp_path / "results" / "small.json")
    assert changed.found["runs"] == [], "runs of other settings are not kept"


def test_the_claims_recipes_have_a_twin() -> None:
    twin = twin_recipe(RECIPES / "movielens.yaml")
    assert twin.model.item.kind == "hid"
    assert twin.data.history_length == 20


@pytest.mark.skipif(not (WORK / "venv" / "complete").exists(), reason="FuxiCTR's environment is not there")
@pytest.mark.parametrize("model", MODELS)
def test_fuxictr_trains_and_scores(model: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("venv", "zoo"):
        (tmp_path / name).symlink_to(WORK / name)
    monkeypatch.setattr(fuxictr_anchors, "POINTS", POINTS[:1])
    anchors = Anchors("small", recipe, tmp_path, tmp_path / "small.json")
    anchors.tune([model], 1)
    (run,) = anchors.found["tuning"]
    assert run["steps"] == 10, "600 rows of train in batches of 64"
    assert run["metrics"]["all"]["rows"] == 100
    assert anchors.found["packages"]["fuxictr"] == "2.3.10"
