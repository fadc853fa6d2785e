"""Updates received by each HID row: counted the same under every plan, saved, restored, carried on and exported."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, ShardedEmbeddingTable
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec import cli
from sidrec.checkpoint.row_state import stored_counts
from sidrec.checkpoint.stored_tables import open_checkpoint
from sidrec.checkpoint.tensor_shard import CheckpointIndex
from sidrec.config import Recipe, save
from sidrec.parallel.update_counts import RowUpdates, ids_between
from sidrec.train.run import train
from sidrec.train.step import StepResult
from sidrec.train.trainer import Trainer
from tests.ranks import joined, run_on_ranks
from tests.stopped_trainer import StoppedError
from tests.train.older_run import grown
from tests.train.older_run import recipe_of as wide_recipe_of
from tests.train.refusals import recipe_of, refusal, start
from tests.train.test_non_finite import log_with_huge_rows

BAD = [*range(50), *range(200, 250)]
"""Rows whose steps are skipped; see test_non_finite."""
PLANS: dict[str, dict[str, Any]] = {
    "table_wise": {"parallel": {"sharding": "table_wise"}},
    "row_wise": {"parallel": {"sharding": "row_wise"}, "optimizer": {"tables": {"kind": "rowwise_adagrad"}}},
    "column_wise": {"parallel": {"sharding": "column_wise", "pipeline": "plain"}},
    "data_parallel": {"parallel": {"sharding": "data_parallel"}, "optimizer": {"tables": {"kind": "sgd"}}},
}
STOPPED, STOP = "stopped", 10


class Watched(Trainer):
    """Notes the HIDs of each applied step; can stop after a step."""

    hids: list[set[int]]
    stop = 0

    def _log(self, result: StepResult) -> None:
        if result.skipped is None:
            Watched.hids.append(set(result.batch.items["hid"].values().tolist()))
        else:
            Watched.hids.append(set())
        super()._log(result)

    def _save_if_due(self, step: int, factor: float) -> None:
        super()._save_if_due(step, factor)
        if step == Watched.stop:
            raise StoppedError


def recipes_of(folder: Path) -> dict[str, Recipe]:
    sections = {"data": {"order": "time"}, "model": {"embedding_dim": 16}, "checkpoint": {"every": STOP}}
    names = {**PLANS, STOPPED: {"parallel": {"sharding": "row_wise"}}}
    epochs = {"epochs": 1, "non_finite": "skip"}
    return {name: recipe_of(folder, name=name, train=epochs, **sections, **plan) for name, plan in names.items()}


def train_all(rank: int, world: int, recipes: Mapping[str, Recipe]) -> dict[str, list[set[int]]]:
    ranks = joined(rank, world)
    found = {}
    for name, recipe in recipes.items():
        Watched.hids, Watched.stop = [], STOP if name == STOPPED else 0
        if Watched.stop:
            with pytest.raises(StoppedError):
                train(recipe, ranks, Watched)
        else:
            train(recipe, ranks, Watched)
        found[name] = Watched.hids
    return found


@pytest.fixture(scope="module")
def trained_on_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, list[set[int]]]]]:
    """A folder with a run of every plan, trained on two ranks, and the HIDs of each rank's steps."""
    folder = log_with_huge_rows(tmp_path_factory.mktemp("counts"), BAD)
    return folder, run_on_ranks(2, train_all, recipes_of(folder))


def counts_of(run: Path) -> list[int]:
    table = open_checkpoint(run).tables["hid"]
    assert table.updates is not None
    assert table.updates.dtype == torch.int32
    return table.updates.rows(0, table.updates.shape[0]).squeeze(1).tolist()


def expected_counts(steps_of_ranks: list[list[set[int]]]) -> list[int]:
    """One for each step that any rank looked a row up in."""
    counted = Counter(row for sets in zip(*steps_of_ranks, strict=True) for row in set().union(*sets))
    return [counted[row] for row in range(61)]


def test_every_plan_counts_each_row_once_a_step(
    trained_on_two: tuple[Path, list[dict[str, list[set[int]]]]],
) -> None:
    folder, of_ranks = trained_on_two
    for name, recipe in recipes_of(folder).items():
        if name == STOPPED:
            continue
        steps = [of_rank[name] for of_rank in of_ranks]
        expected = expected_counts(steps)
        assert counts_of(recipe.run) == expected, name
        assert sum(not sets for sets in steps[0]) == len((recipe.run / "skipped.jsonl").read_text().splitlines()) > 0
        assert expected[0] == 0
        assert max(expected) > 3
        assert expected_counts(steps[:1]) != expected != expected_counts([steps[0] + steps[1]] * 2), "ranks share rows"


