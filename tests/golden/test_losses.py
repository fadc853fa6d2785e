"""Every recipe trains as it did: the loss of each step, the metrics, and the content of a checkpoint."""

from pathlib import Path

import pytest

from tests.golden import golden_set, losses, recipes
from tests.golden.artifacts import ARTIFACTS
from tests.golden.golden_set import LOSSES, METRICS, differences

GOLDEN = golden_set.read("losses")
ALONE = [*(f"starting_{name}" for name in recipes.STARTING_NAMES), *recipes.CASES["alone"]]


def held_against(golden: dict, found: dict) -> list[str]:
    """Differences; metrics, which are made of ranks of scores too, may differ more than losses on other machines."""
    metrics = differences(golden["metrics"], found["metrics"], golden_set.allowed(METRICS), "metrics")
    terms, found_terms = ({key: record[key] for key in record if key != "metrics"} for record in (golden, found))
    return differences(terms, found_terms, golden_set.allowed(LOSSES)) + metrics


@pytest.mark.parametrize("name", ALONE)
def test_one_process(name: str, folder: Path) -> None:
    starting = name.removeprefix("starting_")
    tree = recipes.case_recipe(name) if starting == name else recipes.starting_recipe(starting)
    assert held_against(GOLDEN[name], losses.train(tree, folder)) == []


def test_two_ranks(folder: Path) -> None:
    trees = [recipes.case_recipe(name) for name in recipes.CASES["two_ranks"]]
    found = losses.train_on_ranks(trees, folder, 2)
    assert {name: held_against(GOLDEN[name], found[name]) for name in found} == {name: [] for name in found}


def test_plugged_into_torchrec() -> None:
    assert differences(GOLDEN["plugged"], losses.plugged(ARTIFACTS / "catalog"), golden_set.allowed(LOSSES)) == []
