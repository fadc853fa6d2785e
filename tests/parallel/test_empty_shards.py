"""Tables with fewer rows than ranks learn what they learn on one rank, whatever lies beside them.

Shapes: B rows of a batch, N rows of a table, D its width.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.recipe import AdagradTables, OptimizerConfig, RowwiseAdagradTables, SgdTables, TableOptimizer
from sidrec.parallel.sharding import shard, sharders_of
from tests.ranks import joined, run_on_ranks

ROWS_AND_WIDTHS = {
    "first": {"one": (1, 8), "many": (40, 16)},
    "last": {"many": (40, 16), "one": (1, 8)},
    "between": {"many": (40, 16), "one": (1, 8), "two": (2, 8), "more": (30, 24)},
    "alone": {"one": (1, 8)},
}
"""Tables that are looked up together; on two ranks the second has no row of `one`."""
BATCHES, BATCH = 4, 16


class Bags(nn.Module):
    """Tables, and a layer on what their bags hold."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=rows, embedding_dim=width)
            for name, (rows, width) in sizes.items()
        ]
        self.bags = EmbeddingBagCollection(device=torch.device("meta"), tables=tables)
        self.layer = nn.Linear(sum(width for _, width in sizes.values()), 1)

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        return self.layer(self.bags(ids).values()).square().mean()


def batch(sizes: dict[str, tuple[int, int]], seed: int, rank: int, world: int) -> KeyedJaggedTensor:
    """This rank's rows of a batch, two ids each."""
    generator = np.random.default_rng(seed)
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    ids = [generator.integers(0, rows, (BATCH, 2))[share].ravel() for rows, _ in sizes.values()]
    lengths = torch.full((len(sizes) * BATCH // world,), 2)
    return KeyedJaggedTensor(keys=list(sizes), values=torch.from_numpy(np.concatenate(ids)), lengths=lengths)


def trained(
    rank: int, world: int, optimizer: TableOptimizer, groups: dict[str, dict[str, tuple[int, int]]]
) -> dict[str, Tensor]:
    """This rank's rows of each table, after training."""
    ranks, config, found = joined(rank, world), OptimizerConfig(tables=optimizer), {}
    for group, sizes in groups.items():
        torch.manual_seed(0)
        model = Bags(sizes)
        by_rows = ParameterConstraints(sharding_types=["row_wise"])
        planner = EmbeddingShardingPlanner(
            topology=Topology(world, "cpu", local_world_size=world), constraints=dict.fromkeys(sizes, by_rows)
        )
        sharders = sharders_of(model, config, seed=0)
        sharded = shard(model, planner.plan(model, sharders), sharders, 0, ranks)
        for step in range(BATCHES):
            sharded(batch(sizes, step, rank, world)).backward()
        for name, value in sharded.state_dict().items():
            if name.startswith("bags."):
                (local,) = value.local_shards()
                found[f"{group}/{name}"] = local.tensor.clone()
    return found


@pytest.mark.parametrize("optimizer", [AdagradTables(), RowwiseAdagradTables(), SgdTables()], ids=lambda o: o.kind)
def test_two_ranks_learn_the_same_as_one(optimizer: TableOptimizer) -> None:
    alone = run_on_ranks(1, trained, optimizer, ROWS_AND_WIDTHS)[0]
    first, second = run_on_ranks(2, trained, optimizer, ROWS_AND_WIDTHS)
    assert len(second["last/bags.embedding_bags.one.weight"]) == 0, "the case this test is for"
    for name, values_ND in alone.items():
        torch.testing.assert_close(torch.cat([first[name], second[name]]), values_ND, rtol=0, atol=1e-6)
