"""Which table lives where: TorchRec's planner, with the recipe's wishes as constraints."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import distributed as dist
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config import ConfigError
from sidrec.config.tree import ParallelConfig
from sidrec.parallel.managed_table import MANAGED, managed_tables
from sidrec.parallel.process_group import Ranks, together


class PlanError(ConfigError):
    """No plan satisfies the recipe on these ranks."""


def make_plan(
    ranker: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    config: ParallelConfig,
    rows_per_rank: int,
    ranks: Ranks,
) -> ShardingPlan:
    """Rank 0 plans, all ranks get the plan.

    rows_per_rank: batch rows of one rank, for the planner's cost model. Raises PlanError.
    """
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks.world, compute_device=ranks.device.type),
        batch_size=rows_per_rank,
        constraints=together(ranks, lambda: _constraints(ranker, config, ranks)),
        debug=False,
    )
    plan = together(ranks, lambda: _plan(planner, ranker, sharders, config) if ranks.first else None)
    planned = [plan]
    if ranks.world > 1:
        dist.broadcast_object_list(planned, src=0, group=ranks.control)
    assert planned[0] is not None, "together raises where rank 0 found no plan"
    return planned[0]


def _plan(
    planner: EmbeddingShardingPlanner,
    ranker: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    config: ParallelConfig,
) -> ShardingPlan:
    try:
        return planner.plan(ranker, list(sharders))
    except (PlannerError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise PlanError(f"no sharding plan for parallel.sharding={config.sharding}: {reason}") from error


def _constraints(ranker: nn.Module, config: ParallelConfig, ranks: Ranks) -> dict[str, ParameterConstraints]:
    if config.sharding != "auto":
        allowed = [config.sharding]
    else:
        # On CPU the dense kernel of data_parallel is many times slower than the fused one; the planner does not know.
        unwanted = {ShardingType.DATA_PARALLEL.value} if ranks.device.type == "cpu" else set()
        allowed = [kind.value for kind in ShardingType if kind.value not in unwanted]
    every = {name: ParameterConstraints(sharding_types=allowed) for name in table_names(ranker)}
    return every | _managed_constraints(ranker, config, ranks.world)


def _managed_constraints(ranker: nn.Module, config: ParallelConfig, world: int) -> dict[str, ParameterConstraints]:
    """Raises PlanError for what TorchRec cannot do with a managed table."""
    constraints = {}
    for table in managed_tables(ranker):
        where, rows = f"no sharding plan for table {table.name}, which is managed", table.num_embeddings
        if config.sharding not in ("auto", "row_wise"):
            raise PlanError(f"{where}: expected parallel.sharding auto or row_wise, got {config.sharding}")
        if rows % world or rows < 2 * world:
            raise PlanError(f"{where}: expected rows that {world} rank(s) share evenly, two at least each, got {rows}")
        constraints[table.name] = MANAGED
    return constraints


def table_names(ranker: nn.Module) -> Iterator[str]:
    """Names of all tables of all collections in the model."""
    for module in ranker.modules():
        if isinstance(module, EmbeddingBagCollection):
            for table in module.embedding_bag_configs():
                yield table.name


def plan_as_json(plan: ShardingPlan) -> dict[str, dict[str, Any]]:
    """The plan as plain data: collection -> table -> sharding type, kernel, ranks and the shards' offsets and sizes."""
    readable: dict[str, dict[str, Any]] = {}
    for path, tables in plan.plan.items():
        assert isinstance(tables, EmbeddingModuleShardingPlan), "only embedding collections are sharded"
        readable[path] = {}
        for name, table in tables.items():
            shards = table.sharding_spec.shards if table.sharding_spec is not None else []
            readable[path][name] = {
                "sharding_type": table.sharding_type,
                "compute_kernel": table.compute_kernel,
                "ranks": table.ranks,
                "shards": [
                    {"offsets": s.shard_offsets, "sizes": s.shard_sizes, "placement": str(s.placement)} for s in shards
                ],
            }
    return readable