@pytest.mark.parametrize("sharding", ["row_wise", "data_parallel"])
def test_counts_go_on_where_two_ranks_stopped(
    sharding: str, trained_on_two: tuple[Path, list[dict[str, list[set[int]]]]], tmp_path: Path
) -> None:
    folder, of_ranks = trained_on_two
    whole, stopped = recipes_of(folder)["row_wise"], recipes_of(folder)[STOPPED]
    before = sum(expected_counts([of_rank[STOPPED] for of_rank in of_ranks]))
    assert 0 < sum(counts_of(stopped.run)) == before < sum(counts_of(whole.run))
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    resumed = recipe_of(
        tmp_path, name=STOPPED, train={"epochs": 1, "non_finite": "skip"}, data={"order": "time"},
        model={"embedding_dim": 16}, checkpoint={"every": STOP}, parallel={"sharding": sharding},
    )  # fmt: skip
    shutil.copytree(stopped.run, resumed.run)
    save(resumed, resumed.run / "config.yaml")
    assert start(resumed) == 0
    assert counts_of(resumed.run) == counts_of(whole.run)


def test_older_checkpoints_have_no_counts(capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"items.embedding_bags.hid.weight": torch.zeros(3, 2)}
    ranks = type("First", (), {"first": True})()
    assert stored_counts(Path("step-1"), CheckpointIndex(1, {}, {}), [], weights, ranks) == []
    what = "this older checkpoint does not say how often HID rows were updated; counts begin at 0"
    assert capsys.readouterr().err == f"sidrec: warning: step-1: {what}\n"
    assert stored_counts(Path("step-1"), CheckpointIndex(1, {}, {}), [], {}, ranks) == []
    assert capsys.readouterr().err == ""


def test_a_warm_start_carries_them_on(trained: Path, tmp_path: Path) -> None:
    """With more rows than before; and from 0 where the table is not taken."""
    more = grown(trained, tmp_path)
    older = trained / "runs/adagrad/seed0"
    before = np.array(counts_of(older))
    found = {}
    for name, without in (("on", []), ("anew", ["hid"])):
        sections: dict[str, Any] = {"start": {"checkpoint": str(older), "without": without}}
        recipe = wide_recipe_of(more, name=name, optimizer={"tables": {"kind": "adagrad"}}, **sections)
        assert start(recipe) == 0
        found[name] = np.array(counts_of(recipe.run))
    assert found["on"].shape == found["anew"].shape == (70,)
    assert (found["on"] - found["anew"])[: len(before)].tolist() == before.tolist()
    assert before.sum() > 0
    assert found["on"][len(before) :].tolist() == [0] * (70 - len(before))


def test_export(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "runs/adagrad/seed0"
    expected = counts_of(run)
    for file in ("hid.parquet", "hid.safetensors"):
        assert cli.main(["table", "export", str(run), "hid", str(tmp_path / file), "--updates", "--optimizer"]) == 0
    found = pq.read_table(tmp_path / "hid.parquet")
    assert found.column_names == ["row", "embedding", "sum", "updates"]
    assert found["updates"].to_pylist() == expected
    tensors = load_file(tmp_path / "hid.safetensors")
    assert set(tensors) == {"hid", "hid/sum", "hid/updates"}
    assert tensors["hid/updates"].squeeze(1).tolist() == expected
    capsys.readouterr()
    assert cli.main(["table", "export", str(run), "user_id", str(tmp_path / "user.parquet"), "--updates"]) == 2
    assert "--updates: expected a checkpoint of 0.2.0 or later and the table hid, whose rows" in refusal(capsys, 2)
    assert cli.main(["table", "list", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"]["hid"]["rows"] == len(expected)


def test_evicted_rows_begin_at_0() -> None:
    table = ShardedEmbeddingTable(
        name="hid", num_embeddings=9, embedding_dim=4, local_rows=5, compute_kernel=EmbeddingComputeKernel.FUSED
    )
    updates = RowUpdates(table, 1, 3, torch.device("cpu"))
    ids = KeyedJaggedTensor(
        keys=["user", "hid", "s1"], values=torch.tensor([0, 2, 1, 3, 1, 4]), lengths=torch.tensor([1, 0, 2, 2, 1, 0])
    )
    for skipped in (False, True, torch.tensor(1.0), torch.tensor(0.0)):
        updates.record(ids)
        updates.end_step(skipped=skipped)
    with torch.no_grad():
        updates.record(ids)  # an evaluation's
    updates.end_step(skipped=False)
    assert updates.counts_N1.squeeze(1).tolist() == [0, 2, 2, 2, 0]
    updates.restart(torch.tensor([1, 3]))
    assert updates.counts_N1.squeeze(1).tolist() == [0, 0, 2, 0, 0]


def test_a_device_is_not_asked_where_the_ids_of_a_feature_begin() -> None:
    ids_P, offsets = torch.tensor([5, 6, 7, 8]), torch.tensor([0, 1, 3, 3])
    assert ids_between(ids_P, offsets[1], offsets[2], elsewhere=9).tolist() == [9, 6, 7, 9]
    assert ids_between(ids_P, offsets[2], offsets[3], elsewhere=9).tolist() == [9] * 4
