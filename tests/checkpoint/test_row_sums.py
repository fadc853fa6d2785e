"""Row-wise Adagrad's state of columns that are cut differently: what is kept, and what becomes of it."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sidrec.checkpoint.dcp_storage import save_shards
from sidrec.checkpoint.rowwise_adagrad_reshard import column_weights
from sidrec.checkpoint.state import load_model, state_shards
from sidrec.config import Recipe
from sidrec.parallel.process_group import Ranks
from sidrec.train.assembly import open_dataset
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.soak.reshard.runs import ShardedRanker, build_ranker, first_batches, machines_of

WIDTH, SHARDS = 16, 2
WEIGHT = "items.embedding_bags.hid.weight"
ROW_SUM = f"optimizer/{WEIGHT}/row_sum"


@pytest.mark.parametrize(
    ("shard", "saved", "expected"),
    [
        ((0, 8), [(0, 4), (4, 8)], [0.5, 0.5]),
        ((0, 8), [(0, 2), (2, 8)], [0.25, 0.75]),
        ((4, 8), [(0, 8)], [1.0]),
        ((4, 8), [(0, 2), (2, 4), (4, 8)], [0.0, 0.0, 1.0]),
        ((0, 4), [(0, 2), (2, 8)], [0.5, 0.5]),
        ((2, 6), [(0, 3), (3, 8)], [0.25, 0.75]),
    ],
)
def test_a_shard_starts_from_the_shards_that_it_shares_columns_with(
    shard: tuple[int, int], saved: list[tuple[int, int]], expected: list[float]
) -> None:
    assert column_weights(shard, saved).tolist() == expected


def whole_tensor(ranker: ShardedRanker, key: str, ranks: Ranks) -> torch.Tensor:
    """A tensor put together from all ranks' shards."""
    own = [shard for shard in state_shards(ranker.model, ranker.optimizer, ranks) if shard.key == key and shard.owned]
    found = [(shard.shape, shard.offset, shard.values.detach().clone()) for shard in own]
    everyone: list[list[tuple[tuple[int, ...], tuple[int, ...], torch.Tensor]]] = [[] for _ in range(ranks.world)]
    torch.distributed.all_gather_object(everyone, found)
    shards = [shard for of_rank in everyone for shard in of_rank]
    result = torch.full(shards[0][0], float("nan"))
    for _, offset, values in shards:
        result[tuple(slice(start, start + size) for start, size in zip(offset, values.shape, strict=True))] = values
    return result


def first_step(rank: int, world: int, recipe: Recipe, sharding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The HID table's gradient in the first step, and what row-wise Adagrad keeps of it."""
    machines_of(max(1, world // 2), world)
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, 1, ranks)
    plain = build_ranker(recipe, data, "sgd", sharding, ranks)
    before = whole_tensor(plain, f"model/{WEIGHT}", ranks)
    plain.train(batches)
    moved = before - whole_tensor(plain, f"model/{WEIGHT}", ranks)
    adagrad = build_ranker(recipe, data, "rowwise_adagrad", sharding, ranks)
    adagrad.train(batches)
    return moved / plain.optimizer.param_groups[0]["lr"], whole_tensor(adagrad, ROW_SUM, ranks)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(write_small_log(tmp_path_factory.mktemp("log"), 200), model={"embedding_dim": WIDTH})


@pytest.mark.parametrize(
    ("world", "sharding"), [(1, "column_wise"), (2, "column_wise"), (2, "grid_shard"), (4, "grid_shard")]
)
def test_a_row_sum_is_that_of_its_columns(world: int, sharding: str, recipe: Recipe) -> None:
    """One step's sum is the mean square of the gradient, which SGD shows, over the shard's columns."""
    gradient_RD, row_sum_RS = run_on_ranks(world, first_step, recipe, sharding)[0]
    assert row_sum_RS.shape == (len(gradient_RD), SHARDS)
    expected_RS = gradient_RD.reshape(len(gradient_RD), SHARDS, WIDTH // SHARDS).square().mean(dim=2)
    assert expected_RS.max() > 1e-8
    assert not torch.allclose(expected_RS[:, 0], expected_RS[:, 1], rtol=0.2, atol=1e-10)
    torch.testing.assert_close(row_sum_RS, expected_RS, rtol=0.01, atol=1e-11)


def convert(rank: int, world: int, recipe: Recipe, folder: Path) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Saves with two shards of columns; loads with one, and that with two again."""
    ranks = joined(rank, world)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sidrec.checkpoint.rowwise_adagrad_reshard").addHandler(handler)
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, 2, ranks)
    cut = build_ranker(recipe, data, "rowwise_adagrad", "column_wise", ranks)
    cut.train(batches)
    (folder / "cut").mkdir()
    save_shards(folder / "cut", state_shards(cut.model, cut.optimizer, ranks), rank, ranks.control)
    load_model(folder / "cut", cut.model, cut.optimizer, ranks)
    assert said == []
    whole = build_ranker(recipe, data, "rowwise_adagrad", "table_wise", ranks)
    load_model(folder / "cut", whole.model, whole.optimizer, ranks)
    assert len(said) == 1
    (folder / "whole").mkdir()
    save_shards(folder / "whole", state_shards(whole.model, whole.optimizer, ranks), rank, ranks.control)
    load_model(folder / "whole", cut.model, cut.optimizer, ranks)
    return whole_tensor(whole, ROW_SUM, ranks), whole_tensor(cut, ROW_SUM, ranks), said[0]


def test_cut_rows_become_whole_by_their_mean_and_whole_rows_are_copied(recipe: Recipe, tmp_path: Path) -> None:
    whole_R1, cut_RS, said = run_on_ranks(1, convert, recipe, tmp_path)[0]
    with safe_open(tmp_path / "cut" / "rank-0.safetensors", framework="pt") as stored:
        first, second = (stored.get_tensor(f"{ROW_SUM}@0,{shard}") for shard in range(SHARDS))
    assert not torch.equal(first, second)
    torch.testing.assert_close(whole_R1, (first + second) / 2)
    assert torch.equal(cut_RS, whole_R1.expand(-1, SHARDS))
    assert said == (
        f"{tmp_path / 'cut'}: the columns of table(s) cat_a, hid, s1, s12, s2, s23, s3, user_id were cut into other "
        "shards: their row-wise Adagrad goes on from the saved shards' mean, weighted by shared columns; losses stay "
        "close to that run's, but are not equal"
    )
