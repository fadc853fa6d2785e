"""Runs with managed HIDs: ranks own their items, evaluation moves no row, a resumed run is the uninterrupted one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from sidrec.cli.runs import evaluate
from sidrec.config import Recipe
from sidrec.errors import CheckpointError
from sidrec.model.tables import ManagedCollisionRows
from sidrec.parallel.process_group import joined_ranks
from sidrec.train.run import train
from sidrec.train.trainer import Trainer
from tests.ranks import joined, run_on_ranks
from tests.small_log import ITEMS_COUNT, small_recipe, write_small_log
from tests.stopped_trainer import StoppedError

ROWS, RANKS = 52, 2
INTERVAL, STOPS = 4, {"in an interval": 6, "between intervals": 12}


class Watched(Trainer):
    """Stops after `stop` steps; otherwise it keeps what it trained."""

    stop = 0
    pipelined = 0
    slots: ManagedCollisionRows
    trained: dict[str, Tensor]

    def _save_if_due(self, step: int, factor: float) -> None:
        super()._save_if_due(step, factor)
        Watched.pipelined = self.training_step.pipelined
        if step == Watched.stop:
            raise StoppedError

    def train(self) -> int:
        stopped = super().train()
        (Watched.slots,) = (module for module in self.model.modules() if isinstance(module, ManagedCollisionRows))
        Watched.trained = {name: value.clone() for name, value in Watched.slots.state_dict().items()}
        return stopped


def recipe_of(folder: Path, name: str) -> Recipe:
    index = {"kind": "managed_collision", "rows": ROWS, "eviction_interval": INTERVAL}
    return small_recipe(
        folder,
        name=name,
        model={"embedding_dim": 8, "item": {"kind": "sid_coord", "hid_index": index}, "hid_init": 0.1},
        optimizer={"tables": {"kind": "rowwise_adagrad", "lr": 0.1}, "dense": {"lr": 0.02}},
        train={"log_every": 1},
        checkpoint={"every": 6},
    )


def train_and_stop(rank: int, world: int, folder: Path) -> list[int]:
    """Trains once from start to end, and once for each of the stops, resuming after it. Returns this rank's items."""
    ranks = joined(rank, world)
    for name, stop in {"whole": 0, **STOPS}.items():
        Watched.stop = stop
        recipe = recipe_of(folder, name)
        if stop:
            with pytest.raises(StoppedError):
                train(recipe, ranks, Watched)
        Watched.stop = 0
        train(recipe, ranks, Watched)
        evaluated = Watched.slots.state_dict()
        assert all(torch.equal(value, Watched.trained[name]) for name, value in evaluated.items())
    assert Watched.pipelined == 3, "context, SIDs and HIDs"
    owned = Watched.slots._mch_sorted_raw_ids
    return owned[owned < torch.iinfo(torch.int64).max].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("managed"))


@pytest.fixture(scope="module")
def owned(folder: Path) -> list[list[int]]:
    """Every rank's items, after all runs."""
    return run_on_ranks(RANKS, train_and_stop, folder)


def losses(recipe: Recipe) -> list[tuple[int, float]]:
    lines = (recipe.run / "metrics.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.usefixtures("owned")
def test_stopped_and_resumed_equals_uninterrupted(stop: str, folder: Path) -> None:
    whole, resumed = recipe_of(folder, "whole"), recipe_of(folder, stop)
    assert len(losses(whole)) == 20
    assert losses(resumed) == losses(whole)
    assert (resumed.run / "metrics.json").read_text() == (whole.run / "metrics.json").read_text()


def test_every_rank_deals_its_rows_to_items_of_its_own(owned: list[list[int]]) -> None:
    for rank, items in enumerate(owned):
        assert len(items) == len(set(items)) == ROWS // RANKS - 1, "all rows are taken but that of unknown items"
        assert all(item % RANKS == rank and 0 < item <= ITEMS_COUNT for item in items)


def predictions(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "predictions_test.parquet").sort_values("row")


def test_one_rank_evaluates_with_all_ranks_rows_and_cannot_train_on(
    folder: Path, owned: list[list[int]], tmp_path: Path
) -> None:
    recipe = recipe_of(folder, "whole")
    copied = shutil.copytree(recipe.run, tmp_path / "run")
    evaluate([str(copied)])
    before, after = predictions(recipe.run), predictions(copied)
    log = pq.read_table(recipe.data.path / "log" / "test" / "part-0.parquet")
    items = zip(log["item_id"].to_pylist(), log["history"].to_pylist(), strict=True)
    with_rows = {item for items in owned for item in items}
    known = np.array([{item, *history[-4:]} <= with_rows for item, history in items])
    assert 20 < known.sum() < len(known)
    np.testing.assert_allclose(after["score"][known], before["score"][known], rtol=0, atol=1e-5)
    with joined_ranks() as ranks, pytest.raises(CheckpointError) as refused:
        train(recipe, ranks)
    assert str(refused.value) == (
        f"{recipe.run}/checkpoints/step-20: expected the 2 rank(s) that own the slots of its managed tables, got 1; "
        "one rank can evaluate it too"
    )
