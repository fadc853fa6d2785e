"""torchrun, which starts ranks and does not take them along when it is killed itself."""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

INTERVAL = 0.5  # seconds
LAUNCHERS = ("python", "torchrun", "elastic")
"""Words in the names of processes that may be a torchrun."""


def end_with_launcher() -> None:
    """Lets a rank end when torchrun, which started it, is gone, however it went: nobody would ever stop the rank, and
    the same command, given again, would train beside it into the same run directory. Nothing in a process that is none.

    Call it before anything slow is imported: whose torchrun is gone by then has another parent already, and is seen to
    be an orphan only where that is no Python process itself.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = os.getppid()
        if _adopts(launcher):
            _end()
        threading.Thread(target=_watch, args=(launcher,), daemon=True, name="end with launcher").start()


def _adopts(parent: int) -> bool:
    """Whether the process is what orphans are given to, and not a torchrun that is a container's first process."""
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
