"""Reports on codes: fit what is missing, measure, compare.

    OMP_NUM_THREADS=1 python -m benchmarks.sid_report run benchmarks/sid_report/STUDY.yaml   run again to go on
    python -m benchmarks.sid_report report benchmarks/sid_report/STUDY.yaml                  tables and pictures alone

Committed, in benchmarks/results/STUDY: fits.parquet (one row per fit), report.md, summary.json, pictures.
Not committed, in data/catalogs: the catalogs of the first seed.
Exit status 1 when a fit failed, 2 for a mistake in the study or its data.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.sid_report.fits import load_sid_study, run_study
from benchmarks.sid_report.report import report
from sidrec.errors import SidrecError


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sid_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("study", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSONs, tables and pictures go")
    parser.add_argument("--setting", help="run this setting alone, as when another process runs the others")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        study = load_sid_study(arguments.study)
        failed = run_study(study, arguments.results, arguments.setting) if arguments.what == "run" else []
        print(report(study, arguments.results))
    except SidrecError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
