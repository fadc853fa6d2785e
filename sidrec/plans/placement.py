"""Tables put on ranks one by one, by what each costs whom and what still fits.

Shapes: W ranks, S shards of a table, 2 kinds of memory (the device's, the host's).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torchrec.distributed.planner.types import PartitionByType, ShardingOption, Storage

from sidrec.plans.cost import CostModel
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import placed
from sidrec.plans.workload import Workload

HOSTS_TRIED = 2
"""Machines, the least loaded first, that a table of one machine is tried on where it fits."""


@dataclass(frozen=True)
class Piece:
    """A table laid out one way, ranks still open.

    everywhere: milliseconds that it costs every rank, wherever it lies. own_S: what each shard costs the rank that
    holds it beyond that. bytes_S2: what each shard takes.
    """

    option: ShardingOption
    everywhere: float
    own_S: np.ndarray
    bytes_S2: np.ndarray


def piece(option: ShardingOption, cost: CostModel, workload: Workload, hardware: Hardware) -> Piece:
    """Asks `cost` about the table alone, its shards on the first ranks."""
    shards = len(option.shards)
    rank_S = np.arange(shards) % hardware.world
    cost_W = np.array(cost.rate([placed(option, rank_S.tolist())], workload, hardware).tables[option.name])
    everywhere = float(cost_W[shards:].min()) if shards < hardware.world else 0.0
    own_S = ((cost_W - everywhere) / np.maximum(1, np.bincount(rank_S, minlength=hardware.world)))[rank_S]
    bytes_S2 = np.array([(shard.storage.hbm, shard.storage.ddr) for shard in option.shards], dtype=np.int64)
    return Piece(option, everywhere, own_S, bytes_S2)


@dataclass
class Board:
    """Ranks while they are filled. load_W: milliseconds of each rank; free_W2: bytes that are left."""

    local_world: int
    load_W: np.ndarray
    free_W2: np.ndarray
    placed: dict[str, tuple[Piece, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def empty(cls, hardware: Hardware, room: Storage) -> "Board":
        """A board of `hardware`, each rank of which has `room` for tables."""
        free_W2 = np.tile(np.array([room.hbm, room.ddr], dtype=np.int64), (hardware.world, 1))
        return cls(hardware.local_world, np.zeros(hardware.world), free_W2)

    def ranks_for(self, new: Piece) -> list[np.ndarray]:
        """Where a table may go: some ways that fit, the least loaded ranks first; none where nothing fits."""
        match new.option.partition_by:
            case PartitionByType.UNIFORM.value:
                ways = [np.arange(len(self.load_W))]
            case PartitionByType.DEVICE.value:
                ways = self._least_loaded(new, np.arange(len(self.load_W)))
            case PartitionByType.HOST.value if len(new.own_S) == self.local_world:
                ways = list(self._machines())
            case PartitionByType.HOST.value:
                ways = [way for machine in self._machines() for way in self._least_loaded(new, machine)]
            case _:
                machines = self._machines()
                blocks = len(new.own_S) // self.local_world
                ways = [np.concatenate([machines[block % len(machines)] for block in range(blocks)])]
        return [way for way in ways if self._fits(new, way)][:HOSTS_TRIED]

    def lacking(self, new: Piece, kind: int) -> int:
        """Bytes of one kind of memory that a table which fits nowhere is short of where it is short of the fewest."""
        need_S, free_W = new.bytes_S2[:, kind], self.free_W2[:, kind]
        everywhere = new.option.partition_by == PartitionByType.UNIFORM.value
        short = (need_S - free_W).max() if everywhere else need_S.max() - free_W.max()
        return max(1, int(short))

    def load_with(self, new: Piece, rank_S: np.ndarray) -> np.ndarray:
        """Milliseconds of each rank [W] if the table lay there."""
        load_W = self.load_W + new.everywhere
        np.add.at(load_W, rank_S, new.own_S)
        return load_W

    def copy(self) -> "Board":
        """An equal one to go on with."""
        return Board(self.local_world, self.load_W.copy(), self.free_W2.copy(), dict(self.placed))

    def put(self, new: Piece, rank_S: np.ndarray) -> None:
        self.load_W = self.load_with(new, rank_S)
        np.add.at(self.free_W2, rank_S, -new.bytes_S2)
        self.placed[new.option.name] = (new, rank_S)

    def take(self, table: str) -> tuple[Piece, np.ndarray]:
        """Takes a table off, and returns what `put` would put back."""
        old, rank_S = self.placed.pop(table)
        self.load_W = self.load_W - old.everywhere
        np.add.at(self.load_W, rank_S, -old.own_S)
        np.add.at(self.free_W2, rank_S, old.bytes_S2)
        return old, rank_S

    def options(self, order: Sequence[str]) -> list[ShardingOption]:
        """The placed options, tables in `order`."""
        return [placed(self.placed[name][0].option, self.placed[name][1].tolist()) for name in order]

    def _machines(self) -> list[np.ndarray]:
        """Ranks of each machine, the least loaded machine first."""
        rank_HL = np.arange(len(self.load_W)).reshape(-1, self.local_world)
        return [rank_HL[host] for host in np.argsort(self.load_W[rank_HL].sum(axis=1), kind="stable")]

    def _least_loaded(self, new: Piece, among: np.ndarray) -> list[np.ndarray]:
        """Each shard on the least loaded of some ranks that has room for it; [] where one has none."""
        load_R, free_R2 = self.load_W[among], self.free_W2[among]
        chosen = []
        for own, size_2 in zip(new.own_S, new.bytes_S2, strict=True):
            fits_R = (free_R2 >= size_2).all(axis=1)
            if not fits_R.any():
                return []
            at = int(np.where(fits_R, load_R, np.inf).argmin())
            load_R[at] += own
            free_R2[at] -= size_2
            chosen.append(among[at])
        return [np.array(chosen)]

    def _fits(self, new: Piece, rank_S: np.ndarray) -> bool:
        need_W2 = np.zeros_like(self.free_W2)
        np.add.at(need_W2, rank_S, new.bytes_S2)
        return bool((need_W2 <= self.free_W2).all())


# Ranks filled with tables, and made more even: cheap searches over a Board.
#
# Shapes: W ranks, S shards of a table.


EVENNESS = 4
"""Power of the ranks' loads whose sum a table is put down by: the higher, the more only the slowest rank counts."""
MOVES = 200
MOVABLE = 12
"""Tables of the slowest rank, the costliest ones, that a move is sought for."""
Pieces = Mapping[str, Sequence[Piece]]


