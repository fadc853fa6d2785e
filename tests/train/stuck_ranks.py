"""`python -m tests.train.stuck_ranks CASE FOLDER`: one of two ranks, of which the second fails at its third step.

CASE: killed, by SIGKILL; stopped, by SIGSTOP; or reading, a batch that never comes.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from torch import distributed as dist

from sidrec.errors import print_error
from sidrec.parallel.process_group import READS, Ranks, joined_ranks, largest
from sidrec.train.watchdog import Watchdog

MINUTES = 0.5
"""Also the longest pause that a loaded machine may put between two steps."""


def come_to_grief(case: str, ranks: Ranks) -> None:
    if case == "reading":
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL if case == "killed" else signal.SIGSTOP)


def wait_for_note(ranks: Ranks) -> None:
    """Returns once the watchdog has noted where this rank is."""
    store = dist.PrefixStore("watchdog", dist.distributed_c10d._get_default_store())
    while json.loads(store.get(f"{ranks.rank}"))["place"] != ranks.heartbeat.place:
        time.sleep(0.05)


def main(case: str, folder: Path) -> int:
    try:
        with joined_ranks() as ranks, Watchdog(MINUTES, folder, ranks):
            for step in range(1, 1000):
                ranks.heartbeat.begin(f"step {step}")
                ranks.heartbeat.beat(READS)
                if step == 3 and ranks.rank == 1:
                    wait_for_note(ranks)
                    come_to_grief(case, ranks)
                largest(ranks, step)
    except RuntimeError as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
