"""`sidrec study FILE`: compares variants of a recipe over runs, with intervals.

Arguments are read first; functions import torch when they need it.
"""

import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field, PositiveInt

from sidrec.cli.day_forward import asks_day_forward, day_forward
from sidrec.command_line import describe, metavar, parse
from sidrec.config.section import section
from sidrec.errors import ConfigError
from sidrec.io.output_folders import output_folder
from sidrec.io.output_lock import locked

if TYPE_CHECKING:
    from sidrec.study.definition import Study

ABOUT = describe(
    "Does it help on this log? Trains variants of a recipe several times, compares them on the same rows, and writes "
    "RESULTS/NAME with report.html, report.md, summary.json, runs.parquet and draws.parquet. FILE is a study, or a "
    "recipe, whose standard variants are compared: HIDs alone, SIDs alone, simple uses of both, SID-Coord. Goes on "
    "where it was stopped. Exit status 1 if a run failed. With --checkpoint, compares a model that has converged "
    "with and without SIDs, day by day: sidrec study --checkpoint --help.",
    "sidrec study recipe.yaml --jobs 2 --minutes 30",
    "sidrec study benchmarks/studies/claim.yaml --tune",
    "sidrec study --checkpoint runs/shop/seed0 --log shop --days 7",
)
FORMER_WORDS = ("run", "report")  # before FILE, in earlier versions


@section
class StudyOptions:
    """What to compare, and with what effort."""

    file: tyro.conf.Positional[Annotated[Path, metavar("FILE")]]
    """Study (data sets, variants, references), or recipe (YAML)."""
    runs: Annotated[PositiveInt | None, metavar("N", "the study's `runs`, 10 for a recipe")] = None
    """Runs of each variant: run r has the training seed r and the catalog fit r."""
    jobs: Annotated[PositiveInt | None, metavar("N", "the study's `jobs`, 1 for a recipe")] = None
    """Runs at a time, each a process of one thread where several run on a CPU."""
    minutes: Annotated[Annotated[float, Field(gt=0)] | None, metavar("M", "no limit")] = None
    """Start no run that would end later than this, and report on those that have ended; the same command goes on."""
    tune: bool = False
    """First search the best values of each variant on validation, on the same budget, as the section `tuning` of the
    study describes it; writes trials.parquet and best.yaml. A study with this section trains no final run before."""
    report: bool = False
    """Train nothing; write the reports again from recorded results."""
    results: Annotated[Path | None, metavar("RESULTS", "the study's `results`")] = None
    """Folder of the results."""


def study(argv: Sequence[str]) -> int:
    """Returns the exit status. Raises SidrecError for a mistake in the study, its recipes or its data."""
    if asks_day_forward(argv):
        return day_forward(argv)
    _refuse_former_words(argv)
    options = parse(StudyOptions, argv, "sidrec study", ABOUT)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes

    from sidrec.study.standard import study_of

    study = _with_options(study_of(options.file, options.results, options.tune), options)
    results = study.results
    for folder in (study.work, results):
        output_folder(folder / study.name)
    with locked(results / study.name):
        failed = 0 if options.report else _train(study, options.tune, deadline)
        return _report(study) or failed


def _refuse_former_words(argv: Sequence[str]) -> None:
    if len(argv) > 1 and argv[0] in FORMER_WORDS and not Path(argv[0]).exists():
        now = "sidrec study FILE --report" if argv[0] == "report" else "sidrec study FILE"
        raise ConfigError(f"sidrec study: expected FILE first, as in `{now}`, got the former word {argv[0]!r}")


def _with_options(study: "Study", options: StudyOptions) -> "Study":
    if options.runs is not None:
        study = replace(study, runs=tuple(range(options.runs)))
    if options.jobs is not None:
        study = replace(study, jobs=options.jobs)
    return study


def _train(study: "Study", tune: bool, deadline: float | None) -> int:
    """Trains what is missing. Returns 1 if a run failed, else 0."""
    from sidrec.study.runner import check_recipes, run_study, train_runs
    from sidrec.study.search import check_search, search, with_best

    check_recipes(study)
    if tune:
        check_search(study)
    (study.results / study.name).mkdir(parents=True, exist_ok=True)  # before any training, lest its result be lost
    _log_to(study.work / study.name)
    # SystemExit instead of an immediate end, so that the training in progress is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if tune and search(study, study.results, partial(train_runs, study, deadline=deadline)):
        return 1
    return 1 if run_study(with_best(study, study.results), study.results, deadline) else 0


def _report(study: "Study") -> int:
    from sidrec.report.study_text import write_study_report
    from sidrec.study.search import with_best

    print(write_study_report(with_best(study, study.results, unfinished=True), study.results))
    return 0


def _log_to(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(folder / "study.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
