"""Training on the train and validation splits: on two ranks, stopped in the second split, and what stays train's alone.

The log has 600 train rows; validation has the 200 rows of test, so that metrics exist and rows can be counted.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from sidrec.config import Recipe, save
from sidrec.data.dataset import read_dataset
from sidrec.io.places import local_path
from sidrec.metrics.slices import recipe_slices, slice_items
from sidrec.parallel.process_group import joined_ranks
from sidrec.schema import ITEMS, LOG, load_manifest, save_manifest
from sidrec.train.ledger_check import ledger_files, read_ledger
from sidrec.train.run import train
from sidrec.train.run_directory import RunDirectory
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.stopped_trainer import StoppedError, stopped_at

BOTH = ["train", "validation"]
TRAIN_ROWS, ROWS, BATCH = 600, 800, 64
STEPS = 13
STOP = 11  # 704 rows in the order of time: within validation


def recipe_of(folder: Path, name: str, train_on: list[str]) -> Recipe:
    return small_recipe(
        folder,
        name=name,
        data={"train_on": train_on, "order": "time"},
        model={"item": {"kind": "sid_coord", "alignment": {"kind": "raw_stats"}}},  # AutoDis would amplify rounding
        train={"epochs": 2, "log_every": 1, "row_ledger": True},
        checkpoint={"every": STOP, "background": False},
    )


def train_all(rank: int, world: int, whole: Recipe, stopped: Recipe, resumed: Recipe) -> None:
    ranks = joined(rank, world)
    assert train(whole, ranks) == 0
    with pytest.raises(StoppedError):
        train(stopped, ranks, stopped_at(STOP))
    if ranks.first:
        shutil.copytree(stopped.run, resumed.run)
        save(resumed, resumed.run / "config.yaml")
    dist.barrier()
    assert train(resumed, ranks) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Recipe]:
    """Runs on both splits: `alone` on one rank; `whole`, `stopped` and `resumed` on two."""
    folder = write_small_log(tmp_path_factory.mktemp("joint"), TRAIN_ROWS)
    manifest = load_manifest(folder / "data" / LOG)
    splits = {**manifest.splits, "validation": manifest.splits["test"]}
    save_manifest(replace(manifest, splits=splits), folder / "data" / LOG)
    found = {name: recipe_of(folder, name, BOTH) for name in ("alone", "whole", "stopped", "resumed")}
    with joined_ranks() as ranks:
        assert train(found["alone"], ranks) == 0
    run_on_ranks(2, train_all, found["whole"], found["stopped"], found["resumed"])
    return found


def losses(recipe: Recipe) -> list[float]:
    lines = map(json.loads, (recipe.run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def ledger(recipe: Recipe) -> list[tuple[int, int, int]]:
    """(epoch, step, row), sorted."""
    table = pa.concat_tables(map(read_ledger, ledger_files(RunDirectory(recipe.run).ledger))).to_pydict()
    return sorted(zip(table["epoch"], table["step"], table["row"], strict=True))


def test_two_ranks_train_on_the_rows_of_one(runs: Mapping[str, Recipe]) -> None:
    alone, whole = runs["alone"], runs["whole"]
    once_an_epoch = [(epoch, row) for epoch in range(2) for row in range(ROWS)]
    assert sorted((epoch, row) for epoch, _, row in ledger(alone)) == once_an_epoch
    assert ledger(whole) == ledger(alone)
    assert len(losses(alone)) == 2 * STEPS
    assert losses(whole) == pytest.approx(losses(alone), abs=2e-6)


def test_a_run_stopped_in_the_second_split_goes_on_there(runs: Mapping[str, Recipe]) -> None:
    before = [row for _, _, row in ledger(runs["stopped"])]
    assert max(before) >= TRAIN_ROWS, "a lane had reached the second split"
    assert max(np.bincount(before)) == 1, "in the first epoch"
    assert len(before) < ROWS
    whole, resumed = runs["whole"], runs["resumed"]
    assert ledger(resumed) == ledger(whole)
    assert losses(resumed) == losses(whole)
    assert (resumed.run / "metrics.json").read_text() == (whole.run / "metrics.json").read_text()


def test_slices_count_rows_of_both_splits_and_nothing_else_does(runs: Mapping[str, Recipe]) -> None:
    recipe = runs["alone"]
    folder = local_path(recipe.data.path, "data.path").parent
    only_train = recipe_of(folder, "train", ["train"])
    items = pq.read_table(local_path(recipe.data.path, "data.path") / ITEMS)
    item_I, train_I = items["item_id"].to_numpy(), items["train_impressions"].to_numpy()
    more = pq.read_table(local_path(recipe.data.path, "data.path") / LOG / "test/part-0.parquet")["item_id"].to_numpy()
    both_I = train_I + np.bincount(more, minlength=item_I.max() + 1)[item_I]
    shares = recipe.evaluate.head_share, recipe.evaluate.tail_share
    for name, impressions_I in (("alone", both_I), ("train", train_I)):
        found = recipe_slices(recipe if name == "alone" else only_train)
        expected = slice_items(item_I, impressions_I, *shares)
        assert {name: member_I.tolist() for name, member_I in found.members.items()} == {
            name: member_I.tolist() for name, member_I in expected.members.items()
        }
    assert recipe_slices(recipe).members["cold"].sum() < recipe_slices(only_train).members["cold"].sum()
    metrics = json.loads((recipe.run / "metrics.json").read_text())["test"]
    assert metrics["all"]["rows"] == ROWS - TRAIN_ROWS
    assert not metrics.get("cold", {}).get("rows"), "every row of test is trained on"
    sizes, other = read_dataset(recipe).sizes, read_dataset(only_train).sizes
    assert sizes == other, "moments of the statistics are those of train"
    counts = np.log1p(
        pq.read_table(local_path(recipe.data.path, "data.path") / LOG / "train/part-0.parquet")[
            "stat_clicks"
        ].to_numpy()
    )
    assert sizes.stats_mean[1] == pytest.approx(counts.mean(dtype=np.float64), rel=1e-5)
