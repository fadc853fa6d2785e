"""Breaks every kind of file that the product reads, and holds what it says against what it promises.

    python -m benchmarks.fuzz_campaign --cases 10000 --seed 0 --out DIR [--minutes 20]
    python -m benchmarks.fuzz_campaign --replay DIR/failures/case-17.json

Promised: one sentence of an error of ours, nothing written; no traceback, hang, crash, or gigabytes of memory. A case
is drawn from its number and the seed alone. DIR gets fuzz.json, report.md, and every case that failed.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.fuzz.campaign import Campaign, in_a_process, sound_folders
from benchmarks.fuzz.case import load_case
from benchmarks.fuzz.report import write_report


def main() -> int:
    """Exit status 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="other cases for another one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="ends early, with what there is")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder of the report and of failing cases")
    parser.add_argument("--replay", type=Path, help="runs one kept case, and shows what it prints")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        return replay(arguments.replay)
    campaign = Campaign(arguments.cases, arguments.seed, arguments.out / "failures", arguments.minutes)
    campaign.run()
    write_report(campaign, arguments.out)
    failed = sum(not ran.outcome.fine for ran in campaign.ran)
    print(f"{len(campaign.ran)} cases in {campaign.seconds:.0f} s, {failed} failed: {arguments.out / 'report.md'}")
    return int(failed > 0)


def replay(path: Path) -> int:
    """Runs a case that was kept."""
    case = load_case(path)
    with sound_folders() as folder:
        (ran,) = in_a_process([case], case.seed, folder, quiet=False)
    print(f"{case.kind}, {case.file}, {case.mutation}: {ran.outcome.verdict} {ran.outcome.said}")
    return int(not ran.outcome.fine)


if __name__ == "__main__":
    sys.exit(main())
