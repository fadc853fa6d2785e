"""One recipe on one and on two ranks, which only add in another order."""

import json
from pathlib import Path

import pytest

from sidrec.config import Recipe
from sidrec.train.run import train
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

RATE = 0.1
SMOOTH = {"kind": "sid_coord", "alignment": {"kind": "raw_stats"}}
PUBLISHED = {"kind": "sid_coord"}
FIRST = 10  # steps in which every recipe stays within rounding


def trained(rank: int, world: int, recipes: list[Recipe]) -> list[int]:
    ranks = joined(rank, world)
    return [train(recipe, ranks) for recipe in recipes]


def losses(recipe: Recipe) -> list[float]:
    return [json.loads(line)["loss"] for line in (recipe.run / "metrics.jsonl").read_text().splitlines()]


def test_losses_of_one_and_of_two_ranks_differ_by_rounding(tmp_path: Path) -> None:
    """Over the whole run without AutoDis, at a rate ten times the usual one; with it in the first steps."""
    write_small_log(tmp_path, rows=1600)
    runs: dict[int, list[Recipe]] = {}
    for world in (1, 2):
        runs[world] = [
            small_recipe(
                tmp_path,
                name=f"{name}-{world}",
                model={"item": item},
                optimizer={"tables": {"kind": "adagrad", "lr": RATE}},
                train={"log_every": 1, "epochs": 2},
            )
            for name, item in (("smooth", SMOOTH), ("published", PUBLISHED))
        ]
        assert run_on_ranks(world, trained, runs[world]) == [[0, 0]] * world
    smooth, published = ([losses(runs[world][place]) for world in (1, 2)] for place in (0, 1))
    assert len(smooth[0]) == 50
    assert smooth[1] == pytest.approx(smooth[0], abs=2e-6)
    assert published[1][:FIRST] == pytest.approx(published[0][:FIRST], abs=2e-6)
    assert smooth[0][FIRST:] != pytest.approx(published[0][FIRST:], abs=1e-3), "two recipes"
