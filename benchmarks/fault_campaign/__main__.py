"""Kills trainings at random moments and looks whether they end as if nothing had happened.

    python -m benchmarks.fault_campaign --kills 100 --seed 0 --out OUT [--minutes 60]

OUT gets result.json, report.md and, of runs that did not end as they should, everything in failures/.
Exit status 1 when there is such a run.
"""

import argparse
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fault_campaign.campaign import Settings, run_campaign
from benchmarks.fault_campaign.subject import make_subject


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fault_campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=100, help="kills to deal")
    parser.add_argument("--seed", type=int, default=0, help="seed of log and faults")
    parser.add_argument("--minutes", type=float, default=60, help="time after which no more are dealt")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    with tempfile.TemporaryDirectory(prefix="fault-campaign-") as folder:
        recipe = make_subject(Path(folder), arguments.seed)
        outcomes = run_campaign(recipe, Settings(arguments.kills, arguments.seed, arguments.minutes), arguments.out)
    return 1 if any(outcome.complaints for outcome in outcomes) else 0


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that what was started is ended as well
    sys.exit(main(sys.argv[1:]))
