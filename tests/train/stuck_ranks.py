"""`python -m tests.train.stuck_ranks CASE FOLDER`: a rank of two, of which the second comes to grief at its third step.

killed: it is gone. stopped: it does not run. reading: it waits for a batch that never comes.
"""

import os
import signal
import sys
import time
from pathlib import Path

from sidrec.errors import print_error
from sidrec.parallel.process_group import READS, Ranks, joined_ranks, largest
from sidrec.train.watchdog import Watchdog

MINUTES = 0.1


def come_to_grief(case: str, ranks: Ranks) -> None:
    if case == "reading":
        time.sleep(300)
    os.kill(os.getpid(), signal.SIGKILL if case == "killed" else signal.SIGSTOP)


def main(case: str, folder: Path) -> int:
    try:
        with joined_ranks() as ranks, Watchdog(MINUTES, folder, ranks):
            for step in range(1, 1000):
                ranks.heartbeat.begin(f"step {step}")
                ranks.heartbeat.beat(READS)
                if step == 3 and ranks.rank == 1:
                    time.sleep(MINUTES * 60 / 4)  # the notes of the step before are left
                    come_to_grief(case, ranks)
                largest(ranks, step)
    except RuntimeError as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
