"""The machine of this process: cores, threads, memory and folders within the container's limits, and its torchrun."""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores(cgroup: Path = CGROUP, own: Path = OWN) -> float:
    """Cores that this process may use: the smaller of its CPU affinity and the CPU quotas of its control groups."""
    quotas = [quota for group in _groups(cgroup, own, "cpu") if (quota := _quota(group))]
    return min([float(len(os.sched_getaffinity(0))), *quotas])


def threads_per_rank() -> int:
    """Threads for each rank of this machine: SIDREC_THREADS, else OMP_NUM_THREADS, else cores / ranks.

    torchrun sets OMP_NUM_THREADS=1 if it is unset and there are several ranks. A user's own 1 looks the same, so under
    torchrun 1 counts as unset; SIDREC_THREADS=1 is always obeyed.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = os.environ.get("SIDREC_THREADS")
    if threads is None:
        threads = os.environ.get("OMP_NUM_THREADS")
        if threads == "1" and ranks > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
            threads = None
    return max(1, int(cores() / ranks) if threads is None else int(threads))


def memory(cgroup: Path = CGROUP, own: Path = OWN) -> tuple[int, int]:
    """Free memory and total memory, in bytes: the least of the machine's and of the limits of its control groups.

    A container, a systemd slice and a Slurm job each are a group; a group is limited by all groups around it.
    """
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for group in _groups(cgroup, own, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < machine.total:
            free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


def unwritable(folder: Path) -> str | None:
    """Why `folder` cannot be created or written to, with the path that prevents it; None if it can.

    Creates nothing.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there}, which is a file"
    if not os.access(there, os.W_OK | os.X_OK) or os.statvfs(there).f_flag & os.ST_RDONLY:
        return f"{there}, where this process may not write"
    return None


def _groups(cgroup: Path, own: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and of all groups around it, for one controller.

    own: lines NUMBER:CONTROLLERS:PATH; version 2 has one hierarchy, whose line names no controllers, version 1 has one
    for each controller, in a folder of its own. In a container, PATH may be one of the host's, which is not there.
    """
    roots = {"": cgroup, controller: cgroup / controller}
    paths = dict.fromkeys(roots, "/")
    for line in _text(own).splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths |= dict.fromkeys({*fields[1].split(",")} & set(roots), fields[2])
    found = []
    for name, root in roots.items():
        inner = root / paths[name].strip("/")
        found += [folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
    return [folder for folder in found if folder.is_dir()]


def _quota(group: Path) -> float | None:
    """A group's CPU quota in cores; None without one.

    cgroup v2 writes "QUOTA PERIOD" or "max PERIOD"; v1 writes two files, with quota -1 for no limit.
    """
    words = _text(group / "cpu.max").split() or [_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = words
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


# torchrun starts ranks, and leaves them running when it is killed.


INTERVAL = 0.5  # seconds between two looks at the parent process
LAUNCHERS = ("python", "torchrun", "elastic")
"""Words in the names of processes that may be a torchrun."""


def end_with_launcher() -> None:
    """Ends this rank when its torchrun exits; no-op outside torchrun.

    A rank that outlives its torchrun would run for ever, and the next start of the command would train into the same
    run directory at the same time. Call this before slow imports: if torchrun has exited by then, the rank has been
    re-parented, and is recognised as an orphan only if its new parent is no Python process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = os.getppid()
        if _adopts_orphans(launcher):
            _end()
        threading.Thread(target=_watch, args=(launcher,), daemon=True, name="end with launcher").start()


def _adopts_orphans(parent: int) -> bool:
    """Whether orphans are re-parented to this process, and it is not a torchrun that is process 1 of a container."""
    try:
        process = psutil.Process(parent)
        names = [process.name()]
        if parent != 1 and names != ["systemd"]:
            return False
        with suppress(psutil.AccessDenied):
            names.append(Path(process.exe()).name)
    except psutil.Error:
        return False
    return not any(word in name for name in names for word in LAUNCHERS)


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(INTERVAL)
    _end()


def _end() -> None:
    print(
        f"sidrec: rank {os.environ.get('RANK')} ends: torchrun, which started it, is gone", file=sys.stderr, flush=True
    )
    os._exit(1)
