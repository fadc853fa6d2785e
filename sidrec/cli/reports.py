"""`sidrec report | compare`: a run as a page, and runs against each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sidrec.command_line import describe, metavar, parse
from sidrec.config.section import section

REPORT = describe(
    "Writes a run as one HTML page without external resources: curves, metrics by item slice with intervals, "
    "calibration, gate, attention, semantic IDs, warnings. Also of a run that is still training.",
    "sidrec report runs/demo/seed0",
)
COMPARE = describe(
    "Compares runs that scored the same rows with the first one: metrics by item slice with paired intervals over "
    "users, keys of their recipes that differ, time of a step, parameters.",
    "sidrec compare runs/hid/seed0 runs/sid_coord/seed0 --html comparison.html",
)


@section
class ReportOptions:
    """What to report."""

    run: tyro.conf.Positional[Annotated[Path, metavar("RUN")]]
    """Run directory, as `sidrec train` makes it: RUNS/NAME/seedN."""
    out: Annotated[Path | None, metavar("FILE", "RUN/report.html")] = None
    """The page; an older report there is replaced."""


@section
class CompareOptions:
    """What to compare."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], metavar("RUN RUN [RUN ...]")]]
    """Run directories. The first one is the reference."""
    split: str = "test"
    """Split that all of them scored, with predictions."""
    html: Annotated[Path | None, metavar("FILE", "none")] = None
    """Also write the comparison as an HTML page."""


def report(argv: Sequence[str]) -> None:
    """Raises ConfigError if RUN is no run directory, ContractError if a file of it, or FILE, is of another kind."""
    options = parse(ReportOptions, argv, "sidrec report", REPORT)

    from sidrec.report.run_page import write_report

    print(f"report: {write_report(options.run, options.out)}")


def compare(argv: Sequence[str]) -> None:
    """Raises ConfigError or ContractError, naming the run that cannot be compared."""
    options = parse(CompareOptions, argv, "sidrec compare", COMPARE)

    from sidrec.report import compare as comparison

    found = comparison.compare(options.runs, options.split)
    print(comparison.as_text(found))
    if options.html is not None:
        print(f"\npage: {comparison.write_page(found, options.html)}")
