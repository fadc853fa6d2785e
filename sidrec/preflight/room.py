"""What there is: memory, /dev/shm and disk, as far as this process may use them."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from sidrec import machine

SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Room:
    """Bytes that are free where a rank runs. memory: of its machine or container, limit: all of it; shared: /dev/shm,
    0 where there is none; device: of its GPU, 0 on CPU; disk: where `train.runs` is or will be."""

    memory: int
    limit: int
    shared: int
    device: int
    disk: int


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
