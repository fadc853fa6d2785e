"""The search for a plan among TorchRec's and ours; one of ours is taken only if it is faster.

`search` enumerates the layouts of every table (options), rates them (cost), places tables for every set of sharding
types (placement), moves tables one by one in the best plans, and ranks what it found.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner, MemoryBalancedPartitioner, SortBy
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
from torchrec.distributed.types import ModuleSharder, ShardingType

from sidrec.errors import NoPlanError
from sidrec.plans.cost import REPLICATED, Cost, CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import (
    COLUMN_TYPES,
    FAST_KERNELS,
    NARROWEST_GPU_SHARD,
    SHARDING_TYPES,
    UVM_KERNELS,
    Sharders,
    enumerate_options,
    reservation,
    silenced_planner,
    table_constraint,
    table_memory,
)
from sidrec.plans.placement import Placement, RatedLayouts, fill, fill_evenly, move_tables, rated_layout
from sidrec.plans.shortfall import shortfall
from sidrec.plans.workload import Workload

DEFAULT = "default"
"""Name of the plan that TorchRec's planner would take."""
GRID = ShardingType.GRID_SHARD.value
ANY = "any types"
Progress = Callable[[str, int, int], None]
"""Progress callback: stage, steps done, steps in all."""
FIRST_PROGRESS, PROGRESS_INTERVAL = 3.0, 2.0
"""Seconds of search before the first progress line, and between the lines of one stage."""
T = TypeVar("T")
IMPROVED = 4
"""Number of plans, the best ones, whose tables are then moved one by one."""


@dataclass(frozen=True)
class Candidate:
    """A plan: one placed option for each table, in the workload's order.

    name: `default`; a partitioner of TorchRec; or the sharding types that tables could have, joined by +; with
    `, moved` if tables were then moved one by one. cut: TorchRec's search was stopped before its end.
    """

    name: str
    options: Sequence[ShardingOption]
    cost: Cost
    cut: bool = False


