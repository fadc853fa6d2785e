"""The plans to measure: made from their names, rated by cost models, checked against the free memory.

Shapes: W ranks, K kinds of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_configs import PoolingType

from sidrec.bench.result import Prediction
from sidrec.bench.subject import Subject, meta_model
from sidrec.config import ConfigError
from sidrec.config.recipe import ParallelConfig, ShardingKind
from sidrec.errors import PlanError, RankError
from sidrec.machine import memory
from sidrec.parallel.planning import make_plan
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.sharding import sharders_of
from sidrec.plans.cost import KINDS, Cost, CostModel, TorchRecCost, placed_tables, plan_work
from sidrec.plans.hardware import GB, Hardware
from sidrec.plans.options import options_of, table_bytes
from sidrec.plans.workload import Workload, tables_of
from sidrec.text import did_you_mean

AUTO, TORCHREC = "auto", "torchrec"
TYPES: tuple[str, ...] = get_args(ShardingKind)
NAMES = (AUTO, TORCHREC, *TYPES)
PLAN_FILE = ".json"


@dataclass(frozen=True)
class CandidatePlan:
    """A plan and its name, or the message that says why it could not be made."""

    name: str
    plan: ShardingPlan | None
    failed: str | None


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError for an unknown name, or one given twice."""
    for name in names:
        if name not in NAMES and not name.endswith(PLAN_FILE):
            expected = f"expected {', '.join(NAMES)} or a plan file (*{PLAN_FILE}), got {name!r}"
            raise ConfigError(f"--plans: {expected}{did_you_mean(name, NAMES)}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        got = f"{twice} twice" if twice else "none"
        raise ConfigError(f"--plans: expected one or more plans, each once, got {got}")


def candidate_plans(
    subject: Subject, names: Sequence[str], workload: Workload, calibration: Path | None, ranks: Ranks
) -> list[CandidatePlan]:
    """A plan for every name, the same on all ranks.

    auto: the plan that training takes, with the calibration if there is one. torchrec: the plan that TorchRec's
    planner takes, which is auto's without a calibration. A sharding type: that type for every table. A file: its plan.
    A plan that cannot be made is a failed candidate. A file that does not fit the model or the ranks raises
    ConfigError on all ranks.
    """
    return [_candidate_plan(subject, name, workload, calibration, ranks) for name in names]


def _candidate_plan(
    subject: Subject, name: str, workload: Workload, calibration: Path | None, ranks: Ranks
) -> CandidatePlan:
    model = meta_model(subject)
    sharders = sharders_of(model, subject.optimizer, subject.seed)
    if name.endswith(PLAN_FILE):
        config = ParallelConfig(plan=Path(name))
        return CandidatePlan(name, make_plan(model, sharders, config, lambda: workload, ranks), None)
    if name == "grid_shard" and (mean_pooled := _mean_pooled(model)):
        wrong = f"grid_shard: TorchRec pools {mean_pooled} (mean) wrongly when it is grid-sharded"
        return CandidatePlan(name, None, wrong)
    try:
        if name in (AUTO, TORCHREC):
            config = ParallelConfig(calibration=calibration if name == AUTO else None)
        else:
            config = ParallelConfig(sharding=name)  # type: ignore[arg-type]  # the names were checked
        return CandidatePlan(name, make_plan(model, sharders, config, lambda: workload, ranks), None)
    except (PlanError, RankError) as error:
        return CandidatePlan(name, None, str(error))


def _mean_pooled(model: nn.Module) -> str:
    """Names of tables with mean pooling, separated by commas."""
    return ", ".join(name for name, table in tables_of(model).items() if table.pooling == PoolingType.MEAN)


# What is predicted before a plan is measured: its memory, its work, and its step by each cost model.


@dataclass(frozen=True)
class Rating:
    """Predictions for one plan.

    bytes_W: tables, optimizer state and dense gradients of replicated tables, on each rank.
    work: kind of work -> [W]. default, calibrated: by TorchRec's cost model and by the calibrated one.
    """

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
    """Rates a plan made for `workload` on `hardware`."""
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


FOR_ONE = 0.9
"""Share of the free memory that one plan's tables may use; batches and buffers need the rest."""
FOR_ALL = 0.5
"""The same for the tables of all plans together, if all models are kept between rounds."""


class FreeMemory:
    """Memory that is free on this rank's GPU, or on this machine, which its ranks share.

    free: bytes; None: measured now.
    """

    def __init__(self, hardware: Hardware, free: int | None = None) -> None:
        self._hardware = hardware
        self._on_gpu = hardware.device == "cuda"
        measured = torch.cuda.mem_get_info()[0] if self._on_gpu else memory()[0]
        self.free = measured if free is None else free

    def lacks(self, bytes_W: Sequence[int]) -> str | None:
        """Why tables of these sizes on the ranks do not fit; None if they fit."""
        needed, allowed = self._needed(bytes_W), FOR_ONE * self.free
        if needed <= allowed:
            return None
        where = "one GPU" if self._on_gpu else "one machine"
        return (
            f"expected tables and optimizer state of at most {allowed / GB:.1f} GB on {where} "
            f"({FOR_ONE:.0%} of what is free), got {needed / GB:.1f} GB"
        )

    def keeps(self, plans: Sequence[Sequence[int]]) -> bool:
        """Whether the models of all plans fit together. plans: for each, bytes on each rank."""
        return sum(map(self._needed, plans)) <= FOR_ALL * self.free

    def _needed(self, bytes_W: Sequence[int]) -> int:
        """Bytes on the fullest GPU or machine."""
        if self._on_gpu:
            return max(bytes_W)
        local = self._hardware.local_world
        return max(sum(bytes_W[first : first + local]) for first in range(0, len(bytes_W), local))
