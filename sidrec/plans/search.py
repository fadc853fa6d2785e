"""The search for a plan: TorchRec's own, and plans of ours that must beat it to be taken."""

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
from sidrec.plans.cost import Cost, CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import (
    FAST_KERNELS,
    NARROWEST_GPU_SHARD,
    SPLIT,
    TYPES,
    UVM_KERNELS,
    Sharders,
    enumerate_options,
    quiet,
    reservation,
    table_constraint,
    table_room,
)
from sidrec.plans.placement import Board, Pieces, fill, fill_evenly, move_tables, piece
from sidrec.plans.shortfall import shortfall
from sidrec.plans.workload import Workload

DEFAULT = "default"
"""Name of the plan that TorchRec's planner would take."""
REPLICATED, GRID = ShardingType.DATA_PARALLEL.value, ShardingType.GRID_SHARD.value
ANY = "any types"
Report = Callable[[str, int, int], None]
"""Is told a part of the search, and how many of its steps are done."""
T = TypeVar("T")
IMPROVED = 4
"""Plans, the best ones, whose tables are then moved one by one."""


@dataclass(frozen=True)
class Candidate:
    """A plan: its placed options, one for each table, in the order of the workload's.

    name: `default`; TorchRec's partitioner; or the sharding types that tables could have, joined by +, with `, moved`
    where tables were then moved one by one. cut: TorchRec's search was stopped before its end.
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
    report: Report = lambda stage, done, of: None,
) -> list[Candidate]:
    """Plans that fit, the one to take and then the fastest first by `cost`, without repeats; `default` among them
    where it fits.

    forced: the one sharding type that tables may have. On CPU none is replicated unless that is forced or the cost
    model knows what it costs: the dense kernel is many times slower there, which TorchRec's does not know. GPUs hold
    tables in the host's memory (UVM) only where nothing else fits. report: is told what happens next, and how much of
    that part is done. Work is bounded by counts, not by time, so that the same question has the same answer. Raises
    NoPlanError, ConfigError for an unknown type.
    """
    room = table_room(workload, hardware, sharders)
    options: Mapping[str, Sequence[ShardingOption]] = {}
    for kernels in (FAST_KERNELS,) if hardware.device == "cpu" else (FAST_KERNELS, FAST_KERNELS + UVM_KERNELS):
        report("1 of 5, enumerating layouts", 0, 1)
        allowed = dict.fromkeys(workload.tables, offered_types(hardware, cost, forced))
        options = enumerate_options(workload, hardware, sharders, allowed, kernels)
        found = list(_torchrecs(options, workload, hardware, sharders, cost, report))
        pieces = {
            name: [piece(option, cost, workload, hardware) for option in options[name]]
            for name in _told(report, "3 of 5, rating every layout of every table", list(options))
        }
        empty = Board.empty(hardware, room)
        boards = {**{plan.name: _board(plan, pieces, empty) for plan in found}, **_filled(pieces, empty, report)}
        found += [
            _candidate(name, board, workload, hardware, cost)
            for name, board in boards.items()
            if name not in {plan.name for plan in found}
        ]
        fastest = sorted(boards.items(), key=lambda named: float(named[1].load_W.max()))[:IMPROVED]
        for name, board in _told(report, "5 of 5, moving tables one by one", fastest):
            move_tables(board, pieces)
            found.append(_candidate(f"{name}, moved", board, workload, hardware, cost))
        if found:
            return _ranked(found, cost.margin(hardware.world))
    raise NoPlanError(shortfall(options, room, workload, hardware, sharders))


def _told(report: Report, stage: str, steps: Sequence[T]) -> Iterator[T]:
    """The steps of a part of the search, each told before it is taken."""
    for done, step in enumerate(steps):
        report(stage, done, len(steps))
        yield step


def offered_types(hardware: Hardware, cost: CostModel, forced: str | None) -> tuple[str, ...]:
    """Sharding types to choose from."""
    if forced is not None:
        return (forced,)
    replicates = hardware.device != "cpu" or cost.knows_replicas
    return tuple(kind for kind in TYPES if replicates or kind != REPLICATED)


def _torchrecs(
    options: Mapping[str, Sequence[ShardingOption]],
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    cost: CostModel,
    report: Report,
) -> Iterable[Candidate]:
    everything = [option for found in options.values() for option in found]
    forced = len({option.sharding_type for option in everything}) == 1
    its_own = everything if forced else [option for option in everything if _torchrec_offers(option)]
    runs: list[tuple[str, Callable[[], tuple[list[ShardingOption] | None, bool]]]] = [
        (DEFAULT, lambda: torchrec_plan(its_own, workload, hardware, sharders)),
        *(
            (name, partial(torchrec_plan, everything, workload, hardware, sharders, cost, partitioner, work))
            for name, partitioner, work in (
                ("largest first", GreedyPerfPartitioner(sort_by=SortBy.PERF), WORK // 4),
                ("memory balanced", MemoryBalancedPartitioner(), WORK // 40),  # partitions ten times
            )
        ),
    ]
    order = list(workload.tables)
    for name, run in _told(report, "2 of 5, TorchRec's own search", runs):
        plan, cut = run()
        if plan is not None:
            in_order = sorted(plan, key=lambda option: order.index(option.name))
            yield Candidate(name, in_order, cost.rate(in_order, workload, hardware), cut)


def _torchrec_offers(option: ShardingOption) -> bool:
    """TorchRec's planner takes grid sharding, and shards of fewer than 128 columns, only where it is told to."""
    if option.sharding_type == GRID:
        return False
    narrow = option.sharding_type in SPLIT and option.shards[0].size[1] < NARROWEST_GPU_SHARD
    return not (narrow and len(option.shards) > 1)