def fill(pieces: Pieces, board: Board) -> Board | None:
    """Puts down the costliest table first, each where the ranks' loads stay most even; None where one does not fit."""
    if any(not found for found in pieces.values()):
        return None
    cheapest = {
        name: min(float(each.own_S.sum()) + each.everywhere * len(board.load_W) for each in found)
        for name, found in pieces.items()
    }
    for name in sorted(pieces, key=lambda table: -cheapest[table]):
        ways = [(each, rank_S) for each in pieces[name] for rank_S in board.ranks_for(each)]
        if not ways:
            return None
        scale = max(float(board.load_W.max()), cheapest[name] / len(board.load_W)) or 1.0
        board.put(*min(ways, key=lambda way: float(((board.load_with(*way) / scale) ** EVENNESS).sum())))
    return board


def move_tables(board: Board, pieces: Pieces, moves: int = MOVES) -> None:
    """Moves tables of the slowest rank elsewhere, or lays them out otherwise, as long as the slowest rank gains."""
    for _ in range(moves):
        slowest = int(board.load_W.argmax())
        best, score = None, _slowness(board.load_W)
        for name in _costliest(board, slowest):
            old = board.take(name)
            for each in pieces[name]:
                for rank_S in board.ranks_for(each):
                    new = _slowness(board.load_with(each, rank_S))
                    if new < score:
                        best, score = (each, rank_S), new
            board.put(*old)
        if best is None:
            return
        board.take(best[0].option.name)
        board.put(*best)


def _costliest(board: Board, rank: int) -> list[str]:
    here = {
        name: each.everywhere + float(each.own_S[rank_S == rank].sum()) for name, (each, rank_S) in board.placed.items()
    }
    return sorted(here, key=lambda name: -here[name])[:MOVABLE]


def _slowness(load_W: np.ndarray) -> tuple[float, float]:
    """The slowest rank, and what tells plans apart that are as slow. Rounded: no move gains a rounding error."""
    return round(float(load_W.max()), 9), round(float((load_W**2).sum()), 6)


def by_bytes(pieces: Pieces) -> dict[str, list[Piece]]:
    """The same pieces, costing what they take in the place of what they last."""
    return {
        name: [replace(each, everywhere=0.0, own_S=each.bytes_S2.sum(axis=1).astype(float)) for each in found]
        for name, found in pieces.items()
    }


def fill_evenly(pieces: Pieces, board: Board) -> Board | None:
    """Fills ranks so that their memory is even, then puts the pieces there as they cost; None where they do not fit."""
    even = fill(by_bytes(pieces), board.copy())
    if even is None:
        return None
    for each, rank_S in even.placed.values():
        board.put(next(real for real in pieces[each.option.name] if real.option is each.option), rank_S)
    return board
