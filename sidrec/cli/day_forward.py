"""`sidrec study --checkpoint RUN --log FOLDER ...`: what SIDs add to a model that has converged, day forward.

Arguments are read first; torch is imported when they are sound.
"""

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from sidrec.command_line import describe, metavar, parse
from sidrec.config.section import section
from sidrec.errors import ConfigError
from sidrec.io.files import write_json, write_text
from sidrec.io.output_folders import output_folder
from sidrec.io.output_lock import locked
from sidrec.stack import require_stack
from sidrec.text import markdown_on_screen

FLAG = "--checkpoint"
ABOUT = describe(
    "From the weights of a run of HIDs alone, trains on with and without SIDs, a day at a time; each day is scored by "
    "the models of the day before. Compares NE and GAUC by item age and by updates of the HID row, at several sizes of "
    "the HID table, with intervals and the cost. Goes on where it was stopped. Writes RESULTS/NAME.",
    "sidrec study --checkpoint runs/shop/seed0 --log monday --log tuesday --log wednesday",
    "sidrec study --checkpoint runs/shop/seed0 --log shop --days 7 --runs 5 --sizes 1 4 10",
)


@section
class DayForwardOptions:
    """What to compare, and on which days."""

    checkpoint: Annotated[Path, metavar("RUN")]
    """Run of item kind hid, or one of its checkpoints."""
    log: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """Data folder of a further day, prepared with --ids from the run's; one flag per day, in order of time. The run's
    own folder is allowed: its rows after the train split count."""
    days: Annotated[int | None, metavar("N", "each --log is a day")] = None
    """Cut one --log into this many days of equal length."""
    runs: int = 5
    """Runs: run r has the training seed r and the catalog fit r."""
    sizes: tuple[int, ...] = (1,)
    """Divisors of the HID table's bytes, as 1 4 10; twins of other sizes than 1 are trained on the run's data first."""
    item: Annotated[str, metavar("SECTION", "sid_coord, preset recommended")] = "{kind: sid_coord, preset: recommended}"
    """Item section with SIDs, as YAML."""
    catalog: Annotated[Path | None, metavar("CATALOG", "fit one per run on the past")] = None
    """Catalog for all runs, fitted on the past only."""
    minutes: Annotated[float | None, metavar("M", "no limit")] = None
    """Stop after about this time; the same command goes on later."""
    name: Annotated[str, metavar("NAME")] = "day_forward"
    """Names the folders of results and of work."""
    results: Path = Path("results/studies")
    """Folder of recorded results and the report: RESULTS/NAME."""
    work: Path = Path("runs/studies")
    """Folder of days, catalogs and run directories: WORK/NAME."""


def asks_day_forward(argv: Sequence[str]) -> bool:
    """Whether the arguments of `sidrec study` are meant for this form of it."""
    return any(word.partition("=")[0] == FLAG for word in argv)


def day_forward(argv: Sequence[str]) -> int:
    """Returns 0. Raises SidrecError for a checkpoint, log, item section or folder that cannot be used."""
    options = parse(DayForwardOptions, argv, "sidrec study", ABOUT)
    item = _checked(options)
    results, work = options.results / options.name, options.work / options.name
    for folder in (results, work):
        output_folder(folder, [*options.log, options.checkpoint])

    from sidrec.parallel.process_group import joined_ranks
    from sidrec.report.day_forward_page import write_day_forward_page
    from sidrec.report.day_forward_text import day_forward_report
    from sidrec.study.day_forward import compared, run_study
    from sidrec.study.day_models import DayForwardStudy, Question

    question = Question(
        checkpoint=options.checkpoint,
        logs=options.log,
        days=options.days,
        runs=options.runs,
        sizes=tuple(dict.fromkeys(options.sizes)),
        item=item,
        catalog=options.catalog,
        results=results,
        work=work,
    )
    require_stack()
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with locked(results), _logged_to(work / "study.log"), joined_ranks() as ranks:
        study = DayForwardStudy(question, ranks)
        run_study(study, options.minutes)
        found = compared(study)
    report = day_forward_report(found)
    write_json(results / "day_forward.json", asdict(found))
    write_text(results / "report.md", f"{report}\n")
    print(markdown_on_screen(report))
    print(f"\npage: {write_day_forward_page(found, results / 'report.html')}")
    return 0


@contextmanager
def _logged_to(file: Path) -> Iterator[None]:
    """Shows the lines of sidrec's own loggers, and keeps them in a file; TorchRec's are left out."""
    logger, level = logging.getLogger("sidrec"), logging.getLogger("sidrec").level
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(file)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = True
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _checked(options: DayForwardOptions) -> dict[str, Any]:
    """The item section. Raises ConfigError."""
    if not options.log:
        raise ConfigError("--log: expected at least one data folder of further days, got none")
    if options.runs < 1:
        raise ConfigError(f"--runs: expected at least 1, got {options.runs}")
    if not options.sizes or min(options.sizes) < 1:
        raise ConfigError(
            f"--sizes: expected divisors of at least 1, got {' '.join(map(str, options.sizes)) or 'none'}"
        )
    if options.minutes is not None and options.minutes <= 0:
        raise ConfigError(f"--minutes: expected a time above 0, got {options.minutes:g}")
    if not options.name or not all(letter.isalnum() or letter in "_-." for letter in options.name):
        raise ConfigError(f"--name: expected letters, digits, '_', '-' or '.', got {options.name!r}")
    try:
        item = yaml.safe_load(options.item)
    except yaml.YAMLError as error:
        raise ConfigError(f"--item: expected a section in YAML, got {' '.join(str(error).split())}") from None
    if not isinstance(item, dict) or "kind" not in item:
        raise ConfigError(f"--item: expected a section with a kind, as '{{kind: sid_coord}}', got {options.item!r}")
    if "hid_index" in item:
        raise ConfigError("--item: expected no hid_index, which the run and --sizes decide, got one")
    return item
