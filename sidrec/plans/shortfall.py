"""Why no plan fits: which tables, how many bytes short of what, and which change would make one fit, each tried.

Shapes: S shards of a table, 2 kinds of memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torchrec.distributed.planner.types import ShardingOption, Storage

from sidrec.plans.hardware import GB, Hardware
from sidrec.plans.memory import ROWWISE, STATE_BYTES, in_host_memory, optimizer_of, table_bytes
from sidrec.plans.options import Sharders, enumerate_options
from sidrec.plans.placement import Board, Piece, Pieces, fill
from sidrec.plans.workload import Workload

UNBOUNDED = Storage(hbm=2**62, ddr=2**62)
MACHINES_TRIED = (2, 4, 8, 16)
NAMED = 3


def shortfall(
    options: Mapping[str, Sequence[ShardingOption]],
    room: Storage,
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
) -> str:
    """The sentence of a search that found nothing. options: all that were tried; room: bytes of a rank for tables."""
    pieces = _sized(options)
    even = fill(pieces, Board.empty(hardware, UNBOUNDED))
    assert even is not None, "memory without bounds holds anything"
    kind = 1 if hardware.device == "cpu" else 0
    had = (room.hbm, room.ddr)
    used_W2 = np.array([UNBOUNDED.hbm, UNBOUNDED.ddr]) - even.free_W2
    rank = int(used_W2[:, kind].argmax())
    used, cap = int(used_W2[rank, kind]), (hardware.hbm, hardware.ddr)[kind]
    here = {name: int(each.bytes_S2[rank_S == rank, kind].sum()) for name, (each, rank_S) in even.placed.items()}
    largest = sorted(here, key=lambda name: -here[name])[:NAMED]
    tables = ", ".join(f"{name} ({_layout(even.placed[name][0])}: {_size(here[name])})" for name in largest)
    remedies = _remedies(pieces, room, workload, hardware, sharders, short=used - had[kind], cap=cap)
    return (
        f"no plan for {workload.name} fits {hardware.name}: the most even one found puts {_size(used)} of tables on "
        f"rank {rank}, which has {_size(had[kind])} for them of its {_size(cap)}: {used - had[kind]:,} bytes short. "
        f"Largest there: {tables}. It would fit with {'; or with '.join(remedies)}"
    )


def _sized(options: Mapping[str, Sequence[ShardingOption]]) -> dict[str, list[Piece]]:
    """Pieces that cost their bytes."""
    pieces: dict[str, list[Piece]] = {}
    for name, found in options.items():
        pieces[name] = []
        for option in found:
            bytes_S2 = np.array([(shard.storage.hbm, shard.storage.ddr) for shard in option.shards], dtype=np.int64)
            pieces[name].append(Piece(option, 0.0, bytes_S2.sum(axis=1).astype(float), bytes_S2))
    return pieces


def _remedies(
    pieces: Pieces,
    room: Storage,
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    short: int,
    cap: int,
) -> list[str]:
    """Changes after which the tables were found to fit, and the memory that would do."""
    found = []
    if _fits(_with_rowwise_state(pieces, hardware, sharders), hardware, room):
        found.append("row-wise Adagrad for the tables (optimizer.tables: {kind: rowwise_adagrad})")
    if _fits(_with_half_weights(pieces, hardware, sharders), hardware, room):
        found.append("weights in FP16 or half the columns")
    if len({each.option.sharding_type for each in next(iter(pieces.values()))}) == 1:
        every = enumerate_options(workload, hardware, sharders)
        if _fits(_sized(every), hardware, room):
            found.append("sharding types that are not forced")
    more = next((more for more in _more_machines(hardware) if _fits_on(more, room, workload, sharders, pieces)), None)
    if more is not None:
        found.append(f"{more.world} ranks")
    return [*found, f"{_size(cap + short)} of memory on every rank, {_size(short)} more for tables"]


def _more_machines(hardware: Hardware) -> list[Hardware]:
    return [replace(hardware, world=hardware.world * factor) for factor in MACHINES_TRIED]


def _fits_on(hardware: Hardware, room: Storage, workload: Workload, sharders: Sharders, pieces: Pieces) -> bool:
    types = {name: sorted({each.option.sharding_type for each in found}) for name, found in pieces.items()}
    kernels = sorted({each.option.compute_kernel for found in pieces.values() for each in found})
    return _fits(_sized(enumerate_options(workload, hardware, sharders, types, kernels)), hardware, room)


def _fits(pieces: Pieces, hardware: Hardware, room: Storage) -> bool:
    return fill(pieces, Board.empty(hardware, room)) is not None


def _with_rowwise_state(pieces: Pieces, hardware: Hardware, sharders: Sharders) -> Pieces:
    def saved(option: ShardingOption) -> list[int]:
        if optimizer_of(option, sharders) in ROWWISE:
            return [0] * len(option.shards)
        sizes = zip(option.shards, table_bytes(option, sharders), strict=True)
        return [max(0, size.state - shard.size[0] * STATE_BYTES) for shard, size in sizes]

    return _less(pieces, hardware, saved)


def _with_half_weights(pieces: Pieces, hardware: Hardware, sharders: Sharders) -> Pieces:
    return _less(pieces, hardware, lambda option: [size.weights // 2 for size in table_bytes(option, sharders)])


def _less(pieces: Pieces, hardware: Hardware, saved: Callable[[ShardingOption], list[int]]) -> Pieces:
    """The pieces with some bytes of each shard saved where its weights lie."""
    smaller: dict[str, list[Piece]] = {}
    for name, found in pieces.items():
        smaller[name] = []
        for each in found:
            bytes_S2 = each.bytes_S2.copy()
            bytes_S2[:, int(in_host_memory(each.option, hardware.device))] -= np.array(saved(each.option))
            smaller[name].append(replace(each, own_S=bytes_S2.sum(axis=1).astype(float), bytes_S2=bytes_S2))
    return smaller


def _layout(each: Piece) -> str:
    return each.option.sharding_type if "uvm" not in each.option.compute_kernel else each.option.compute_kernel


def _size(size: float) -> str:
    return f"{size / GB:,.2f} GB" if size >= GB else f"{size / 1e6:,.2f} MB"
