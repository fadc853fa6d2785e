"""SIDs that tell labels of training rows are seen from rates of positives, and from nothing else."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sidrec.cli import main as sidrec
from sidrec.data.sid_labels import LEAST_ROWS, sid_label_warning
from sidrec.schema import ITEMS, LOG, load_manifest
from tests.small_log import ITEMS_COUNT, write_small_log

ALL = np.arange(1, ITEMS_COUNT + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which the label of a row is drawn anew: no item is better than another."""
    folder = write_small_log(tmp_path_factory.mktemp("log"), rows=1500)
    random = np.random.default_rng(1)
    for split in ("train", "test"):
        path = folder / "data" / LOG / split / "part-0.parquet"
        table = pq.read_table(path)
        label = pa.array((random.random(len(table)) < 0.02).astype(np.float32))
        item = pa.array(random.integers(1, ITEMS_COUNT + 1, size=len(table)))
        table = table.set_column(table.schema.get_field_index("label"), "label", label)
        pq.write_table(table.set_column(table.schema.get_field_index("item_id"), "item_id", item), path)
    return folder


def _clicked(folder: Path, split: str = "train") -> np.ndarray:
    rows = pq.read_table(folder / "data" / LOG / split / "part-0.parquet")
    return np.unique(rows["item_id"].to_numpy()[rows["label"].to_numpy() == 1])


def _warning(folder: Path, with_sid: np.ndarray, trained: tuple[str, ...] = ("train",)) -> str | None:
    log = folder / "data" / LOG
    return sid_label_warning(log, load_manifest(log), trained, "label", with_sid)


def test_sids_of_clicked_items_alone_are_named(folder: Path) -> None:
    clicked = _clicked(folder)
    assert 10 < len(clicked) < ITEMS_COUNT - 10
    said = _warning(folder, clicked)
    assert said is not None
    assert said.startswith("having a SID tells the label in training: there 0.0% of ")
    assert "; in test " in said


def test_sids_that_do_not_follow_from_labels_are_not(folder: Path) -> None:
    assert _warning(folder, ALL[::2]) is None
    assert _warning(folder, ALL) is None  # no row without a SID
    assert _warning(folder, _clicked(folder), ("train", "test")) is None  # nothing later to compare with


def test_items_that_are_better_at_all_times_may_have_sids(folder: Path, tmp_path: Path) -> None:
    better = ALL[: ITEMS_COUNT // 2]
    other = write_small_log(tmp_path, rows=1500)
    for split in ("train", "test"):
        path = other / "data" / LOG / split / "part-0.parquet"
        table = pq.read_table(folder / "data" / LOG / split / "part-0.parquet")
        share = np.where(np.isin(table["item_id"].to_numpy(), better), 0.5, 0.05)
        label = pa.array((np.random.default_rng(2).random(len(table)) < share).astype(np.float32))
        pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", label), path)
    assert _warning(other, better) is None


def test_few_rows_of_a_kind_tell_nothing(folder: Path) -> None:
    item = pq.read_table(folder / "data" / LOG / "test" / "part-0.parquet")["item_id"].to_numpy()
    counts = np.bincount(item, minlength=ITEMS_COUNT + 1)[1:]
    few = ALL[np.cumsum(counts) < LEAST_ROWS]
    assert len(few) > 3
    assert _warning(folder, np.intersect1d(few, _clicked(folder))) is None


def test_fit_warns(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "data" / ITEMS
    vectors = np.random.default_rng(0).normal(size=(ITEMS_COUNT, 4)).astype(np.float32)
    vectors[~np.isin(ALL, _clicked(folder))] = 0
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    pq.write_table(pq.read_table(path).append_column("behavior", column), path)
    learner = {"kind": "residual_kmeans", "levels": 2, "codebook_size": 4}
    recipe = {
        "name": "leak",
        "data": {"path": str(folder / "data"), "catalog": str(tmp_path / "catalog")},
        "tokenizer": {"vectors": ["behavior"], "learner": learner},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert sidrec(["fit", str(tmp_path / "recipe.yaml")]) == 0
    assert "sidrec: warning: having a SID tells the label in training" in capsys.readouterr().err
