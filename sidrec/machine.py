"""What this process may use of the machine: cores, threads, memory and folders, container limits included."""

import os
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = CGROUP) -> float:
    """Cores this process may run on: its CPU affinity, or the container's share of CPU time where that is less."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota = _quota(cgroup)
    return min(allowed, quota) if quota else allowed


def threads_per_rank() -> int:
    """Threads for each rank of this machine: SIDREC_THREADS, else OMP_NUM_THREADS, else cores / ranks.

    torchrun sets OMP_NUM_THREADS=1 by itself where it starts several ranks and finds it unset. That is nobody's wish
    and cannot be told from one, so under torchrun a 1 counts as unset; SIDREC_THREADS=1 says it for certain.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    wish = os.environ.get("SIDREC_THREADS")
    if wish is None:
        wish = os.environ.get("OMP_NUM_THREADS")
        if wish == "1" and ranks > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
            wish = None
    return max(1, int(cores() / ranks) if wish is None else int(wish))


def memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Memory in bytes that this process may still take, and the limit: the container's, or else the machine's."""
    machine = psutil.virtual_memory()
    limit = _number(cgroup / "memory.max") or _number(cgroup / "memory" / "memory.limit_in_bytes")
    used = _number(cgroup / "memory.current") or _number(cgroup / "memory" / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= machine.total:
        return machine.available, machine.total
    return min(machine.available, limit - used), limit


def unwritable(folder: Path) -> str | None:
    """Why `folder` cannot be made or written into, naming the folder that is in the way; None where it can. Makes
    nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there}, which is a file"
    if not os.access(there, os.W_OK | os.X_OK) or os.statvfs(there).f_flag & os.ST_RDONLY:
        return f"{there}, where this process may not write"
    return None


def _quota(cgroup: Path) -> float | None:
    """cgroup v2 says "QUOTA PERIOD" or "max PERIOD"; v1 says it in two files, -1 for no limit."""
    words = _text(cgroup / "cpu.max").split()
    if not words:
        words = [_text(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = words
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
