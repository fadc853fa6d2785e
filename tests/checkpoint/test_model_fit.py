"""Checkpoints of other models or optimizers: one sentence, on all ranks, and nothing is loaded."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sidrec.checkpoint.dcp_storage import save_shards
from sidrec.checkpoint.state import init_optimizer_states, load_model, state_shards
from sidrec.checkpoint.tensor_shard import INDEX
from sidrec.config import Recipe
from sidrec.errors import CheckpointError, RankError
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks
from sidrec.train.assembly import open_dataset
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.soak.reshard import runs
from tests.soak.reshard.runs import OPTIMIZERS, ShardedRanker, build_ranker, first_batches

USER = "context.embedding_bags.user_id.weight"
LAYER = "item.gate.mlp.0.weight"
Tensors = dict[str, dict[str, Any]]


def lacks_table(tensors: Tensors) -> None:
    del tensors[f"model/{USER}"]


def lacks_layer(tensors: Tensors) -> None:
    del tensors[f"model/{LAYER}"]


def has_another_table(tensors: Tensors) -> None:
    tensors["model/context.embedding_bags.cat_b.weight"] = tensors[f"model/{USER}"]


def has_fewer_rows(tensors: Tensors) -> None:
    reshape(tensors[f"model/{USER}"], [40, 8])


def has_other_width(tensors: Tensors) -> None:
    reshape(tensors[f"model/{USER}"], [41, 16])


def has_other_layer(tensors: Tensors) -> None:
    reshape(tensors[f"model/{LAYER}"], [64, 3])


def has_other_type(tensors: Tensors) -> None:
    tensors[f"model/{LAYER}"]["dtype"] = "F64"


def lacks_row_sums(tensors: Tensors) -> None:
    del tensors[f"optimizer/{USER}/row_sum"]


def has_row_sums_of_columns(tensors: Tensors) -> None:
    reshape(tensors[f"optimizer/{USER}/row_sum"], [41, 2])


def reshape(tensor: dict[str, Any], shape: list[int]) -> None:
    shard = {**tensor["pieces"][0], "offset": [0, 0], "shape": shape}
    tensor.update(shape=shape, pieces=[shard])


DAMAGES: list[tuple[Callable[[Tensors], None], str]] = [
    (lacks_table, "expected the table user_id of this recipe, got a checkpoint without it"),
    (lacks_layer, f"expected the layer {LAYER} of this recipe, got a checkpoint without it"),
    (has_another_table, "expected only the tables and layers of this recipe, got also the table cat_b"),
    (has_fewer_rows, "table user_id: expected 41 rows as this recipe's data have, the checkpoint's has 40"),
    (has_other_width, "table user_id: expected width 8 as this recipe has, the checkpoint's has 16"),
    (has_other_layer, f"layer {LAYER}: expected shape [64, 2] as this recipe has, the checkpoint's has [64, 3]"),
    (has_other_type, f"layer {LAYER}: expected F32 [64, 2] as this recipe has, the checkpoint's is F64 [64, 2]"),
    (
        lacks_row_sums,
        "table user_id: expected the optimizer rowwise_adagrad as this recipe has, the checkpoint's is sgd",
    ),
    (has_row_sums_of_columns, f"optimizer/{USER}/row_sum: expected shape [41, 1], got [41, 2]"),
]


@contextmanager
def refused(ranker: ShardedRanker, ranks: Ranks, expected: str) -> Iterator[None]:
    """Every rank is refused with that sentence, in whatever part of it; weights and their rates stay as they are."""
    before = {shard.name: shard.values.detach().clone() for shard in state_shards(ranker.model, None, ranks)}
    rates = [group["lr"] for group in ranker.optimizer.param_groups]
    with pytest.raises((CheckpointError, RankError)) as refusal:
        yield
    assert expected in str(refusal.value), str(refusal.value)
    assert all(torch.equal(shard.values, before[shard.name]) for shard in state_shards(ranker.model, None, ranks))
    assert [group["lr"] for group in ranker.optimizer.param_groups] == rates


def refuse_damages(rank: int, world: int, recipe: Recipe, folder: Path) -> None:
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    ranker = build_ranker(recipe, data, "rowwise_adagrad", "table_wise", ranks)
    ranker.train(first_batches(recipe, data, 1, ranks))
    save(ranker, folder, ranks)
    other = build_ranker(recipe, data, "rowwise_adagrad", "row_wise", ranks)
    sound = (folder / INDEX).read_text()
    for damage, expected in DAMAGES:
        index = json.loads(sound)
        damage(index["tensors"])
        torch.distributed.barrier()
        (folder / INDEX).write_text(json.dumps(index))
        torch.distributed.barrier()
        with refused(other, ranks, f"{folder}: {expected}"):
            load_model(folder, other.model, other.optimizer, ranks)


def save(ranker: ShardedRanker, folder: Path, ranks: Ranks) -> None:
    if ranks.first:
        folder.mkdir(exist_ok=True)
    torch.distributed.barrier()
    save_shards(folder, state_shards(ranker.model, ranker.optimizer, ranks), ranks.rank, ranks.control)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(write_small_log(tmp_path_factory.mktemp("log"), 200))


def test_a_checkpoint_of_another_model(recipe: Recipe, tmp_path: Path) -> None:
    run_on_ranks(2, refuse_damages, recipe, tmp_path / "checkpoint")


ADAM = OPTIMIZERS["adagrad"].dense
OF_ADAM = {kind: replace(optimizer, dense=ADAM) for kind, optimizer in OPTIMIZERS.items()}
OTHER_OPTIMIZERS = [
    ("adagrad", "rowwise_adagrad", "the optimizer rowwise_adagrad as this recipe has, the checkpoint's is adagrad"),
    ("rowwise_adagrad", "adagrad", "the optimizer adagrad as this recipe has, the checkpoint's is rowwise_adagrad"),
    ("adagrad", "sgd", "the optimizer sgd as this recipe has, the checkpoint's is adagrad"),
    ("sgd", "adagrad", "the optimizer adagrad as this recipe has, the checkpoint's is sgd"),
    (
        "sgd",
        "sgd, hid adagrad",
        "table hid: expected the optimizer adagrad as this recipe has, the checkpoint's is sgd",
    ),
    (
        "sgd",
        "dense adagrad",
        "bias_GH: expected the optimizer adagrad as this recipe has, the checkpoint's is adam or adamw",
    ),
]


def refuse_optimizers(rank: int, world: int, recipe: Recipe, folder: Path) -> None:
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, 1, ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OPTIMIZERS", {**OF_ADAM, "dense adagrad": OPTIMIZERS["sgd"]})
        for number, (saved, loaded, expected) in enumerate(OTHER_OPTIMIZERS):
            path = folder / str(number)
            ranker = build_ranker(recipe, data, saved, "row_wise", ranks)
            ranker.train(batches)
            save(ranker, path, ranks)
            for sharding in ("table_wise", "data_parallel"):
                other = build_ranker(recipe, data, loaded, sharding, ranks)
                with refused(other, ranks, expected):
                    load_model(path, other.model, other.optimizer, ranks)
            load_model(path, other.model, None, ranks)  # to evaluate, no optimizer is needed


def test_a_checkpoint_of_another_optimizer(recipe: Recipe, tmp_path: Path) -> None:
    run_on_ranks(2, refuse_optimizers, recipe, tmp_path)


def with_a_layer_that_nothing_reaches(rank: int, world: int, recipe: Recipe, folder: Path) -> None:
    """Its optimizer has made no state for it, and makes none when it is resumed."""
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)

    def build() -> ShardedRanker:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ranker, "__init__", with_idle_layer(Ranker.__init__))
            return build_ranker(recipe, data, "rowwise_adagrad", "row_wise", ranks)

    batches = first_batches(recipe, data, 4, ranks)
    ranker, resumed = build(), build()
    ranker.train(batches[:2])
    save(ranker, folder, ranks)
    load_model(folder, resumed.model, resumed.optimizer, ranks)
    states = resumed.optimizer.state_dict()["state"]
    assert states.keys() == ranker.optimizer.state_dict()["state"].keys()
    assert "idle.weight" not in states
    assert resumed.train(batches[2:]) == ranker.train(batches[2:])


def with_idle_layer(init: Callable[..., None]) -> Callable[..., None]:
    def made(self: Ranker, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.idle = torch.nn.Linear(2, 3)

    return made


def test_a_layer_without_optimizer_state(recipe: Recipe, tmp_path: Path) -> None:
    run_on_ranks(1, with_a_layer_that_nothing_reaches, recipe, tmp_path / "checkpoint")


def make_states_for_nothing(rank: int, world: int, recipe: Recipe) -> None:
    """Beside AdamW, which decays weights whatever the gradient. Gradients as large as the tables would be too large."""
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    for sharding in ("data_parallel", "row_wise"):
        ranker = build_ranker(recipe, data, "rowwise_adagrad", sharding, ranks)
        before = {shard.name: shard.values.detach().clone() for shard in state_shards(ranker.model, None, ranks)}
        rates = [group["lr"] for group in ranker.optimizer.param_groups]
        init_optimizer_states(ranker.optimizer, {})
        assert all(torch.equal(shard.values, before[shard.name]) for shard in state_shards(ranker.model, None, ranks))
        assert all(parameter.grad is None for parameter in ranker.optimizer.params.values())
        assert [group["lr"] for group in ranker.optimizer.param_groups] == rates


def test_making_states_changes_no_weight(recipe: Recipe) -> None:
    run_on_ranks(1, make_states_for_nothing, recipe)
