"""The plans to measure, from the names they are asked for by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from torch import nn
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import PoolingType

from sidrec.bench.subject import Subject, on_meta
from sidrec.config import ConfigError
from sidrec.config.tree import ParallelConfig, ShardingKind
from sidrec.parallel.plan import PlanError, make_plan
from sidrec.parallel.process_group import RankError, Ranks
from sidrec.parallel.shard import sharders_of
from sidrec.plans.capacity import NoPlanError
from sidrec.plans.workload import Workload, tables_of

AUTO, TORCHRECS = "auto", "torchrec"
TYPES: tuple[str, ...] = get_args(ShardingKind)
PLAN_FILE = ".json"


@dataclass(frozen=True)
class Contender:
    """A plan by its name, or the sentence that says why there is none."""

    name: str
    plan: ShardingPlan | None
    failed: str | None


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError for a name that no plan has, or one given twice."""
    for name in names:
        if name not in (AUTO, TORCHRECS, *TYPES) and not name.endswith(PLAN_FILE):
            known = ", ".join((AUTO, TORCHRECS, *TYPES))
            raise ConfigError(f"--plans: expected {known} or a plan file (*{PLAN_FILE}), got {name!r}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        got = f"{twice} twice" if twice else "none"
        raise ConfigError(f"--plans: expected one or more plans, each once, got {got}")


def contenders(
    subject: Subject, names: Sequence[str], workload: Workload, calibration: Path | None, ranks: Ranks
) -> list[Contender]:
    """A plan for every name, the same on all ranks.

    auto: what training takes, with the calibration if there is one. torchrec: what its planner takes, which is auto's
    without a calibration. A sharding type: that one for every table. A file: the plan that it holds.
    A plan that cannot be made is a contender that has failed; a file that does not fit the model or the ranks is a
    mistake, and raises ConfigError on all ranks together.
    """
    return [_contender(subject, name, workload, calibration, ranks) for name in names]


def _contender(subject: Subject, name: str, workload: Workload, calibration: Path | None, ranks: Ranks) -> Contender:
    model = on_meta(subject)
    sharders = sharders_of(model, subject.optimizer, subject.seed)
    if name.endswith(PLAN_FILE):
        config = ParallelConfig(plan=Path(name))
        return Contender(name, make_plan(model, sharders, config, lambda: workload, ranks), None)
    if name == "grid_shard" and _means(model):
        return Contender(
            name, None, f"grid_shard: TorchRec pools {_means(model)} (mean) wrongly when it is grid-sharded"
        )
    try:
        if name in (AUTO, TORCHRECS):
            config = ParallelConfig(calibration=calibration if name == AUTO else None)
        else:
            config = ParallelConfig(sharding=name)  # type: ignore[arg-type]  # the names were checked
        return Contender(name, make_plan(model, sharders, config, lambda: workload, ranks), None)
    except (PlanError, NoPlanError, RankError) as error:
        return Contender(name, None, str(error))


def _means(model: nn.Module) -> str:
    """Tables that are pooled by their mean."""
    return ", ".join(name for name, table in tables_of(model).items() if table.pooling == PoolingType.MEAN)
