"""`sidrec study run | report`: variants of a recipe, trained over seeds and compared with intervals."""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sidrec.command_line import Subcommands, describe, metavar, parse
from sidrec.config.section import section

COMMANDS = Subcommands(
    "sidrec study",
    "Trains variants of a recipe over seeds and compares them on the same rows, with intervals.",
    {"run": "train the runs that are not finished, write the report", "report": "write tables and pictures again"},
)
RUN = describe(
    "Trains the runs of a study that are not finished, computes intervals, and writes RESULTS/STUDY: runs.parquet, "
    "DATASET/bootstrap.json, summary.json, report.md and DATASET.png, or best.yaml for a tuning study. Run "
    "directories, logs and predictions go to the study's `runs`. Exit status 1 if a run failed.",
    "sidrec study run benchmarks/studies/sid_coord_beauty.yaml",
)
REPORT = describe(
    "Writes a study's tables and pictures again, from recorded results alone.",
    "sidrec study report benchmarks/studies/sid_coord_beauty.yaml",
)


@section
class StudyOptions:
    """A study and its results."""

    study: tyro.conf.Positional[Annotated[Path, metavar("STUDY")]]
    """Study (YAML): data sets with their recipes, variants, seeds, references."""
    results: Annotated[Path | None, metavar("RESULTS", "the study's `results`")] = None
    """Folder of the results."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit status. Raises SidrecError for a mistake in the study, its recipes or its data."""
    command, words = COMMANDS.choose(argv)
    options = parse(StudyOptions, words, f"sidrec study {command}", RUN if command == "run" else REPORT)

    from sidrec.study.definition import load_study
    from sidrec.study.intervals import update_bootstraps
    from sidrec.study.report import report, tuning_report
    from sidrec.study.runner import run_study

    study = load_study(options.study)
    results = study.results if options.results is None else options.results
    _log_to(study.runs / study.name)
    failed = []
    if command == "run":
        # SystemExit instead of an immediate end, so that the training in progress is stopped too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        failed = run_study(study, results)
        if not study.trials:
            update_bootstraps(study, results)
    print((tuning_report if study.trials else report)(study, results))
    return 1 if failed else 0


def _log_to(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(folder / "study.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
