"""Whether a run fits its machines: estimated memory, GPU memory, /dev/shm and disk against what is free."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sidrec import machine
from sidrec.preflight import Finding
from sidrec.preflight.resource_estimate import RankEstimate, ResourceEstimate, total_bytes
from sidrec.text import byte_size

LISTED = 4
"""Estimates that a finding lists by name, the largest first."""
TIGHT = 0.8
"""A larger share of the free bytes gives a note, because the estimates are approximate."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class AvailableResources:
    """Free bytes on the machine of one rank.

    memory: of the machine or container. limit: its total, used or not. shared: of /dev/shm; 0 without one. device: of
    the rank's GPU; 0 on CPU. disk: of the filesystem of `train.runs`.
    """

    memory: int
    limit: int
    shared: int
    device: int
    disk: int


def check_capacity(
    estimates: Sequence[RankEstimate],
    available: Sequence[AvailableResources],
    local_world: int,
    disk: Sequence[ResourceEstimate],
    held: int,
) -> list[Finding]:
    """Findings on memory, /dev/shm, GPU memory (on GPUs only) and disk.

    Each finding reports the machine, or the GPU, that has the smallest margin.

    Args:
        estimates, available: one entry for each rank.
        local_world: ranks on each machine; they share its memory.
        disk: estimates for the run directory.
        held: bytes that the run directory already takes.
    """
    machines = [range(first, first + local_world) for first in range(0, len(estimates), local_world)]
    memory, shared, devices = [], [], []
    for number, ranks in enumerate(machines):
        free = available[ranks[0]]
        user = f"{len(ranks)} rank(s)" + (f" of machine {number}" if len(machines) > 1 else "")
        host = _sum_by_name([each for rank in ranks for each in estimates[rank].host])
        memory.append(_compare("fits memory", user, host, free.memory, f"free of {byte_size(free.limit)}"))
        queued = sum(estimates[rank].shared for rank in ranks)
        batches = ResourceEstimate("queued batches", queued, "data.workers, data.batch_size", approximate=True)
        shared.append(_compare("fits /dev/shm", user, [batches] if queued else [], free.shared, "free in /dev/shm"))
        devices += [
            _compare("fits GPU memory", f"rank {rank}", estimates[rank].device, available[rank].device, "free")
            for rank in ranks
            if estimates[rank].device
        ]
    found = [_least_to_spare(compared) for compared in (memory, shared, devices) if compared]
    present = [ResourceEstimate("less what is there already", -min(held, total_bytes(disk)), "")] if held else []
    used_disk = _compare("fits disk", "the run directory", [*disk, *present], available[0].disk, "free at train.runs")
    return [*found, used_disk[1]]


def _compare(
    name: str, user: str, estimates: Sequence[ResourceEstimate], free: int, free_where: str
) -> tuple[float, Finding]:
    """The estimated share of the free bytes, and the finding about it.

    user: who takes the bytes. free_where: completes "4 GB ...".
    """
    needed = total_bytes(estimates)
    share = needed / max(1, free)
    if not estimates:
        return share, Finding(name, "ok", f"{user} take none; {byte_size(free)} {free_where}")
    listed = estimates[:LISTED]
    about = "about " if any(each.approximate for each in estimates) else ""
    parts = ", ".join(f"{each.name} {'about ' if each.approximate else ''}{byte_size(each.bytes)}" for each in listed)
    if len(estimates) > LISTED:
        parts += f", {len(estimates) - LISTED} smaller ones"
    if needed > free:
        message = f"{user}: expected {about}{needed:,} bytes ({parts}), got {free:,} {free_where}"
        keys = ", ".join(dict.fromkeys(each.recipe_keys for each in listed if each.recipe_keys))
        return share, Finding(name, "problem", message, f"change {keys}, or give it more")
    message = f"{user} will take {about}{byte_size(needed)} more ({parts}); {byte_size(free)} {free_where}"
    return share, Finding(name, "note" if share > TIGHT else "ok", message)


def _sum_by_name(estimates: Sequence[ResourceEstimate]) -> list[ResourceEstimate]:
    """One estimate for each name: the sum over ranks, the largest first."""
    sums: dict[str, ResourceEstimate] = {}
    for each in estimates:
        before = sums[each.name].bytes if each.name in sums else 0
        sums[each.name] = ResourceEstimate(each.name, before + each.bytes, each.recipe_keys, each.approximate)
    return sorted(sums.values(), key=lambda each: -each.bytes)


def _least_to_spare(compared: Sequence[tuple[float, Finding]]) -> Finding:
    return max(compared, key=lambda share_and_finding: share_and_finding[0])[1]


def available_resources(runs: Path, device: torch.device) -> AvailableResources:
    """What is free for this process. runs: the folder of run directories; need not exist yet."""
    free, limit = machine.memory()
    shared = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return AvailableResources(free, limit, shared, on_device, shutil.disk_usage(nearest_existing(runs)).free)


def nearest_existing(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and its subfolders; 0 if it does not exist."""
    sizes = 0
    for path, _, names in os.walk(folder):  # skips folders that another process has just removed
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes += Path(path, name).lstat().st_size
    return sizes
