"""Update counts as inputs of the gate: by hand; the same on any number of ranks, after a stop and in evaluation."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.checkpoint.stored_tables import open_checkpoint
from sidrec.config import Recipe
from sidrec.config.item_parts import ShrinkageGate, StatsGate
from sidrec.model.fusion_and_gate import Shrinkage, TargetAwareGate, build_gate
from sidrec.model.ranker import Ranker
from sidrec.model.tables import UpdateCounts
from sidrec.parallel.process_group import joined_ranks
from sidrec.parallel.sharding import updates_read_by
from sidrec.train.evaluate_run import evaluate_run
from sidrec.train.run import train
from sidrec.train.trainer import Trainer
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.stopped_trainer import StoppedError

ZERO, ONE = torch.zeros(1), torch.ones(1)
PLANS = ("table_wise", "row_wise", "data_parallel")
STOP = 9


class Watched(Trainer):
    """Notes the model's copy of the counts at each checkpoint; can stop after a step."""

    copy: list[int]
    k: float
    stop = 0

    def _save(self, step: int, factor: float) -> None:
        super()._save(step, factor)
        counts, ranker = updates_read_by(self.model), self.model.module
        assert counts is not None
        assert isinstance(ranker, Ranker)
        assert isinstance(ranker.gate, Shrinkage)
        Watched.copy, Watched.k = counts.counts_R[:-1].tolist(), ranker.gate.log_k.exp().item()

    def _save_if_due(self, step: int, factor: float) -> None:
        super()._save_if_due(step, factor)
        if step == Watched.stop:
            raise StoppedError


def recipe_of(folder: Path, name: str, sharding: str | None = None, **item: Any) -> Recipe:
    shrunk = {"kind": "sid_coord", "gate": {"kind": "shrinkage", "strength": 3.0}, "hid_dropout": 0.3}
    return small_recipe(
        folder,
        name=name,
        model={"embedding_dim": 16, "item": {**shrunk, "views": ["mixed", "hid"], "sid_dropout": 0.2, **item}},
        train={"epochs": 1, "log_every": 1},
        checkpoint={"every": STOP},
        **({"parallel": {"sharding": sharding}} if sharding else {}),
    )


