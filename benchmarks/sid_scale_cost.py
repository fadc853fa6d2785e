"""What a command costs while it runs: time, memory with and without mapped pages, scratch files, reading from disk."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.1  # seconds between two looks at the process
SECTOR = 512  # bytes that rusage counts as one block


@dataclass(frozen=True)
class Cost:
    """Of one process, without those it starts.

    own_bytes: the most anonymous memory seen, which the machine cannot take back. mapped_bytes: the most of all
        resident pages, with those of mapped files, which the machine drops when it needs room; what `ps` calls RSS.
    scratch_bytes: the most on disk in the folder that TMPDIR named. read_bytes: fetched from disk, not from the page
        cache.
    """

    wall_seconds: float
    cpu_seconds: float
    own_bytes: int
    mapped_bytes: int
    scratch_bytes: int
    read_bytes: int


def cost_of(command: Sequence[str], environment: Mapping[str, str], scratch: Path) -> Cost:
    """Runs `command` to its end, with its output where this process's goes.

    scratch: a folder of its own for temporary files. Raises CalledProcessError when the command fails.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, env={**os.environ, **environment, "TMPDIR": str(scratch)}) as process:
        own = disk = 0
        watched = psutil.Process(process.pid)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            own = max(own, _anonymous(watched))
            disk = max(disk, _on_disk(scratch))
            time.sleep(INTERVAL)
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    cpu = usage.ru_utime + usage.ru_stime
    read = usage.ru_inblock * SECTOR
    return Cost(time.perf_counter() - start, cpu, own, usage.ru_maxrss * 1024, disk, read)


def _anonymous(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared)


def _on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * SECTOR
        except FileNotFoundError:  # gone since it was listed
            continue
    return total
