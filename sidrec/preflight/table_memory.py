"""What a plan puts on each rank, in bytes: tables and their optimizer's state, and what of them a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.mc_modules import ManagedCollisionModule

from sidrec.config.tree import DenseOptimizer
from sidrec.plans.hardware import Hardware
from sidrec.plans.memory import STATE_BYTES, in_host_memory, table_bytes
from sidrec.plans.options import options_of
from sidrec.plans.work import REPLICATED
from sidrec.plans.workload import Workload

DENSE_STATES = {"adam": 2, "adamw": 2, "adagrad": 1}
"""Values that torch's optimizer keeps for each parameter."""


@dataclass
class RankTables:
    """Bytes of one rank. host, device: tables, their state and, of replicated ones, their gradient; by where they lie.

    saved: what this rank writes into a checkpoint of its tables: each replicated one is written by rank 0 alone.
    """

    host: int = 0
    device: int = 0
    saved: int = 0


def rank_tables(
    plan: ShardingPlan, workload: Workload, hardware: Hardware, sharders: Sequence[ModuleSharder[nn.Module]]
) -> list[RankTables]:
    """One entry for each rank. Raises ConfigError for a table that the plan lacks."""
    ranks = [RankTables() for _ in range(hardware.world)]
    for option in options_of(plan, workload, hardware, sharders):
        replicated = option.sharding_type == REPLICATED
        on_host = in_host_memory(option, hardware.device)
        for shard, size in zip(option.shards, table_bytes(option, sharders), strict=True):
            assert shard.rank is not None, "the shards of a plan are placed"
            rank = ranks[shard.rank]
            if on_host:
                rank.host += size.weights + size.state
            else:
                rank.device += size.weights + size.state
            if not replicated:
                rank.saved += size.weights + size.state
            elif shard.rank == 0:
                rank.saved += size.state  # of which one part is the gradient: as many bytes as the weights
    for rank in ranks:
        slots = slot_bytes(workload.model) // hardware.world
        rank.saved += slots
        if hardware.device == "cpu":
            rank.host += slots
        else:
            rank.device += slots
    return ranks


def slot_bytes(model: nn.Module) -> int:
    """Of the slots of managed tables, over all ranks."""
    managed = [module for module in model.modules() if isinstance(module, ManagedCollisionModule)]
    return sum(buffer.nbytes for module in managed for buffer in module.buffers())


def dense_bytes(parameters: int, optimizer: DenseOptimizer, *, saved: bool = False) -> int:
    """Of what is not a table, on every rank: parameters and the optimizer's state, and gradients unless it is saved."""
    return parameters * STATE_BYTES * (1 + DENSE_STATES[optimizer.kind] + (not saved))