def search(
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    cost: CostModel,
    forced: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> list[Candidate]:
    """Distinct plans that fit: the one to take, then the others by predicted step; `default` is one if it fits.

    forced: the one sharding type that tables may have. On CPU no table is replicated unless that is forced or the cost
    model knows its cost: TorchRec's model does not know that the dense kernel is many times slower there. On GPUs,
    tables are kept in host memory (UVM) only if nothing else fits. Work is bounded by counts, not by time, so that
    equal inputs give equal plans. Raises NoPlanError, and ConfigError for an unknown type.
    """
    memory = table_memory(workload, hardware, sharders)
    options: Mapping[str, Sequence[ShardingOption]] = {}
    for kernels in (FAST_KERNELS,) if hardware.device == "cpu" else (FAST_KERNELS, FAST_KERNELS + UVM_KERNELS):
        progress("1 of 5, enumerating layouts", 0, 1)
        allowed = dict.fromkeys(workload.tables, offered_types(hardware, cost, forced))
        options = enumerate_options(workload, hardware, sharders, allowed, kernels)
        found = list(_torchrec_candidates(options, workload, hardware, sharders, cost, progress))
        layouts = {
            name: [rated_layout(option, cost, workload, hardware) for option in options[name]]
            for name in _with_progress(progress, "3 of 5, rating every layout of every table", list(options))
        }
        empty = Placement.empty(hardware, memory)
        placements = {plan.name: _placement_of(plan, layouts, empty) for plan in found}
        placements |= _filled(layouts, empty, progress)
        found += [
            _candidate(name, placement, workload, hardware, cost)
            for name, placement in placements.items()
            if name not in {plan.name for plan in found}
        ]
        fastest = sorted(placements.items(), key=lambda named: float(named[1].load_W.max()))[:IMPROVED]
        for name, placement in _with_progress(progress, "5 of 5, moving tables one by one", fastest):
            move_tables(placement, layouts)
            found.append(_candidate(f"{name}, moved", placement, workload, hardware, cost))
        if found:
            return _ranked(found, cost.margin(hardware.world))
    raise NoPlanError(shortfall(options, memory, workload, hardware, sharders))


def offered_types(hardware: Hardware, cost: CostModel, forced: str | None) -> tuple[str, ...]:
    """Sharding types that the search chooses from. One rank holds every table whole, so there is nothing to choose."""
    if forced is not None:
        return (forced,)
    if hardware.world == 1:
        return (ShardingType.TABLE_WISE.value,)
    replicates = hardware.device != "cpu" or cost.knows_replicas
    return tuple(kind for kind in SHARDING_TYPES if replicates or kind != REPLICATED)


def search_progress(started: float, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress callback: prints the stage of a long search, and the time that the stage still takes, on stderr."""
    stage_started = printed = started

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal stage_started, printed
        now = clock()
        stage_started = stage_started if done else now
        if now - started < FIRST_PROGRESS or (done and now - printed < PROGRESS_INTERVAL):
            return
        printed = now
        left = f", {done} of {total}, about {(now - stage_started) / done * (total - done):.0f} s more" if done else ""
        print(f"{now - started:.0f} s: {stage}{left}", file=sys.stderr, flush=True)

    return progress


def _with_progress(progress: Progress, stage: str, steps: Sequence[T]) -> Iterator[T]:
    """Yields the steps of a stage; calls `progress` before each."""
    for done, step in enumerate(steps):
        progress(stage, done, len(steps))
        yield step


def _torchrec_candidates(
    options: Mapping[str, Sequence[ShardingOption]],
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    cost: CostModel,
    progress: Progress,
) -> Iterable[Candidate]:
    """Plans that TorchRec's planner finds: its default, and with two partitioners and our cost model."""
    everything = [option for found in options.values() for option in found]
    forced = len({option.sharding_type for option in everything}) == 1
    offered = everything if forced else [option for option in everything if _torchrec_offers(option)]
    runs: list[tuple[str, Callable[[], tuple[list[ShardingOption] | None, bool]]]] = [
        (DEFAULT, lambda: torchrec_plan(offered, workload, hardware, sharders)),
        *(
            (name, partial(torchrec_plan, everything, workload, hardware, sharders, cost, partitioner, work))
            for name, partitioner, work in (
                ("largest first", GreedyPerfPartitioner(sort_by=SortBy.PERF), WORK // 4),
                ("memory balanced", MemoryBalancedPartitioner(), WORK // 40),  # it partitions ten times
            )
        ),
    ]
    order = list(workload.tables)
    for name, run in _with_progress(progress, "2 of 5, TorchRec's own search", runs):
        plan, cut = run()
        if plan is not None:
            in_order = sorted(plan, key=lambda option: order.index(option.name))
            yield Candidate(name, in_order, cost.rate(in_order, workload, hardware), cut)


def _torchrec_offers(option: ShardingOption) -> bool:
    """Constraints that offer grid sharding and shards under 128 columns, which TorchRec's planner needs named."""
    if option.sharding_type == GRID:
        return False
    narrow = option.sharding_type in COLUMN_TYPES and option.shards[0].size[1] < NARROWEST_GPU_SHARD
    return not (narrow and len(option.shards) > 1)


def _filled(layouts: RatedLayouts, empty: Placement, progress: Progress) -> dict[str, Placement]:
    """A placement for every set of sharding types under which the tables fit; if none fits, one by bytes alone."""
    placements = {}
    stage = "4 of 5, placing tables, by every set of sharding types"
    for types in _with_progress(progress, stage, _sets_of_types(layouts)):
        allowed = {
            name: [layout for layout in found if layout.option.sharding_type in types]
            for name, found in layouts.items()
        }
        placement = fill(allowed, empty.copy())
        if placement is not None:
            placements["+".join(types) if len(types) < 3 else ANY] = placement
    tightest = None if placements else fill_evenly(layouts, empty.copy())
    return {"fewest bytes": tightest} if tightest is not None else placements


def _sets_of_types(layouts: RatedLayouts) -> list[tuple[str, ...]]:
    """Each type, each pair, and all: plans of few types need fewer collectives."""
    present = {layout.option.sharding_type for found in layouts.values() for layout in found}
    types = [kind for kind in SHARDING_TYPES if kind in present]
    sets = [*combinations(types, 1), *combinations(types, 2)]
    return sets if len(types) < 3 else [*sets, tuple(types)]


def _placement_of(plan: Candidate, layouts: RatedLayouts, empty: Placement) -> Placement:
    placement = empty.copy()
    for option in plan.options:
        kind = (option.sharding_type, option.compute_kernel)
        layout = next(
            layout
            for layout in layouts[option.name]
            if (layout.option.sharding_type, layout.option.compute_kernel) == kind
        )
        placement.place(layout, np.array([shard.rank for shard in option.shards]))
    return placement


def _candidate(name: str, placement: Placement, workload: Workload, hardware: Hardware, cost: CostModel) -> Candidate:
    options = placement.options(list(workload.tables))
    return Candidate(name, options, cost.rate(options, workload, hardware))


def _ranked(found: Sequence[Candidate], margin: float) -> list[Candidate]:
    """Distinct plans, the fastest first; of equally fast ones TorchRec's own before ours.

    Among plans within `margin` (a share of the fastest step), which the cost model cannot tell apart, the one with the
    fewest collectives comes first of all: it mixes the fewest sharding types.
    """
    distinct: dict[tuple[object, ...], Candidate] = {}
    for candidate in found:
        layout = tuple(
            (option.sharding_type, option.compute_kernel, *(shard.rank for shard in option.shards))
            for option in candidate.options
        )
        distinct.setdefault(layout, candidate)
    fastest_first = sorted(distinct.values(), key=lambda candidate: candidate.cost.step)
    bound = fastest_first[0].cost.step * (1 + margin)
    tied = [candidate for candidate in fastest_first if candidate.cost.step <= bound]
    simplest = min(tied, key=_collectives)
    return [simplest, *(candidate for candidate in fastest_first if candidate is not simplest)]


def _collectives(candidate: Candidate) -> int:
    """One per collection and sharding type, and one for the ids of each collection that is not wholly replicated."""
    kinds = {(option.module[0], option.sharding_type) for option in candidate.options}
    return len(kinds) + len({collection for collection, kind in kinds if kind != REPLICATED})


# TorchRec's planner on options that were enumerated before, with a bound on its work.

WORK = 1_000_000
"""Proposals x tables x ranks allowed to each of TorchRec's proposers: some seconds."""


def torchrec_plan(
    options: Sequence[ShardingOption],
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    cost: CostModel | None = None,
    partitioner: Partitioner | None = None,
    work: int = WORK,
) -> tuple[list[ShardingOption] | None, bool]:
    """The plan that TorchRec's planner finds among `options`, as placed options, or None; and whether it was cut off.

    cost: what it minimises; None: its own model and its four default proposers, one of which tries all plans if they
    are at most 10,000.
    """
    bound = max(1, work // (len(workload.tables) * hardware.world))
    quick = [GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()]
    proposers = [_BoundedProposer(proposer, bound) for proposer in (quick if cost else [GridSearchProposer(), *quick])]
    best = _BestPlan()
    with silenced_planner():
        planner = EmbeddingShardingPlanner(
            topology=hardware.topology(),
            batch_size=workload.rows_per_rank,
            enumerator=_ListedOptions(options),
            storage_reservation=reservation(),
            proposer=list(proposers),
            partitioner=partitioner,
            performance_model=_CostModelAdapter(cost, workload, hardware) if cost else None,
            stats=best,
            constraints={name: table_constraint(workload, hardware, name) for name in workload.tables},
            debug=False,
        )
        try:
            planner.plan(workload.model, list(sharders))
        except PlannerError:
            return None, any(proposer.cut for proposer in proposers)
    return best.options, any(proposer.cut for proposer in proposers)


class _ListedOptions(Enumerator):
    """Returns options that exist already."""

    def __init__(self, options: Sequence[ShardingOption]) -> None:
        self._options = list(options)

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> list[ShardingOption]:
        return self._options

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """No-op: the options have estimates."""


class _BoundedProposer(Proposer):
    """Ends a proposer after some proposals. cut: it had more."""

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


class _BestPlan(Stats):
    """Keeps the best plan instead of printing it."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *arguments: Any, best_plan: list[ShardingOption], **named: Any) -> None:
        self.options = best_plan


class _CostModelAdapter(PerfModel):
    """Adapts a CostModel to TorchRec's planner."""

    def __init__(self, cost: CostModel, workload: Workload, hardware: Hardware) -> None:
        self._cost, self._workload, self._hardware = cost, workload, hardware

    def rate(self, plan: list[ShardingOption]) -> float:
        return self._cost.rate(plan, self._workload, self._hardware).step
