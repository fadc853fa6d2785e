"""Places tables on ranks one by one, by the cost on each rank and the memory left there.

`fill` places all tables greedily; `move_tables` then improves the slowest rank. Both work on a `Placement`.

Shapes: W ranks, S shards of a table, H machines of L ranks, M some ranks, 2 kinds of memory (device, host).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torchrec.distributed.planner.types import PartitionByType, ShardingOption, Storage

from sidrec.plans.cost import CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import on_ranks
from sidrec.plans.workload import Workload

CHOICES = 2
"""Ways to place a layout that are compared: on these many machines, the least loaded first."""


@dataclass(frozen=True)
class RatedLayout:
    """One layout of one table, its ranks still open.

    everywhere: milliseconds that it costs every rank, wherever its shards are. own_S: milliseconds that each shard
    adds to its own rank. bytes_S2: memory of each shard.
    """

    option: ShardingOption
    everywhere: float
    own_S: np.ndarray
    bytes_S2: np.ndarray

    @property
    def table(self) -> str:
        """The table's name."""
        return str(self.option.name)


RatedLayouts = Mapping[str, Sequence[RatedLayout]]
"""Table -> its layouts."""


def rated_layout(option: ShardingOption, cost: CostModel, workload: Workload, hardware: Hardware) -> RatedLayout:
    """Rates the table alone, with its shards on the first ranks."""
    shards = len(option.shards)
    rank_S = np.arange(shards) % hardware.world
    cost_W = np.array(cost.rate([on_ranks(option, rank_S.tolist())], workload, hardware).tables[option.name])
    everywhere = float(cost_W[shards:].min()) if shards < hardware.world else 0.0
    own_S = ((cost_W - everywhere) / np.maximum(1, np.bincount(rank_S, minlength=hardware.world)))[rank_S]
    return RatedLayout(option, everywhere, own_S, shard_bytes(option))


def shard_bytes(option: ShardingOption) -> np.ndarray:
    """int64 [S, 2]: estimated bytes of each shard."""
    return np.array([(shard.storage.hbm, shard.storage.ddr) for shard in option.shards], dtype=np.int64)


@dataclass
class Placement:
    """Tables on ranks, changed in place. load_W: milliseconds of each rank; free_W2: bytes left on each rank."""

    local_world: int
    load_W: np.ndarray
    free_W2: np.ndarray
    tables: dict[str, tuple[RatedLayout, np.ndarray]] = field(default_factory=dict)
    """Table -> its layout and the rank of each shard [S]."""

    @classmethod
    def empty(cls, hardware: Hardware, memory: Storage) -> "Placement":
        """No tables yet. memory: bytes of each rank for tables."""
        free_W2 = np.tile(np.array([memory.hbm, memory.ddr], dtype=np.int64), (hardware.world, 1))
        return cls(hardware.local_world, np.zeros(hardware.world), free_W2)

    def feasible_ranks(self, layout: RatedLayout) -> list[np.ndarray]:
        """At most CHOICES ways [S] to place the layout within memory, the least loaded ranks first."""
        match layout.option.partition_by:
            case PartitionByType.UNIFORM.value:
                ways = [np.arange(len(self.load_W))]
            case PartitionByType.DEVICE.value:
                ways = self._least_loaded(layout, np.arange(len(self.load_W)))
            case PartitionByType.HOST.value if len(layout.own_S) == self.local_world:
                ways = list(self._machines())
            case PartitionByType.HOST.value:
                ways = [way for machine in self._machines() for way in self._least_loaded(layout, machine)]
            case _:
                machines = self._machines()
                blocks = len(layout.own_S) // self.local_world
                ways = [np.concatenate([machines[block % len(machines)] for block in range(blocks)])]
        return [way for way in ways if self._fits(layout, way)][:CHOICES]

    def missing_bytes(self, layout: RatedLayout, kind: int) -> int:
        """Bytes of one kind of memory that are missing for a layout without feasible ranks, at the least."""
        need_S, free_W = layout.bytes_S2[:, kind], self.free_W2[:, kind]
        uniform = layout.option.partition_by == PartitionByType.UNIFORM.value
        missing = (need_S - free_W).max() if uniform else need_S.max() - free_W.max()
        return max(1, int(missing))

    def load_with(self, layout: RatedLayout, rank_S: np.ndarray) -> np.ndarray:
        """[W] milliseconds of each rank if the layout were placed on `rank_S`."""
        load_W = self.load_W + layout.everywhere
        np.add.at(load_W, rank_S, layout.own_S)
        return load_W

    def copy(self) -> "Placement":
        """An independent copy."""
        return Placement(self.local_world, self.load_W.copy(), self.free_W2.copy(), dict(self.tables))

    def place(self, layout: RatedLayout, rank_S: np.ndarray) -> None:
        """Adds a table."""
        self.load_W = self.load_with(layout, rank_S)
        np.add.at(self.free_W2, rank_S, -layout.bytes_S2)
        self.tables[layout.table] = (layout, rank_S)

    def remove(self, table: str) -> tuple[RatedLayout, np.ndarray]:
        """Removes a table. Returns the arguments with which `place` puts it back."""
        layout, rank_S = self.tables.pop(table)
        self.load_W = self.load_W - layout.everywhere
        np.add.at(self.load_W, rank_S, -layout.own_S)
        np.add.at(self.free_W2, rank_S, layout.bytes_S2)
        return layout, rank_S

    def options(self, order: Sequence[str]) -> list[ShardingOption]:
        """The placed options, tables in `order`."""
        return [on_ranks(self.tables[name][0].option, self.tables[name][1].tolist()) for name in order]

    def _machines(self) -> list[np.ndarray]:
        """Ranks [L] of each machine, the least loaded machine first."""
        rank_HL = np.arange(len(self.load_W)).reshape(-1, self.local_world)
        return [rank_HL[host] for host in np.argsort(self.load_W[rank_HL].sum(axis=1), kind="stable")]

    def _least_loaded(self, layout: RatedLayout, rank_M: np.ndarray) -> list[np.ndarray]:
        """One way: each shard on the least loaded of the ranks that has memory for it; [] if a shard fits none."""
        load_M, free_M2 = self.load_W[rank_M], self.free_W2[rank_M]
        chosen = []
        for own, bytes_2 in zip(layout.own_S, layout.bytes_S2, strict=True):
            fits_M = (free_M2 >= bytes_2).all(axis=1)
            if not fits_M.any():
                return []
            at = int(np.where(fits_M, load_M, np.inf).argmin())
            load_M[at] += own
            free_M2[at] -= bytes_2
            chosen.append(rank_M[at])
        return [np.array(chosen)]

    def _fits(self, layout: RatedLayout, rank_S: np.ndarray) -> bool:
        need_W2 = np.zeros_like(self.free_W2)
        np.add.at(need_W2, rank_S, layout.bytes_S2)
        return bool((need_W2 <= self.free_W2).all())


