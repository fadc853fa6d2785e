"""Two ranks learn what one process learns, for every rival of SID-Coord; what a recipe asks in vain is refused."""

from dataclasses import replace
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
from sidrec.train.assembly import open_data
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
    },
    "subwords": {"kind": "hid_and_sid", "tokens": {"kind": "spm", "vocabulary": 40}, "fusion": {"kind": "sum"}},
    "match_stats": {"kind": "hid_and_sid", "alignment": {"kind": "match_stats"}},
    "gate_sid": {"kind": "gate_sid"},
    "content": {"kind": "content"},
}


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
    alone = run_on_ranks(1, train_all, folder, ("table_wise",), timeout=240)[0]
    first, second = run_on_ranks(2, train_all, folder, ("row_wise", "column_wise", "table_wise"), timeout=240)
    for name, expected in alone.items():
        assert expected.std() > 0.05, "an untrained model would make this test pass for nothing"
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)
        torch.testing.assert_close(
            first[name], expected, rtol=0, atol=2e-5, msg=lambda said, name=name: f"{name}: {said}"
        )


def subwords_of(rank: int, world: int, recipe: Recipe) -> tuple[str | None, np.ndarray]:
    data = open_data(recipe, joined(rank, world))
    return data.fingerprint, data.tables.rows_IF


def test_all_ranks_cut_sids_alike_and_a_checkpoint_would_know(folder: Path) -> None:
    recipe = recipe_of(folder, RIVALS["subwords"])
    (first, rows), (second, others) = run_on_ranks(2, subwords_of, recipe)
    assert first == second
    np.testing.assert_array_equal(rows, others)
    impressions = pq.read_table(folder / "data" / ITEMS)
    column = impressions.schema.get_field_index("train_impressions")
    with pytest.MonkeyPatch.context() as patch:
        turned = impressions.set_column(
            column, "train_impressions", impressions["train_impressions"].take(list(range(59, -1, -1)))
        )
        patch.setattr("sidrec.data.train_impressions.pq.read_table", lambda *_, **__: turned)
        with joined_ranks() as ranks:
            other = open_data(recipe, ranks).fingerprint
    assert first is not None
    assert other is not None
    assert other.split(",")[0] == first.split(",")[0]
    assert other != first


REFUSED = {
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
        open_data(recipe_of(folder, item), ranks)
