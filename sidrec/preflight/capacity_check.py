"""Whether a run fits: what it needs against what there is, on every machine."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from sidrec import machine
from sidrec.plans.hardware import GB
from sidrec.preflight.findings import Finding
from sidrec.preflight.resource_estimate import Need, RankNeeds, total

NAMED = 4
"""Needs that a sentence names, the largest first."""
TIGHT = 0.8
"""Share of what is free from which on it is worth a note: estimates are not better than that."""


# What there is: memory, /dev/shm and disk, as far as this process may use them.


@dataclass(frozen=True)
class Room:
    """Bytes that are free where a rank runs. memory: of its machine or container, limit: all of it; shared: /dev/shm,
    0 where there is none; device: of its GPU, 0 on CPU; disk: where `train.runs` is or will be."""

    memory: int
    limit: int
    shared: int
    device: int
    disk: int


def fit(
    needs: Sequence[RankNeeds], rooms: Sequence[Room], local_world: int, disk: Sequence[Need], held: int
) -> list[Finding]:
    """Findings on memory, GPU memory, /dev/shm and disk. needs, rooms: of every rank, in their order.

    local_world: ranks of one machine, which share its memory. disk: needs of the run directory; held: bytes that it has
    already. Each finding is that of the machine, or the GPU, with the least to spare.
    """
    machines = [range(first, first + local_world) for first in range(0, len(needs), local_world)]
    memory, shared, devices = [], [], []
    for number, ranks in enumerate(machines):
        room = rooms[ranks[0]]
        where = f"{len(ranks)} rank(s)" + (f" of machine {number}" if len(machines) > 1 else "")
        every = [need for rank in ranks for need in needs[rank].host]
        memory.append(_compared("fits memory", where, _merged(every), room.memory, f"free of {size(room.limit)}"))
        batches = sum(needs[rank].shared for rank in ranks)
        parts = [Need("batches on their way", batches, "data.workers, data.batch_size", about=True)]
        shared.append(_compared("fits /dev/shm", where, parts if batches else [], room.shared, "free in /dev/shm"))
        for rank in ranks:
            if needs[rank].device:
                mine = list(needs[rank].device)
                devices.append(_compared("fits GPU memory", f"rank {rank}", mine, rooms[rank].device, "free"))
    found = [_least_to_spare(memory), _least_to_spare(shared), *([_least_to_spare(devices)] if devices else [])]
    more = [*disk, *([Need("less what is there already", -min(held, total(disk)), "")] if held else [])]
    return [*found, _compared("fits disk", "the run directory", more, rooms[0].disk, "free at train.runs")[1]]


def _compared(name: str, who: str, needs: Sequence[Need], free: int, words: str) -> tuple[float, Finding]:
    """The share of `free` that is needed, and the finding that says so."""
    needed = total(needs)
    share = needed / max(1, free)
    if not needs:
        return share, Finding(name, "ok", f"{who} take none; {size(free)} {words}")
    about = "about " if any(need.about for need in needs) else ""
    parts = ", ".join(
        f"{need.what} {'about ' if need.about else ''}{size(need.bytes)}" for need in islice(needs, NAMED)
    )
    left = f", {len(needs) - NAMED} smaller ones" if len(needs) > NAMED else ""
    found = f"{who} will take {about}{size(needed)} more ({parts}{left}); {size(free)} {words}"
    if needed > free:
        said = f"{who}: expected {about}{needed:,} bytes ({parts}{left}), got {free:,} {words}"
        keys = ", ".join(dict.fromkeys(need.keys for need in islice(needs, NAMED) if need.keys))
        return share, Finding(name, "problem", said, f"change {keys}, or give it more")
    return share, Finding(name, "note" if share > TIGHT else "ok", found)


def _merged(needs: Sequence[Need]) -> list[Need]:
    """One need of each name, summed over ranks, the largest first."""
    merged: dict[str, Need] = {}
    for need in needs:
        before = merged.get(need.what)
        merged[need.what] = Need(need.what, need.bytes + (before.bytes if before else 0), need.keys, need.about)
    return sorted(merged.values(), key=lambda need: -need.bytes)


def _least_to_spare(compared: Sequence[tuple[float, Finding]]) -> Finding:
    return max(compared, key=lambda found: found[0])[1]


def size(count: float) -> str:
    """Bytes in GB, MB or kB."""
    for unit, name in ((GB, "GB"), (10**6, "MB"), (10**3, "kB")):
        if abs(count) >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count:,.0f} bytes"


SHARED = Path("/dev/shm")


def room_here(runs: Path, device: torch.device) -> Room:
    """What this process finds. runs: need not exist yet."""
    free, limit = machine.memory()
    shared = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return Room(free, limit, shared, on_device, shutil.disk_usage(existing(runs)).free)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder and below it; 0 where it is not there."""
    sizes = 0
    for path, _, names in os.walk(folder):  # passes over folders that another process has just removed
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes += Path(path, name).lstat().st_size
    return sizes
