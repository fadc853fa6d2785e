"""What is expected of a plan before it is measured: the bytes it takes, and what cost models say of its step.

Shapes: W ranks, K kinds of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from sidrec.bench.result import Prediction
from sidrec.plans.cost import Cost, CostModel, TorchRecCost
from sidrec.plans.hardware import Hardware
from sidrec.plans.memory import table_bytes
from sidrec.plans.options import options_of
from sidrec.plans.work import KINDS, placed_tables, plan_work
from sidrec.plans.workload import Workload


@dataclass(frozen=True)
class Rating:
    """bytes_W: tables and optimizer state on each rank, and dense gradients of replicated tables."""

    bytes_W: list[int]
    work: dict[str, list[float]]
    default: Prediction | None
    calibrated: Prediction | None


def rate(
    plan: ShardingPlan,
    workload: Workload,
    hardware: Hardware,
    sharders: Sequence[ModuleSharder[nn.Module]],
    calibrated: CostModel | None,
) -> Rating:
    """Rates a plan that was made for `workload` and `hardware`, by TorchRec's cost model and a calibrated one."""
    options = options_of(plan, workload, hardware, sharders)
    bytes_W = [0] * hardware.world
    for option in options:
        for shard, size in zip(option.shards, table_bytes(option, sharders), strict=True):
            assert shard.rank is not None, "the options are placed"
            bytes_W[shard.rank] += size.weights + size.state
    work_WK = plan_work(placed_tables(options), workload, hardware.world)
    work = dict(zip(KINDS, work_WK.T.tolist(), strict=True))
    models: list[CostModel | None] = [TorchRecCost(), calibrated]
    default, ours = (_prediction(model.rate(options, workload, hardware)) if model else None for model in models)
    return Rating(bytes_W, work, default, ours)


def _prediction(cost: Cost) -> Prediction:
    return Prediction(cost.step, cost.tables)
