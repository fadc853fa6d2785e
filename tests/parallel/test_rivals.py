"""Two ranks learn what one process learns, for the rivals of SID-Coord; what a recipe asks in vain is refused."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sidrec.config import Recipe
from sidrec.parallel.process_group import joined_ranks
from sidrec.schema import ITEMS, ContractError
from sidrec.train.assembly import open_dataset, open_loader
from tests.parallel.test_sharding import scores_after_training
from tests.ranks import joined, run_on_ranks
from tests.small_log import ITEMS_COUNT, small_recipe, write_small_log

SHARED = {"kind": "modulo", "rows": 23}
RIVALS: dict[str, dict[str, Any]] = {
    "prefixes_in_one_table": {
        "kind": "hid_and_sid",
        "granularities": ["s1", "s12", "s123"],
        "fusion": {"kind": "sum"},
        "index": SHARED,
        "hid_index": SHARED,
        "alignment": {"kind": "match_stats"},
    },
    "subwords": {"kind": "gate_sid", "tokens": {"kind": "spm", "vocabulary": 40}, "fusion": {"kind": "sum"}},
    "content": {"kind": "content"},
}
"""Together they have all that ranks could see differently: shared tables, subwords, and every array per item bag."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small log, its items with vectors."""
    folder = write_small_log(tmp_path_factory.mktemp("rivals"), rows=300)
    path = folder / "data" / ITEMS
    vectors = np.random.default_rng(5).normal(size=(ITEMS_COUNT, 6)).astype(np.float32)
    text = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 6)
    pq.write_table(pq.read_table(path).append_column("text", text), path)
    return folder


def recipe_of(folder: Path, item: dict[str, Any], **model: Any) -> Recipe:
    optimizer = {"tables": {"kind": "adagrad", "lr": 0.1}, "dense": {"lr": 0.02}}
    recipe = small_recipe(folder, model={"item": item, **model}, optimizer=optimizer)
    return replace(recipe, train=replace(recipe.train, epochs=1))


def train_all(rank: int, world: int, folder: Path, shardings: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Test scores of every rival, each trained with the next of the sharding types."""
    scores = {}
    for (name, item), sharding in zip(RIVALS.items(), cycle(shardings), strict=False):
        recipe = recipe_of(folder, item)
        recipe = replace(recipe, train=replace(recipe.train, runs=folder / name))
        scores[name] = scores_after_training(recipe, sharding, rank, world)
    return scores


def test_two_ranks_equal_one_process(folder: Path) -> None:
    alone = run_on_ranks(1, train_all, folder, ("table_wise",))[0]
    first, second = run_on_ranks(2, train_all, folder, ("row_wise", "column_wise"))
    for name, expected in alone.items():
        assert expected.std() > 0.05, "an untrained model would make this test pass for nothing"
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], expected, rtol=0, atol=2e-5, msg=partial("{}: {}".format, name))


def subwords_of(rank: int, world: int, recipe: Recipe) -> tuple[str | None, np.ndarray]:
    data = open_dataset(recipe, joined(rank, world))
    return data.fingerprint, data.tables.rows_IF


def test_all_ranks_learn_the_same_subwords_and_the_fingerprint_tells(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, RIVALS["subwords"])
    (first, rows), (second, others) = run_on_ranks(2, subwords_of, recipe)
    assert first == second
    np.testing.assert_array_equal(rows, others)
    shutil.copytree(folder / "data", tmp_path / "data")
    items = pq.read_table(folder / "data" / ITEMS)
    column = items.schema.get_field_index("train_impressions")
    turned = items.set_column(column, "train_impressions", items["train_impressions"].to_numpy()[::-1][None])
    pq.write_table(turned, tmp_path / "data" / ITEMS)
    with joined_ranks() as ranks:
        other = open_dataset(replace(recipe, data=replace(recipe.data, path=tmp_path / "data")), ranks).fingerprint
    assert first is not None
    assert other is not None
    assert other.split(",")[0] == first.split(",")[0]
    assert other != first


def test_content_reaches_batches_through_a_loader_s_process(folder: Path) -> None:
    recipe = recipe_of(folder, RIVALS["content"])
    recipe = replace(recipe, data=replace(recipe.data, workers=1))
    with joined_ranks() as ranks:
        data = open_dataset(recipe, ranks)
        loader = open_loader(recipe, data, "test", shuffle=False, ranks=ranks)
        batches = list(loader.batches(0))
        loader.close()
    assert sum(len(batch.item_B) for batch in batches) >= 100
    for batch in batches:
        assert data.tables.content is not None
        expected = data.tables.content[batch.item_B.numpy()]
        np.testing.assert_array_equal(batch.content_UV[batch.target_B].numpy(), expected)
        assert not batch.content_UV[0].any()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "vector column": (
        {"kind": "content", "vectors": ["visual"]},
        r"expected a vector column visual, got vector columns",
    ),
    "vocabulary": (
        {"kind": "sid", "tokens": {"kind": "spm", "vocabulary": 12}},
        r"^model\.item\.tokens\.vocabulary: expected at least 13, a row for each code that occurs .*, got 12$",
    ),
    "depth": (
        {"kind": "gate_sid", "granularities": ["s1", "s4"]},
        r"^granularity s4: expected levels among the 3 of the catalog, got 4$",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_data_or_catalog_lack_is_refused_before_training(name: str, folder: Path) -> None:
    item, sentence = REFUSED[name]
    with joined_ranks() as ranks, pytest.raises(ContractError, match=sentence):
        open_dataset(recipe_of(folder, item), ranks)
