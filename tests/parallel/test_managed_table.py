"""Managed tables on ranks: rows start anew with another id, and what cannot be is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config import Recipe
from sidrec.config.item_parts import ManagedCollisionIndex
from sidrec.config.recipe import (
    AdagradTables,
    OptimizerConfig,
    ParallelConfig,
    RowwiseAdagradTables,
    SgdTables,
    TableOptimizer,
)
from sidrec.data.item_tables import ItemTable
from sidrec.errors import PlanError, RankError
from sidrec.model.tables import ManagedCollisionRows, managed_table
from sidrec.parallel.initial_values import initial_rows
from sidrec.parallel.planning import make_plan
from sidrec.parallel.process_group import joined_ranks
from sidrec.parallel.sharding import ShardedManagedTable, shard, sharders_of
from sidrec.plans.workload import Workload
from sidrec.train.run import train
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

SEED, ROWS = 3, 4


class Summed(nn.Module):
    """The sum of what ids are looked up in."""

    def __init__(self, table: ManagedCollisionEmbeddingBagCollection) -> None:
        super().__init__()
        self.hids = table

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        return self.hids(ids)[0]["hid"].sum()


def look_up(model: nn.Module, *ids: int) -> Tensor:
    lengths = torch.ones(len(ids), dtype=torch.int32)
    return model(KeyedJaggedTensor(keys=["hid"], values=torch.tensor(ids), lengths=lengths))


def slots_of(model: nn.Module) -> ManagedCollisionRows:
    (slots,) = (module for module in model.modules() if isinstance(module, ManagedCollisionRows))
    return slots


def row_of(slots: ManagedCollisionRows, item: int) -> int:
    return int(slots._mch_remapped_ids_mapping[slots._mch_sorted_raw_ids == item])


@pytest.mark.parametrize("optimizer", [AdagradTables(), RowwiseAdagradTables(), SgdTables()])
def test_a_row_that_goes_to_another_id_starts_anew(optimizer: TableOptimizer) -> None:
    index = ManagedCollisionIndex(rows=ROWS, eviction="lru", eviction_interval=1)
    model = Summed(managed_table("hid", ItemTable(ROWS, ("hid",), index), 8, 0.5))
    (config,) = model.hids._embedding_module.embedding_bag_configs()
    with joined_ranks() as ranks:
        workload = Workload("summed", model, {}, 8)
        config_of_all = OptimizerConfig(tables=optimizer)
        sharders = sharders_of(model, config_of_all, SEED)
        plan = make_plan(model, sharders, ParallelConfig(), lambda: workload, ranks)
        sharded = shard(model, plan, sharders, SEED, ranks)
        (table,) = (module for module in sharded.modules() if isinstance(module, ShardedManagedTable))
        kernels, _ = table._table_to_tbe_and_index["hid"]
        (weight,) = kernels.split_embedding_weights()
        states = [state for states in kernels.split_optimizer_states() for state in states]
        assert len(states) == (0 if isinstance(optimizer, SgdTables) else 1)
        torch.testing.assert_close(weight, initial_rows(SEED, config, 0, ROWS), rtol=0, atol=0)

        look_up(sharded, 1, 2, 3).backward()
        look_up(sharded, 2, 3).backward()
        row = row_of(slots_of(sharded), 1)
        before, moments = weight.clone(), [state.clone() for state in states]
        assert all(state[row].any() for state in states)
        look_up(sharded, 4)
        assert row_of(slots_of(sharded), 4) == row
        others = torch.arange(ROWS) != row
        torch.testing.assert_close(weight[others], before[others], rtol=0, atol=0)
        torch.testing.assert_close(weight[row], initial_rows(SEED, config, 3 * ROWS, 1)[0], rtol=0, atol=0)
        for state, moment in zip(states, moments, strict=True):
            assert not state[row].any()
            assert torch.equal(state[others], moment[others])


def refusal(rank: int, world: int, recipe: Recipe) -> str:
    with pytest.raises((PlanError, RankError)) as refused:
        train(recipe, joined(rank, world))
    assert not recipe.run.exists(), "what is refused leaves no run behind"
    return str(refused.value)


def refused_recipe(folder: Path, rows: int, **sections: Any) -> Recipe:
    index = {"kind": "managed_collision", "rows": rows}
    return small_recipe(write_small_log(folder), model={"item": {"kind": "hid", "hid_index": index}}, **sections)


@pytest.mark.parametrize("rows", [2, 33])
def test_rows_that_ranks_cannot_share_are_refused(rows: int, tmp_path: Path) -> None:
    sentence = (
        "no sharding plan for table hid, which is managed: expected rows that 2 rank(s) share evenly, two at least "
        f"each, got {rows}"
    )
    recipe = refused_recipe(tmp_path, rows)
    assert run_on_ranks(2, refusal, recipe) == [sentence, f"rank 0 stopped: {sentence}"]


def test_what_torchrec_cannot_manage_is_refused(tmp_path: Path) -> None:
    recipe = refused_recipe(tmp_path, 32, parallel={"sharding": "column_wise"})
    with joined_ranks() as ranks, pytest.raises(PlanError) as refused:
        train(recipe, ranks)
    assert str(refused.value) == (
        "no sharding plan for table hid, which is managed: expected parallel.sharding auto or row_wise, got column_wise"
    )
