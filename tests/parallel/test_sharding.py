"""Two ranks learn what one process learns, whatever the sharding type and the table optimizer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from sidrec.checkpoint.train_state import Position
from sidrec.config import Recipe
from sidrec.config.recipe import ParallelConfig
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.evaluation import score_split
from sidrec.train.optimizers import build_optimizer
from sidrec.train.run_directory import RunDirectory
from sidrec.train.trainer import Trainer
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

EVERY_TYPE = (
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
ONE_OF_EACH_CUT = ("data_parallel", "table_wise", "row_wise", "column_wise")
BY_ROW_ONLY = ("data_parallel", "table_wise", "row_wise", "table_row_wise")
OPTIMIZERS = {
    "sgd": ({"tables": {"kind": "sgd", "lr": 0.5}}, EVERY_TYPE),
    "adagrad": ({"tables": {"kind": "adagrad", "lr": 0.1}}, EVERY_TYPE),
    "hid_of_its_own": ({"tables": {"kind": "adagrad", "lr": 0.1}, "hid": {"kind": "sgd", "lr": 0.2}}, ONE_OF_EACH_CUT),
    # A column shard of row-wise Adagrad keeps a state of its own per row: another optimizer, not another layout.
    "rowwise_adagrad": ({"tables": {"kind": "rowwise_adagrad", "lr": 0.1}}, BY_ROW_ONLY),
}


def scores_after_training(recipe: Recipe, sharding: str, rank: int, world: int) -> torch.Tensor:
    """Test scores in row order, after training with one sharding type."""
    recipe = replace(recipe, parallel=ParallelConfig(sharding=sharding))  # type: ignore[arg-type]
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
    sharded = build_training(recipe, data, ranks)
    kinds = {table.sharding_type for tables in sharded.plan.plan.values() for table in tables.values()}
    assert kinds == {sharding}
    optimizer = build_optimizer(sharded.model, recipe.optimizer, recipe.model.embedding_dim)
    run = RunDirectory(recipe.train.runs / f"{sharding}-{world}-{recipe.optimizer.tables.kind}")
    if rank == 0:
        run.begin(recipe)
    dist.barrier()
    Trainer(recipe, run, loader, sharded.model, optimizer, Position(0, 0, 0, None), ranks).train()
    return torch.from_numpy(score_split(recipe, data, sharded.model, "test", ranks).score_N)


def train_every_type(rank: int, world: int, recipe: Recipe, types: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {sharding: scores_after_training(recipe, sharding, rank, world) for sharding in types}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_two_ranks_equal_one_process(kind: str, tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    tables, types = OPTIMIZERS[kind]
    schedule = {"kind": "cosine", "warmup_steps": 3}
    recipe = small_recipe(tmp_path, optimizer={**tables, "dense": {"lr": 0.02}, "schedule": schedule})
    alone = run_on_ranks(1, train_every_type, recipe, ("table_wise",))[0]["table_wise"]
    first, second = run_on_ranks(2, train_every_type, recipe, types)
    assert alone.std() > 0.05, "an untrained model would make this test pass for nothing"
    for sharding in types:
        torch.testing.assert_close(first[sharding], second[sharding], rtol=0, atol=0)
        torch.testing.assert_close(first[sharding], alone, rtol=0, atol=2e-5)


def test_two_ranks_equal_one_process_with_gates_and_attention_in_the_host(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    model = {
        "embedding_dim": 8,
        "context": ["user_id", "cat_a"],
        "item": {"kind": "sid_coord", "history": ["hid", "sid"]},
        "history_pooling": {"kind": "target_attention"},
        "backbone": {"kind": "ppnet", "priors": ["item", "user_id"]},
    }
    recipe = small_recipe(tmp_path, model=model, optimizer={"tables": {"kind": "adagrad", "lr": 0.1}})
    alone = run_on_ranks(1, train_every_type, recipe, ("table_wise",))[0]["table_wise"]
    assert alone.std() > 0.05, "an untrained model would make this test pass for nothing"
    for scores in run_on_ranks(2, train_every_type, recipe, ("row_wise",)):
        torch.testing.assert_close(scores["row_wise"], alone, rtol=0, atol=2e-5)


def tables_after_training(rank: int, world: int, recipe: Recipe) -> dict[str, float]:
    """How far each item table has moved from its first values, at most."""
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
    sharded = build_training(recipe, data, ranks)
    tables = {name: value for name, value in sharded.model.state_dict().items() if name.startswith("items.")}
    before = {name: value.local_shards()[0].tensor.clone() for name, value in tables.items()}
    optimizer = build_optimizer(sharded.model, recipe.optimizer, recipe.model.embedding_dim)
    run = RunDirectory(recipe.run)
    run.begin(recipe)
    Trainer(recipe, run, loader, sharded.model, optimizer, Position(0, 0, 0, None), ranks).train()
    after = {name: value.local_shards()[0].tensor for name, value in tables.items()}
    return {name.split(".")[-2]: float((after[name] - before[name]).abs().max()) for name in before}


def test_the_hid_table_can_be_held_back(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    still = {"tables": {"kind": "adagrad", "lr": 0.1}, "hid": {"kind": "adagrad", "lr": 1e-9}}
    moved = run_on_ranks(1, tables_after_training, small_recipe(tmp_path, optimizer=still))[0]
    assert moved["hid"] < 1e-6
    assert moved["s1"] > 0.1
