"""Studies of recipes: train what is missing, compare, report.

    python -m benchmarks.study run benchmarks/studies/STUDY.yaml      train, bootstrap, report; run again to go on
    python -m benchmarks.study report benchmarks/studies/STUDY.yaml   rebuild tables and pictures from the JSONs

Committed, in benchmarks/results/STUDY: DATASET/VARIANT/seedN.json, DATASET/bootstrap.json, report.md, summary.json.
Not committed, in runs/studies/STUDY: run directories with predictions, logs.
Exit status 1 when a run failed, 2 for a mistake in the study, its recipes or its data.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.bootstrap_file import update_bootstraps
from benchmarks.study.definition import load_study
from benchmarks.study.report import report
from benchmarks.study.runner import run_study
from benchmarks.study.store import RESULTS
from benchmarks.study.tuning import tuning_report
from sidrec.errors import SidrecError


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("study", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSONs, tables and pictures go")
    arguments = parser.parse_args(argv)
    try:
        study = load_study(arguments.study)
        _log_to(study.runs / study.name)
        failed = run_study(study, arguments.results) if arguments.what == "run" else []
        if arguments.what == "run" and not study.trials:
            update_bootstraps(study, arguments.results)
        print((tuning_report if study.trials else report)(study, arguments.results))
    except SidrecError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


def _log_to(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(folder / "study.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a training is stopped as well
    sys.exit(main(sys.argv[1:]))
