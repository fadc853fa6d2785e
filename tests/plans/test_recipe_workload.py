"""A recipe's workload, estimated without reading batches, against what its loader reads."""

from pathlib import Path

import numpy as np
import pytest
from torchrec.distributed.planner import ParameterConstraints

from sidrec.config import Recipe
from sidrec.data.batch import Batch
from sidrec.data.dataset import read_dataset
from sidrec.data.loader import open_split
from sidrec.parallel.planning import _pooling_factors
from sidrec.plans.workload import RowFrequencies, Workload, mean_history, recipe_workload, seen_at_least_once
from tests.parallel.test_list_columns import recipe_of, write_log_with_tags
from tests.small_log import small_recipe, write_small_log

WORLD = 2


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(write_small_log(tmp_path_factory.mktemp("log"), rows=1200))


@pytest.fixture(scope="module")
def batches(recipe: Recipe) -> list[Batch]:
    data = read_dataset(recipe)
    loader = open_split(
        recipe.data, recipe.model, "train", rank=0, world=WORLD, seed=0, shuffle=True,
        tables=data.tables, manifest=data.manifest,
    )  # fmt: skip
    return list(loader.batches(0))[:-1]  # the last one is shorter


def test_an_item_is_seen_with_the_probability_of_drawing_it_once() -> None:
    impressions_I = np.array([0, 6, 3, 1])
    random = np.random.default_rng(0)
    drawn = random.choice(4, size=(20_000, 5), p=impressions_I / 10)
    expected = [(drawn == item).any(axis=1).mean() for item in range(4)]
    assert seen_at_least_once(impressions_I, 5) == pytest.approx(expected, abs=0.02)
    assert seen_at_least_once(np.array([0, 7]), 5).tolist() == [0, 1]
    assert seen_at_least_once(np.array([0, 0]), 5).tolist() == [0, 0]


def test_estimated_bags_ids_and_history_are_near_those_of_the_loader(recipe: Recipe, batches: list[Batch]) -> None:
    estimated = recipe_workload(recipe, read_dataset(recipe), WORLD)
    workload = estimated.workload
    assert workload.rows_per_rank == 32
    lengths = np.concatenate([(batch.history_BT > 0).sum(dim=1).numpy() for batch in batches])
    assert estimated.history_length == pytest.approx(lengths.mean(), abs=0.3)
    bags = np.mean([batch.items.stride() for batch in batches])
    # Histories of this log are drawn evenly, targets are not; both are estimated from impressions.
    assert bags / 2 < workload.loads["hid"].bags <= 1.3 * bags
    assert workload.loads["hid"].bags == round(estimated.unique_items)
    assert workload.loads["user_id"].bags == 32
    assert set(workload.loads) == set(workload.tables)


def test_frequencies_are_those_of_unique_items(recipe: Recipe) -> None:
    workload = recipe_workload(recipe, read_dataset(recipe), WORLD).workload
    for name, load in workload.loads.items():
        if name in ("user_id", "cat_a"):
            assert load.popularity is None
            continue
        assert isinstance(load.popularity, RowFrequencies)
        assert load.popularity.frequency_R.shape == (workload.tables[name].num_embeddings,)
        assert load.popularity.frequency_R.sum() == pytest.approx(1)
        assert load.popularity.frequency_R[0] == 0  # "not known" is not looked up
    hid = workload.loads["hid"]
    assert isinstance(hid.popularity, RowFrequencies)
    assert hid.popularity.frequency_R.max() <= 1.001 / hid.bags * 1.1  # an item is looked up at most once a step


def test_the_mean_history_is_that_of_the_used_part(recipe: Recipe) -> None:
    data = read_dataset(recipe)
    assert 0 < mean_history(recipe.data, data.manifest) <= recipe.data.history_length


def test_bags_of_lists_are_those_of_the_loader(tmp_path: Path) -> None:
    small = recipe_of(write_log_with_tags(tmp_path, 300), "label")
    data = read_dataset(small)
    loads = recipe_workload(small, data, WORLD).workload.loads
    assert (loads["cat_tags"].ids_per_bag, loads["cat_a"].ids_per_bag) == ((1.5,), (1.0,))
    loader = open_split(
        small.data, small.model, "train", rank=0, world=WORLD, seed=0, shuffle=True,
        tables=data.tables, manifest=data.manifest,
    )  # fmt: skip
    ids, bags = 0, 0
    for batch in list(loader.batches(0))[:-1]:
        lengths = batch.context["cat_tags"].lengths()
        ids, bags = ids + int(lengths.sum()), bags + len(lengths)
    assert ids / bags == pytest.approx(1.5, abs=0.2)
    workload = recipe_workload(small, data, WORLD).workload
    factors = {name: found.pooling_factors for name, found in _pooling_factors(workload, defaults(workload)).items()}
    assert factors == {"cat_tags": [1.5]}


def defaults(workload: Workload) -> dict[str, ParameterConstraints]:
    return {name: ParameterConstraints() for name in workload.tables}