def losses_of(recipe: Recipe) -> list[float]:
    lines = (recipe.run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def counts_of(run: Path) -> list[int]:
    table = open_checkpoint(run).tables["hid"]
    assert table.updates is not None
    return table.updates.rows(0, table.updates.shape[0]).squeeze(1).tolist()


def train_all(rank: int, world: int, recipes: Mapping[str, Recipe]) -> dict[str, list[int]]:
    ranks, found = joined(rank, world), {}
    for name, recipe in recipes.items():
        assert train(recipe, ranks, Watched) == 0
        found[name] = Watched.copy
    return found


def test_two_ranks_read_the_same_counts_as_one_under_every_plan(tmp_path: Path) -> None:
    write_small_log(tmp_path)
    managed: dict[str, Any] = {"hid_index": {"kind": "managed_collision", "rows": 20, "eviction_interval": 3}}
    recipes = {plan: recipe_of(tmp_path, plan, plan) for plan in PLANS}
    recipes["managed"] = recipe_of(tmp_path, "managed", **managed)
    of_ranks = run_on_ranks(2, train_all, recipes)
    alone = recipe_of(tmp_path, "alone")
    with joined_ranks() as ranks:
        assert train(alone, ranks, Watched) == 0
    expected = counts_of(alone.run)
    assert max(expected) > 3
    assert Watched.copy == expected
    for name, recipe in recipes.items():
        assert of_ranks[0][name] == of_ranks[1][name] == counts_of(recipe.run), name
        if name != "managed":
            assert of_ranks[0][name] == expected, name
            assert losses_of(recipe) == pytest.approx(losses_of(alone), abs=2e-5), name
    assert len(losses_of(alone)) > STOP


def test_a_stopped_run_and_an_evaluation_go_on_with_the_counts(tmp_path: Path) -> None:
    write_small_log(tmp_path)
    whole, stopped = recipe_of(tmp_path, "whole"), recipe_of(tmp_path, "stopped")
    with joined_ranks() as ranks:
        assert train(whole, ranks) == 0
        Watched.stop = STOP
        with pytest.raises(StoppedError):
            train(stopped, ranks, Watched)
        Watched.stop = 0
        assert train(stopped, ranks, Watched) == 0
        assert losses_of(stopped) == losses_of(whole)
        assert counts_of(stopped.run) == counts_of(whole.run) == Watched.copy
        before = (whole.run / "metrics.json").read_text()
        (whole.run / "predictions_test.parquet").unlink()
        evaluate_run(whole.run, (), None, ranks)
    assert (whole.run / "metrics.json").read_text() == before
    scored = pq.read_table(whole.run / "predictions_test.parquet").to_pydict()
    counts, k = counts_of(whole.run), Watched.k
    assert k != pytest.approx(3.0, rel=1e-4), "k learns"
    expected = [counts[item] / (counts[item] + k) for item in scored["item_id"]]
    assert scored["gate"] == pytest.approx(expected, rel=1e-5)


def test_shrinkage_by_hand() -> None:
    gate = build_gate(ShrinkageGate(strength=4.0), 2, ZERO, ONE)
    assert isinstance(gate, Shrinkage)
    hid_BD, sid_BD = torch.tensor([[2.0, 4], [2, 4], [2, 4]]), torch.tensor([[10.0, 20], [10, 20], [10, 20]])
    has_sid_B, updates_B = torch.tensor([True, True, False]), torch.tensor([0.0, 12, 12])
    found = gate(hid_BD, sid_BD, torch.zeros(3, 1), has_sid_B, updates_B)
    torch.testing.assert_close(found, torch.tensor([[10.0, 20], [11.5, 23], [2, 4]]))
    found.sum().backward()
    assert gate.log_k.grad is not None
    # d/dlog(k) of n / (n + k) is -n k / (n + k)^2 = -12 * 4 / 16^2, times the sum 6 of e_hid
    assert gate.log_k.grad.item() == pytest.approx(-6 * 48 / 256)
    fixed = build_gate(ShrinkageGate(learned=False), 2, ZERO, ONE)
    assert [parameter.requires_grad for parameter in fixed.parameters()] == [False]


def test_the_gate_by_statistics_reads_the_logarithm_of_updates() -> None:
    torch.manual_seed(0)
    gate = build_gate(StatsGate(updates=True, hidden=1), 2, ZERO, ONE)
    assert isinstance(gate, TargetAwareGate)
    with torch.no_grad():
        gate.mlp.get_parameter("0.weight").copy_(torch.tensor([[1.0, 2.0]]))  # of the statistic, and of the updates
        gate.mlp.get_parameter("0.bias").zero_()
        gate.mlp.get_parameter("2.weight").fill_(1.0)
    found = gate.value(torch.tensor([[math.e - 1]]), torch.tensor([math.e**2 - 1]))
    assert found.item() == pytest.approx(1 / (1 + math.exp(-(1 + 2 * 2))), rel=1e-5)


def test_counts_of_bags_with_one_hid_or_none() -> None:
    counts = UpdateCounts(4)
    counts.counts_R.copy_(torch.tensor([9, 1, 2, 3, 77]))
    items = KeyedJaggedTensor(
        keys=["s1", "hid"], values=torch.tensor([2, 2, 3, 1]), lengths=torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    )
    assert counts(items).tolist() == [0, 3, 0, 1]
    nothing = KeyedJaggedTensor(keys=["hid"], values=torch.zeros(0, dtype=torch.int64), lengths=torch.tensor([0, 0]))
    assert counts(nothing).tolist() == [0, 0]
