"""torchrun, which starts ranks and does not take them along when it is killed itself."""

import os
import sys
import threading
import time

INTERVAL = 0.5  # seconds


def end_with_launcher() -> None:
    """Lets a rank end when torchrun, which started it, is gone, however it went: nobody would ever stop the rank, and
    the same command, given again, would train beside it into the same run directory. Nothing in a process that is none.

    Call it before anything slow is imported: whose torchrun is gone by then has another parent already.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="end with launcher").start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(INTERVAL)
    print(
        f"sidrec: rank {os.environ.get('RANK')} ends: torchrun, which started it, is gone", file=sys.stderr, flush=True
    )
    os._exit(1)
