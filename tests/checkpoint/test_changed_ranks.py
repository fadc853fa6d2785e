"""A run that goes on with another number of ranks: the same steps, the same rows in them, each row once per epoch."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from sidrec.config import Recipe, save
from sidrec.data.dataset import read_dataset
from sidrec.data.loader import open_split
from sidrec.train.ledger_check import ledger_files, read_ledger
from sidrec.train.run import train
from sidrec.train.run_directory import RunDirectory
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.stopped_trainer import StoppedError, stopped_at

ROWS, BATCH, EPOCHS = 610, 64, 2  # the last steps of an epoch are padded
STEPS = 10
STOP = 6
LATER = (1, 2, 4)


def recipe_of(folder: Path, runs: str) -> Recipe:
    return small_recipe(
        folder,
        optimizer={"tables": {"kind": "adagrad", "lr": 0.05, "eps": 1e-4}, "schedule": {"kind": "cosine"}},
        train={"runs": str(folder / runs), "epochs": EPOCHS, "log_every": 1, "row_ledger": True},
        checkpoint={"every": STOP, "background": False},
    )


def steps_of(recipe: Recipe, world: int, epoch: int, first: int, end: int) -> list[list[int]]:
    """The rows of steps [first, end), those of all ranks in their order, without padding."""
    data = read_dataset(recipe)
    steps: list[list[int]] = [[] for _ in range(end - first)]
    for rank in range(world):
        loader = open_split(
            recipe.data,
            recipe.model,
            "train",
            rank=rank,
            world=world,
            seed=recipe.seed,
            shuffle=True,
            tables=data.tables,
            manifest=data.manifest,
        )
        assert loader.steps == STEPS
        for step, batch in zip(steps, loader.batches(epoch, first), strict=False):
            step.extend(batch.row_B[batch.row_B >= 0].tolist())
    return steps


def test_any_number_of_ranks_reads_on_where_two_stopped(tmp_path: Path) -> None:
    recipe = small_recipe(write_small_log(tmp_path, ROWS))
    for epoch in range(EPOCHS):
        whole = steps_of(recipe, 2, epoch, 0, STEPS)
        assert sorted(row for rows in whole for row in rows) == list(range(ROWS))
        assert len(whole[-1]) < BATCH
        for later in LATER:
            assert steps_of(recipe, 2, epoch, 0, STOP) + steps_of(recipe, later, epoch, STOP, STEPS) == whole


def train_until_stopped(rank: int, world: int, recipe: Recipe) -> None:
    with pytest.raises(StoppedError):
        train(recipe, joined(rank, world), stopped_at(STOP))


def train_on(rank: int, world: int, recipe: Recipe) -> None:
    assert train(recipe, joined(rank, world)) == 0


def losses(recipe: Recipe) -> list[float]:
    lines = map(json.loads, (recipe.run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def trained_rows(recipe: Recipe) -> list[tuple[int, int, int]]:
    """(epoch, step, row) of all that a run's model has seen, sorted."""
    ledger = pa.concat_tables(map(read_ledger, ledger_files(RunDirectory(recipe.run).ledger))).to_pydict()
    return sorted(zip(ledger["epoch"], ledger["step"], ledger["row"], strict=True))


def test_any_number_of_ranks_trains_on_where_two_stopped(tmp_path: Path) -> None:
    write_small_log(tmp_path, ROWS)
    whole, stopped = recipe_of(tmp_path, "whole"), recipe_of(tmp_path, "stopped")
    run_on_ranks(2, train_on, whole)
    run_on_ranks(2, train_until_stopped, stopped)
    expected = trained_rows(whole)
    assert sorted((epoch, row) for epoch, _, row in expected) == [
        (e, row) for e in range(EPOCHS) for row in range(ROWS)
    ]
    for later in LATER:
        resumed = recipe_of(tmp_path, f"resumed-{later}")
        shutil.copytree(stopped.run, resumed.run)
        save(resumed, resumed.run / "config.yaml")
        run_on_ranks(later, train_on, resumed)
        assert trained_rows(resumed) == expected
        assert losses(resumed) == pytest.approx(losses(whole), rel=0, abs=1e-6)
        assert len(losses(resumed)) == EPOCHS * STEPS
