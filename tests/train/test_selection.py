"""The best checkpoint is kept and reported; evaluating while training goes on changes nothing in training."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sidrec import cli
from sidrec.config import Recipe, save
from sidrec.config.recipe import BestConfig
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.train.evaluation import BestCheckpoint, score_split
from sidrec.train.run import train
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

BEST = {"split": "test", "metric": "log_loss", "every": 3}
EVERY_STEP = {"epochs": 2, "log_every": 1}


def losses(recipe: Recipe) -> list[tuple[int, float]]:
    lines = (recipe.run / "metrics.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def train_all(rank: int, world: int, recipes: list[Recipe]) -> None:
    ranks: Ranks = joined(rank, world)
    for recipe in recipes:
        assert train(recipe, ranks) == 0


def names(recipe: Recipe) -> set[str]:
    return {path.name for path in (recipe.run / "checkpoints").iterdir()}


@pytest.mark.parametrize("pipeline", ["sparse_dist", "plain"])
def test_evaluating_on_the_way_changes_no_loss(pipeline: str, tmp_path: Path) -> None:
    """500 rows in steps of 64: evaluations fall into the middle of epochs, and on their end."""
    write_small_log(tmp_path, rows=500)
    sections = {
        "train": EVERY_STEP,
        "parallel": {"pipeline": pipeline},
        "data": {"workers": int(pipeline == "sparse_dist")},
    }
    plain = small_recipe(tmp_path, name="plain", **sections)
    chosen = small_recipe(tmp_path, name="chosen", checkpoint={"best": BEST, "every": 5}, **sections)
    run_on_ranks(2, train_all, [plain, chosen])
    assert len(losses(plain)) == 16
    assert losses(chosen) == losses(plain)


def trained(recipe: Recipe, **replaced: Any) -> int:
    """The exit status of a training. replaced: arguments of BestCheckpoint."""
    with joined_ranks() as ranks:
        return train(recipe, ranks, best_checkpoint=partial(BestCheckpoint, **replaced))


def finds(values: dict[int, float | None]) -> Callable[..., dict[str, float | None]]:
    """In the place of `measure`: returns the values, one after another."""
    rest = iter(values.values())
    return lambda *_: {"log_loss": next(rest)}


def test_the_best_is_kept_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """12 steps; the second evaluation, which no checkpoint was due at, finds the lowest loss, the last one nothing."""
    write_small_log(tmp_path, rows=384)
    recipe = small_recipe(tmp_path, train=EVERY_STEP, checkpoint={"best": BEST, "every": 4, "keep": 1})
    assert trained(recipe, measure=finds({3: 0.7, 6: 0.5, 9: 0.5, 12: None})) == 0
    said = capsys.readouterr().out
    assert "step 6  test log_loss 0.50000, the best so far\n" in said
    assert "step 9  test log_loss 0.50000\n" in said
    assert "step 12  test log_loss undefined\n" in said
    assert names(recipe) == {"step-12", "step-6", "best.json"}
    best = json.loads((recipe.run / "checkpoints" / "best.json").read_text())
    assert best == {"split": "test", "metric": "log_loss", "value": 0.5, "step": 6}

    reported = (recipe.run / "metrics.json").read_text()
    assert {slice["step"] for slice in json.loads(reported)["test"].values()} == {6}
    for flags, step in ((["--checkpoint", "newest"], 12), ([], 6)):
        assert cli.main(["evaluate", str(recipe.run), *flags]) == 0
        again = (recipe.run / "metrics.json").read_text()
        assert {slice["step"] for slice in json.loads(again)["test"].values()} == {step}
        assert (again == reported) == (step == 6)


def test_a_resumed_run_knows_its_best(tmp_path: Path) -> None:
    """Also that it owes an evaluation: one that a signal left no time for."""
    write_small_log(tmp_path, rows=384)
    sections = {"train": EVERY_STEP, "checkpoint": {"best": BEST, "every": 1, "keep": 12}}
    whole, resumed = (small_recipe(tmp_path, name=name, **sections) for name in ("whole", "resumed"))
    found: dict[int, float | None] = {3: 0.7, 6: 0.5, 9: 0.6, 12: 0.8}
    assert trained(whole, measure=finds(found)) == 0
    shutil.copytree(whole.run, resumed.run)
    save(resumed, resumed.run / "config.yaml")
    for step in range(8, 13):
        shutil.rmtree(resumed.run / "checkpoints" / f"step-{step}")
    (resumed.run / "checkpoints" / "best.json").unlink()
    assert trained(resumed, measure=finds({step: found[step] for step in (9, 12)})) == 0
    assert (resumed.run / "metrics.json").read_text() == (whole.run / "metrics.json").read_text()
    assert names(resumed) == names(whole)

    other = replace(resumed, checkpoint=replace(resumed.checkpoint, best=BestConfig(split="test", every=12)))
    assert trained(other, measure=lambda *_: {"auc": 0.5}) == 0
    best = json.loads((resumed.run / "checkpoints" / "best.json").read_text())
    assert best == {"split": "test", "metric": "auc", "value": 0.5, "step": 12}, "by another metric none was known"


def test_a_signal_during_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no time for it: the step is saved, and the run goes on with the evaluation that it owes."""
    write_small_log(tmp_path, rows=384)
    best = {**BEST, "every": 4}
    whole, told = (small_recipe(tmp_path, name=n, train=EVERY_STEP, checkpoint={"best": best}) for n in ("w", "t"))

    def told_meanwhile(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return score_split(*args)

    assert trained(told, score=told_meanwhile) == 128 + signal.SIGTERM
    assert names(told) == {"step-4"}
    assert "step 4  test" not in capsys.readouterr().out
    assert trained(told) == 0
    assert "step 4  test log_loss" in capsys.readouterr().out
    assert trained(whole) == 0
    assert losses(told) == losses(whole)
    assert (told.run / "metrics.json").read_text() == (whole.run / "metrics.json").read_text()


def test_a_split_to_choose_by_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_log(tmp_path, rows=200)
    recipe = small_recipe(tmp_path, checkpoint={"best": {}})
    save(recipe, tmp_path / "recipe.yaml")
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 2
    assert "'validation'" in capsys.readouterr().err
    assert not (recipe.run / "config.yaml").exists()
