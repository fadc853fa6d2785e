"""TorchRec's planner on options that are there already, with a bound on its work."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.types import (
    Enumerator,
    Partitioner,
    PerfModel,
    PlannerError,
    Proposer,
    ShardingOption,
    Stats,
)
from torchrec.distributed.types import ModuleSharder

from sidrec.plans.capacity import reservation
from sidrec.plans.cost import CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import Sharders, quiet, table_constraint
from sidrec.plans.workload import Workload

WORK = 1_000_000
"""Proposals x tables x ranks that each of TorchRec's proposers may take: some seconds."""


class _Listed(Enumerator):
    """Options that were enumerated before."""

    def __init__(self, options: Sequence[ShardingOption]) -> None:
        self._options = list(options)

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> list[ShardingOption]:
        return self._options

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """They have theirs."""


class _Bounded(Proposer):
    """A proposer that ends after some proposals. cut: it would have had more."""

    def __init__(self, proposer: Proposer, proposals: int) -> None:
        self._proposer, self._left = proposer, proposals
        self.cut = False

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        self._proposer.load(search_space, enumerator)

    def propose(self) -> list[ShardingOption] | None:
        proposal = self._proposer.propose()
        if proposal and self._left <= 0:
            self.cut = True
            return None
        self._left -= 1
        return proposal

    def feedback(self, *arguments: Any, **named: Any) -> None:
        self._proposer.feedback(*arguments, **named)


class _Best(Stats):
    """Keeps the best plan in the place of printing a table of it."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *arguments: Any, best_plan: list[ShardingOption], **named: Any) -> None:
        self.options = best_plan


class _Rated(PerfModel):
    """A cost model of ours, as TorchRec's planner asks for one."""

    def __init__(self, cost: CostModel, workload: Workload, hardware: Hardware) -> None:
        self._cost, self._workload, self._hardware = cost, workload, hardware

    def rate(self, plan: list[ShardingOption]) -> float:
        return self._cost.rate(plan, self._workload, self._hardware).step


def torchrec_plan(
    options: Sequence[ShardingOption],
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    cost: CostModel | None = None,
    partitioner: Partitioner | None = None,
    work: int = WORK,
) -> tuple[list[ShardingOption] | None, bool]:
    """The plan that TorchRec's planner finds among `options`.

    cost: what it minimises; where none is given, its own model, with its four default proposers, one of which goes
    through all plans where they are at most 10,000. Returns the placed options, or None where it finds
    none that fits; and whether its search was cut off.
    """
    bound = max(1, work // (len(workload.tables) * hardware.world))
    quick = [GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()]
    proposers = [_Bounded(proposer, bound) for proposer in (quick if cost else [GridSearchProposer(), *quick])]
    best = _Best()
    with quiet():
        planner = EmbeddingShardingPlanner(
            topology=hardware.topology(),
            batch_size=workload.rows_per_rank,
            enumerator=_Listed(options),
            storage_reservation=reservation(),
            proposer=list(proposers),
            partitioner=partitioner,
            performance_model=_Rated(cost, workload, hardware) if cost else None,
            stats=best,
            constraints={name: table_constraint(workload, hardware, name) for name in workload.tables},
            debug=False,
        )
        try:
            planner.plan(workload.model, list(sharders))
        except PlannerError:
            return None, any(proposer.cut for proposer in proposers)
    return best.options, any(proposer.cut for proposer in proposers)
