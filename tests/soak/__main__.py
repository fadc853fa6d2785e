"""Campaigns that are too long for the suite: kills, broken files, checkpoints under every plan.

    python -m tests.soak faults --kills 100 --seed 0 --out OUT     half an hour on two quiet cores
    python -m tests.soak fuzz --cases 10000 --seed 0 --out OUT     eight minutes
    python -m tests.soak commands --cases 20000 --seed 0 --out OUT half an hour
    python -m tests.soak fuzz --replay OUT/failures/case-17.json   one case that failed, of fuzz or commands
    python -m tests.soak reshard --out OUT                         ten minutes
    python -m tests.soak machines --out OUT                        five minutes; root, network namespaces
    python -m tests.soak all --out OUT                             all five, into OUT/faults, OUT/fuzz, ...

faults kills trainings at random moments and compares how they end with an uninterrupted run. fuzz breaks every kind of
file that the product reads: each must be accepted, or refused by one message with nothing written; a traceback, hang,
crash or gigabyte of memory is a failure. commands calls every command with wrong arguments, on outputs in every state;
what existed before must exist afterwards. reshard saves with every optimizer, sharding type and number of ranks, loads
with every other, and compares losses. machines trains on two machines, which are network namespaces of this one: lost
and come back, without a shared folder, with names that mislead, with tables cut across machines.

OUT gets a result as JSON, report.md, and what failed. Exit status 1 if anything failed.
"""

import argparse
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.soak.faults.campaign import Settings, run_campaign
from tests.soak.fuzz.campaign import COMMANDS, FILES, Campaign, Target, replay, write_report
from tests.soak.machines.campaign import run_machines
from tests.soak.machines.network import ObstacleError
from tests.soak.reshard.matrix import Outcome, run_matrix
from tests.soak.subject import make_subject

CAMPAIGNS = ("faults", "fuzz", "commands", "reshard", "machines")


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=(*CAMPAIGNS, "all"))
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--seed", type=int, default=0, help="other faults, cases and logs for another one")
    parser.add_argument("--minutes", type=float, default=60, help="end a campaign early, with what there is")
    parser.add_argument("--kills", type=int, default=100, help="faults: number of kills")
    parser.add_argument("--cases", type=int, default=10_000, help="fuzz, commands: number of cases")
    parser.add_argument("--case", action="append", default=[], help="machines: a case of this name, and no other")
    parser.add_argument("--replay", type=Path, help="run this case of fuzz or commands alone")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    if arguments.replay is not None:
        return replay(arguments.replay)
    if arguments.out is None:
        parser.error("expected --out OUT, got none")
    if arguments.campaign == "all":
        return max([_run(name, arguments.out / name, arguments) for name in CAMPAIGNS])
    return _run(arguments.campaign, arguments.out, arguments)


def _run(campaign: str, out: Path, arguments: argparse.Namespace) -> int:
    if campaign == "faults":
        failed = _faults(out, Settings(arguments.kills, arguments.seed, arguments.minutes))
    elif campaign in ("fuzz", "commands"):
        target = FILES if campaign == "fuzz" else COMMANDS
        failed = _fuzz(out, target, arguments.cases, arguments.seed, arguments.minutes)
    elif campaign == "machines":
        try:
            failed = sum(bool(case.failure) for case in run_machines(out, arguments.case))
        except ObstacleError as obstacle:
            print(f"{campaign}: not run: {obstacle}")
            return 0 if arguments.campaign == "all" else 1
    else:
        failed = sum(found.outcome is Outcome.WRONG for found in run_matrix(out, arguments.seed))
    print(f"{campaign}: {failed} failed, {out / 'report.md'}")
    return int(failed > 0)


def _faults(out: Path, settings: Settings) -> int:
    """Runs with a complaint."""
    with tempfile.TemporaryDirectory(prefix="fault-campaign-") as folder:
        outcomes = run_campaign(make_subject(Path(folder), settings.seed), settings, out)
    return sum(bool(outcome.complaints) for outcome in outcomes)


def _fuzz(out: Path, target: Target, cases: int, seed: int, minutes: float) -> int:
    """Cases that failed."""
    campaign = Campaign(cases, seed, out / "failures", minutes, target)
    campaign.run()
    write_report(campaign, out)
    return sum(not ran.outcome.fine for ran in campaign.ran)


if __name__ == "__main__":
    # A campaign that is stopped ends the processes that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
