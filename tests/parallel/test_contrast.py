"""A loss with negatives from the batch is the same at any number of ranks, step by step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sidrec.config import Recipe
from tests.parallel.test_sharding import scores_after_training
from tests.ranks import run_on_ranks
from tests.small_log import small_recipe, write_small_log

Terms = list[dict[str, float]]


def train(rank: int, world: int, sharding: str, recipes: list[Recipe]) -> list[tuple[torch.Tensor, Terms]]:
    """Test scores of every recipe, and the lines of its metrics.jsonl."""
    trained = []
    for recipe in recipes:
        scores = scores_after_training(recipe, sharding, rank, world)
        (log,) = recipe.train.runs.glob(f"{sharding}-{world}-*/metrics.jsonl")
        trained.append((scores, [json.loads(line) for line in log.read_text().splitlines()]))
    return trained


def recipe_of(folder: Path, contrastive: dict[str, float] | None) -> Recipe:
    recipe = small_recipe(
        folder,
        model={"item": {"kind": "gate_sid", "contrastive": contrastive}},
        optimizer={"tables": {"kind": "adagrad", "lr": 0.1}, "dense": {"lr": 0.02}},
        train={"epochs": 1, "log_every": 1},
    )
    return replace(recipe, train=replace(recipe.train, runs=folder / f"runs-{contrastive}"))


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Lanes of 75 rows in steps of 16: every lane ends in padding."""
    write_small_log(tmp_path, rows=300)
    recipe = recipe_of(tmp_path, {"weight": 0.5})
    (((alone, expected), (without, plain)),) = run_on_ranks(1, train, "table_wise", [recipe, recipe_of(tmp_path, None)])
    ((first, terms),), ((second, _),) = run_on_ranks(2, train, "row_wise", [recipe])
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close(first, alone, rtol=0, atol=2e-5)
    assert (alone - without).abs().max() > 0.01, "a loss that teaches nothing would make this test pass for nothing"
    assert len(terms) == len(expected) == len(plain) == 5
    for found, wanted in zip(terms, expected, strict=True):
        assert wanted["contrastive"] > 0.05
        for name in ("loss", "contrastive"):
            assert found[name] == pytest.approx(wanted[name], abs=1e-6)
    assert not any("contrastive" in line for line in plain)
    assert expected[0]["loss"] - expected[0]["contrastive"] == pytest.approx(plain[0]["loss"], abs=1e-6)
