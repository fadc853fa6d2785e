"""Prepared Criteo files to a log: as-of statistics, splits by order, item vectors from the train split alone."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from data_prep.criteo import CriteoCommand
from data_prep.criteo_layout import CriteoLayout
from data_prep.criteo_log import CoOccurrence, CriteoLogCommand, WorkSizes, write_log
from sidrec import schema
from sidrec.config import Recipe, load_file
from sidrec.data.rows import broken_rows, split_index
from sidrec.fit import fit_catalog
from sidrec.metrics.exact import load_metrics
from sidrec.parallel.process_group import joined_ranks
from sidrec.schema import ContractError
from sidrec.sid.catalog import load_catalog
from sidrec.train.run import train
from tests.data_prep.criteo_text import random_lines, write
from tests.ranks import joined, run_on_ranks

ROOT = Path(__file__).parents[2]
ROWS, TRAIN, TEST = 900, 630, 720  # of 900 rows the last 20% are test, 10% before them validation


def prepared(folder: Path, lines: list[str] | None = None) -> Path:
    lines = lines or random_lines(ROWS, 4)
    days = [write(folder / f"day_{day}", part) for day, part in enumerate((lines[:500], lines[500:]))]
    CriteoCommand((*days, folder / "npy"), threshold=2).run()
    return folder / "npy"


def command(npy: Path, out: Path, **flags: Any) -> CriteoLogCommand:
    return CriteoLogCommand(npy, out, "C3", test_share=0.2, width=8, **flags)


def rows_of(out: Path, split: str) -> dict[str, np.ndarray]:
    manifest = schema.load_manifest(out / schema.LOG)
    table = pq.read_table([out / schema.LOG / file.path for file in manifest.files(split)])
    schema.check_columns(table.schema, manifest, split)
    assert not broken_rows(table, manifest)
    return {name: table[name].to_numpy() for name in table.column_names}


def test_log_by_a_plain_reading(tmp_path: Path) -> None:
    npy, out = prepared(tmp_path), tmp_path / "data"
    write_log(command(npy, out), WorkSizes(file=64))
    manifest = schema.load_manifest(out / schema.LOG)
    dense, ids, labels = (np.concatenate([np.load(npy / f"day_{d}_{kind}.npy") for d in range(2)]) for kind in
                          ("dense", "sparse", "labels"))  # fmt: skip
    items_of_log = sorted(set(ids[:, 2].tolist()) - {0})
    known = set(ids[:TRAIN, 2].tolist()) - {0}
    seen, clicked = Counter[int](), Counter[int]()
    exposures, clicks = [], []
    for value, label in zip(ids[:, 2].tolist(), labels[:, 0].tolist(), strict=True):
        exposures.append(seen[value])
        clicks.append(clicked[value])
        seen[value] += 1
        clicked[value] += label
    assert known < set(items_of_log), "this log has items that the train split lacks"
    for split, part in {"train": slice(0, TRAIN), "validation": slice(TRAIN, TEST), "test": slice(TEST, ROWS)}.items():
        rows = rows_of(out, split)
        assert len(split_index(out / schema.LOG, split, manifest)) > 1
        np.testing.assert_array_equal(rows["timestamp"], np.arange(ROWS)[part])
        np.testing.assert_array_equal(rows["label"], labels[part, 0])
        np.testing.assert_array_equal(rows["item_id"], ids[part, 2])
        np.testing.assert_array_equal(rows["cat_C2"], ids[part, 1])
        np.testing.assert_array_equal(rows["cat_C26"], ids[part, 25])
        np.testing.assert_array_equal(rows["int_I13"], dense[part, 12])
        np.testing.assert_array_equal(rows["stat_exposures"], exposures[part])
        np.testing.assert_array_equal(rows["stat_clicks"], clicks[part])
        assert not rows["user_id"].any()
        assert not any(len(history) for history in rows["history"])
    assert "cat_C3" not in rows
    items = pq.read_table(out / schema.ITEMS)
    assert items["item_id"].to_pylist() == items_of_log
    assert items["train_impressions"].to_pylist() == [Counter(ids[:TRAIN, 2].tolist())[i] for i in items_of_log]
    assert [any(vector) for vector in items["behavior"].to_pylist()] == [i in known for i in items_of_log]
    assert manifest.protocol["cold_items"] == len(items_of_log) - len(known)
    values = np.load(npy / "vocabulary/C3.npy")
    assert [int(text, 16) for text in items["source_id"].to_pylist()[1:]] == values[
        np.array(items_of_log)[1:] - 2
    ].tolist()


def test_items_and_vectors_do_not_depend_on_later_splits(tmp_path: Path) -> None:
    npy = prepared(tmp_path)
    command(npy, tmp_path / "before").run()
    for kind in ("sparse", "labels", "dense"):
        array = np.load(npy / f"day_1_{kind}.npy")
        array[TRAIN - 500 :] = array[TRAIN - 500 :][::-1]
        np.save(npy / f"day_1_{kind}.npy", array)
    command(npy, tmp_path / "after").run()
    before, after = (tmp_path / name / schema.ITEMS for name in ("before", "after"))
    assert before.read_bytes() == after.read_bytes()
    train = [tmp_path / name / "log/train/part-00000.parquet" for name in ("before", "after")]
    assert train[0].read_bytes() == train[1].read_bytes()


def test_ppmi_by_hand() -> None:
    # Item 1 occurs three times with value 0 and once with 1, item 2 four times with 1.
    together = CoOccurrence(sparse.csr_array(np.array([[0.0, 0, 0], [3, 1, 0], [0, 4, 0]])))
    expected = [[0, 0, 0], [np.log(3 * 8 / (4 * 3)), 0, 0], [0, np.log(4 * 8 / (4 * 5)), 0]]
    np.testing.assert_allclose(together.ppmi().toarray(), expected)


def test_vectors_are_the_leading_ones_of_a_dense_svd(tmp_path: Path) -> None:
    together = CoOccurrence.of(
        CriteoLayout.open(prepared(tmp_path)), item=2, rows=TRAIN, most_values=20, snapshot=tmp_path / "none"
    )
    vectors = together.vectors(5, seed=0)
    left, strength, _ = np.linalg.svd(together.ppmi().toarray(), full_matrices=False)
    expected = left[:, :5] * np.sqrt(strength[:5])
    np.testing.assert_allclose(np.abs(vectors), np.abs(expected), atol=1e-5)
    np.testing.assert_array_equal(vectors, together.vectors(5, seed=0))
    assert not vectors[0].any()


def test_co_occurrence_counts_every_pair_of_frequent_values(tmp_path: Path) -> None:
    npy = prepared(tmp_path)
    ids = np.concatenate([np.load(npy / f"day_{day}_sparse.npy") for day in range(2)])[:TRAIN]
    layout, snapshot = CriteoLayout.open(npy), tmp_path / "none"
    found = CoOccurrence.of(layout, item=2, rows=TRAIN, most_values=3, snapshot=snapshot).count_IJ.toarray()
    expected = []
    for column in (c for c in range(26) if c != 2):
        counts = Counter(ids[ids[:, column] > 0, column].tolist())
        for value in sorted(counts, key=lambda v: (-counts[v], v))[:3]:
            rows = ids[ids[:, column] == value, 2]
            expected.append(np.bincount(rows[rows > 0], minlength=len(found)))
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"manifest.json: expected the manifest of a folder that data_prep.criteo"):
        command(tmp_path, tmp_path / "out").run()
    npy = prepared(tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"item": "C27"}, "--item"),
        ({"test_share": 0.95}, "--test-share"),
        ({"width": 0}, "--width"),
    ]
    for flags, sentence in cases:
        with pytest.raises(ContractError, match=sentence):
            replace(command(npy, tmp_path / "out"), **flags).run()
    with (npy / "day_1_sparse.npy").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ContractError, match=r"day_1_sparse.npy: expected \d+ bytes, as manifest.json says"):
        command(npy, tmp_path / "out").run()
    assert not list(tmp_path.glob("out*"))


def metrics_after_training(rank: int, world: int, recipe: Recipe) -> dict[str, dict[str, float | int | None]]:
    train(recipe, joined(rank, world))
    return load_metrics(recipe.run / "metrics.json")["test"]


@pytest.mark.real_data
def test_recipe_learns_on_the_real_head(tmp_path: Path, real_data: Path) -> None:
    CriteoCommand((real_data / "criteo-dac-10k/train.txt.gz", tmp_path / "npy"), threshold=1).run()
    CriteoLogCommand(tmp_path / "npy", tmp_path / "data", "C10").run()
    recipe = load_file(ROOT / "launch/recipes/criteo.yaml")
    data = replace(recipe.data, path=tmp_path / "data", catalog=tmp_path / "catalog", batch_size=512, workers=0)
    recipe = replace(recipe, data=data, train=replace(recipe.train, runs=tmp_path / "runs"))
    with joined_ranks() as ranks:
        fit_catalog(recipe, ranks)
    metrics = run_on_ranks(1, metrics_after_training, recipe)[0]
    assert metrics["all"]["auc"] > 0.65
    items = pq.read_table(tmp_path / "data" / schema.ITEMS)
    cold = items["item_id"].to_numpy()[items["train_impressions"].to_numpy() == 0]
    assert metrics["cold"]["rows"] == np.isin(rows_of(tmp_path / "data", "test")["item_id"], cold).sum() > 0
    assert not np.isin(load_catalog(tmp_path / "catalog").item_ids_N, cold).any()
