"""`sidrec bench plans | calibrate | page`: measures sharding plans, calibrates their costs, draws a result again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import tyro
from pydantic import PositiveInt

from sidrec.cli.arguments import check_subject, read_before_ranks
from sidrec.command_line import Subcommands, describe, metavar, parse
from sidrec.config.recipe import ShardingKind
from sidrec.config.section import section
from sidrec.errors import ConfigError

COMMANDS = Subcommands(
    "sidrec bench",
    "Measures sharding plans, and calibrates the costs by which plans are searched.",
    {
        "plans": "measure sharding plans on the ranks at hand",
        "calibrate": "regress the planner's costs on measured plans",
        "page": "draw the page of a result again",
    },
)
PROGRAM = "sidrec bench plans"
PLANS = describe(
    "Measures sharding plans on the same batches, in rounds whose order rotates; in this process or on the ranks of "
    "torchrun. Writes bench.json and bench.html, and prints a table. With a recipe, flags of `sidrec train` such as "
    "--data.batch-size 1024 replace its values.",
    "sidrec bench plans demo.yaml --plans auto,row_wise --rounds 3",
)
CALIBRATE = describe(
    "Regresses the planner's costs on measured plans, and prints how well they predict.",
    "sidrec bench calibrate runs/bench/*/bench.json --out calibration.json",
)
DRAW = describe("Draws the page of a result again.", "sidrec bench page runs/bench/demo/bench.json")


@section
class PlansOptions:
    """What to measure, and how often."""

    subject: tyro.conf.Positional[Annotated[str, metavar("SUBJECT")]]
    """Recipe (YAML), whose model trains on its own log; tables file (YAML); or criteo-mlperf: the tables of MLPerf's
    DLRM-DCNv2."""
    plans: Annotated[str, metavar("NAMES")] = ",".join(("auto", "torchrec", *get_args(ShardingKind)))
    """Names with commas between: auto (the plan that training takes), torchrec (its planner's), a sharding type (for
    every table), or a plan file (*.json)."""
    rounds: PositiveInt = 5
    """Rounds; every plan is visited once in each."""
    steps: PositiveInt = 10
    """Steps timed in a visit: first whole, then as many in parts."""
    warm_up: PositiveInt = 3
    """Steps of a visit before the timed ones."""
    rows_per_step: Annotated[PositiveInt | None, metavar("ROWS", "of the tables file")] = None
    """Rows of a step over all ranks, for a tables file."""
    rows_divisor: PositiveInt = 1
    """Divides the rows of a tables file's tables, for machines that are too small for the whole tables."""
    calibration: Annotated[Path | None, metavar("FILE", "none")] = None
    """Measured costs of this machine, as `sidrec bench calibrate` writes them: rates every plan, and auto is searched
    by it."""
    out: Annotated[Path | None, metavar("FOLDER", "runs/bench/NAME")] = None
    """Folder of the result."""
    overwrite: bool = False
    """Replace a result that exists."""


@section
class CalibrateOptions:
    """Which results to regress on."""

    benches: tyro.conf.Positional[Annotated[tuple[Path, ...], metavar("BENCH.json [BENCH.json ...]", "at least one")]]
    """Results of `sidrec bench plans`."""
    out: Path = Path("calibration.json")
    """Calibration file to write; replaces one that exists."""


@section
class PageOptions:
    """Which result to draw."""

    bench: tyro.conf.Positional[Annotated[Path, metavar("BENCH.json")]]
    """Result of `sidrec bench plans`."""
    out: tyro.conf.Positional[Annotated[Path | None, metavar("[OUT.html]", "BENCH.html")]] = None
    """Page to write."""


def main(argv: Sequence[str]) -> None:
    """Runs one of the three. Raises ConfigError or ContractError; on all ranks together where there are several."""
    command, words = COMMANDS.choose(argv)
    if command == "plans":
        read = read_before_ranks(lambda: _plans_options(words))

        from sidrec.cli.measure_plans import measure_plans

        measure_plans(read)
    elif command == "calibrate":
        options = parse(CalibrateOptions, words, "sidrec bench calibrate", CALIBRATE)
        if not options.benches:
            raise ConfigError("sidrec bench calibrate: expected one BENCH.json or more, got none")

        from sidrec.bench.calibrate import calibrate

        calibrate(list(options.benches), options.out)
    else:
        drawn = parse(PageOptions, words, "sidrec bench page", DRAW)

        from sidrec.bench.page import write_page
        from sidrec.bench.result import load_bench

        write_page(load_bench(drawn.bench), drawn.out or drawn.bench.with_suffix(".html"))


def _plans_options(words: Sequence[str]) -> tuple[PlansOptions, list[str]]:
    """The options, and flags for a recipe's values. Raises ConfigError for these, or for a subject that is no file."""
    options, flags = parse(PlansOptions, words, PROGRAM, PLANS, others=True)
    check_subject(options.subject)
    return options, flags