def _filled(pieces: Pieces, empty: Board, report: Report) -> dict[str, Board]:
    """Ranks filled with tables of every set of types that fits them; where none does, by bytes alone."""
    boards = {}
    for types in _told(report, "4 of 5, placing tables, by every set of sharding types", _sets_of_types(pieces)):
        some = {name: [each for each in found if each.option.sharding_type in types] for name, found in pieces.items()}
        board = fill(some, empty.copy())
        if board is not None:
            boards["+".join(types) if len(types) < 3 else ANY] = board
    tightest = None if boards else fill_evenly(pieces, empty.copy())
    return {"fewest bytes": tightest} if tightest is not None else boards


def _board(plan: Candidate, pieces: Pieces, empty: Board) -> Board:
    """Ranks filled as a plan fills them."""
    board = empty.copy()
    for option in plan.options:
        way = (option.sharding_type, option.compute_kernel)
        same = (each for each in pieces[option.name] if (each.option.sharding_type, each.option.compute_kernel) == way)
        board.put(next(same), np.array([shard.rank for shard in option.shards]))
    return board


def _sets_of_types(pieces: Pieces) -> list[tuple[str, ...]]:
    """Each type, each pair, and all: plans of few types need fewer rounds of collectives."""
    present = {each.option.sharding_type for found in pieces.values() for each in found}
    types = [kind for kind in TYPES if kind in present]
    sets = [*combinations(types, 1), *combinations(types, 2)]
    return sets if len(types) < 3 else [*sets, tuple(types)]


def _candidate(name: str, board: Board, workload: Workload, hardware: Hardware, cost: CostModel) -> Candidate:
    options = board.options(list(workload.tables))
    return Candidate(name, options, cost.rate(options, workload, hardware))


def _ranked(found: Sequence[Candidate], margin: float) -> list[Candidate]:
    """The fastest first; of equal plans the first, and of plans equally fast TorchRec's own before ours.

    Before it comes, of the plans that are slower by less than the share `margin`, one of fewer rounds of collectives:
    a difference that the cost model cannot tell is no reason to mix sharding types.
    """
    kept: dict[tuple[object, ...], Candidate] = {}
    for candidate in found:
        layout = tuple(
            (option.sharding_type, option.compute_kernel, *(shard.rank for shard in option.shards))
            for option in candidate.options
        )
        kept.setdefault(layout, candidate)
    fastest_first = sorted(kept.values(), key=lambda candidate: candidate.cost.step)
    bound = fastest_first[0].cost.step * (1 + margin)
    alike = [candidate for candidate in fastest_first if candidate.cost.step <= bound]
    simplest = min(alike, key=_rounds)
    return [simplest, *(candidate for candidate in fastest_first if candidate is not simplest)]


def _rounds(candidate: Candidate) -> int:
    """Rounds of collectives: one per collection and sharding type, and one for the ids of a collection whose tables
    are not all replicated."""
    kinds = {(option.module[0], option.sharding_type) for option in candidate.options}
    return len(kinds) + len({collection for collection, kind in kinds if kind != REPLICATED})


# TorchRec's planner on options that are there already, with a bound on its work.


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