EVENNESS = 4
"""`fill` minimises the sum of the ranks' loads to this power: the higher, the more only the slowest rank counts."""


def fill(layouts: RatedLayouts, placement: Placement) -> Placement | None:
    """Places the costliest table first, each so that the loads stay most even; None if a table does not fit."""
    if any(not found for found in layouts.values()):
        return None
    cheapest = {
        name: min(float(layout.own_S.sum()) + layout.everywhere * len(placement.load_W) for layout in found)
        for name, found in layouts.items()
    }
    for name in sorted(layouts, key=lambda table: -cheapest[table]):
        ways = [(layout, rank_S) for layout in layouts[name] for rank_S in placement.feasible_ranks(layout)]
        if not ways:
            return None
        scale = max(float(placement.load_W.max()), cheapest[name] / len(placement.load_W)) or 1.0
        placement.place(*min(ways, key=lambda way: float(((placement.load_with(*way) / scale) ** EVENNESS).sum())))
    return placement


def fill_evenly(layouts: RatedLayouts, placement: Placement) -> Placement | None:
    """Places tables by memory alone, evenly; None if they do not fit."""
    even = fill(by_bytes(layouts), placement.copy())
    if even is None:
        return None
    for chosen, rank_S in even.tables.values():
        rated = next(layout for layout in layouts[chosen.table] if layout.option is chosen.option)
        placement.place(rated, rank_S)
    return placement


def by_bytes(layouts: RatedLayouts) -> dict[str, list[RatedLayout]]:
    """The layouts that cost their bytes instead of their milliseconds."""
    return {
        name: [replace(layout, everywhere=0.0, own_S=layout.bytes_S2.sum(axis=1).astype(float)) for layout in found]
        for name, found in layouts.items()
    }


MOVES = 200
MOVABLE = 12
"""Tables of the slowest rank, the costliest ones, for which a move is sought."""


def move_tables(placement: Placement, layouts: RatedLayouts, moves: int = MOVES) -> None:
    """Moves tables of the slowest rank, or changes their layout, while that makes the slowest rank faster."""
    for _ in range(moves):
        slowest = int(placement.load_W.argmax())
        best, score = None, _slowness(placement.load_W)
        for name in _costliest(placement, slowest):
            old = placement.remove(name)
            for layout in layouts[name]:
                for rank_S in placement.feasible_ranks(layout):
                    new = _slowness(placement.load_with(layout, rank_S))
                    if new < score:
                        best, score = (layout, rank_S), new
            placement.place(*old)
        if best is None:
            return
        placement.remove(best[0].table)
        placement.place(*best)


def _costliest(placement: Placement, rank: int) -> list[str]:
    cost = {
        name: layout.everywhere + float(layout.own_S[rank_S == rank].sum())
        for name, (layout, rank_S) in placement.tables.items()
    }
    return sorted(cost, key=lambda name: -cost[name])[:MOVABLE]


def _slowness(load_W: np.ndarray) -> tuple[float, float]:
    """The slowest rank's load, then evenness as a tie-break. Rounded, so that rounding errors are no gain."""
    return round(float(load_W.max()), 9), round(float((load_W**2).sum()), 6)
