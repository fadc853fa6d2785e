"""What a command costs while it runs: time, memory with and without mapped pages, scratch files, reading from disk."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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


def cost_of(
    command: Sequence[str],
    environment: Mapping[str, str],
    scratch: Path,
    pause: Callable[[float], None] = time.sleep,
) -> Cost:
    """Runs `command` to its end, with its output where this process's goes.

    scratch: a folder of its own for temporary files. pause: called between two looks at the process, with INTERVAL.
    Raises CalledProcessError when the command fails.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, env={**os.environ, **environment, "TMPDIR": str(scratch)}) as process:
        own = mapped = disk = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            memory = _memory(process.pid)
            own, mapped = max(own, memory.get("RssAnon", 0)), max(mapped, memory.get("VmHWM", 0))
            disk = max(disk, _on_disk(scratch))
            pause(INTERVAL)
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    cpu = usage.ru_utime + usage.ru_stime
    read = usage.ru_inblock * SECTOR
    return Cost(time.perf_counter() - start, cpu, own, mapped, disk, read)


def _memory(process: int) -> dict[str, int]:
    """Bytes by name, as the kernel has them; empty once the process has ended.

    Not rusage's maxrss: that begins with what the parent had when it forked.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}


def _on_disk(folder: Path) -> int:
    total = 0
    for path, folders, names in os.walk(folder):  # passes over folders that are gone since they were listed
        for name in (*folders, *names):
            with suppress(FileNotFoundError):
                total += Path(path, name).stat().st_blocks * SECTOR
    return total
