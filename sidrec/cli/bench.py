"""`sidrec bench plans | calibrate | page`: measures plans, fits costs to what was measured, draws a result again."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro
from pydantic import PositiveInt, TypeAdapter

from sidrec.bench.calibrate import calibrate
from sidrec.bench.candidate_plans import AUTO, TYPES, check_names
from sidrec.bench.measure import RESULT, bench_plans
from sidrec.bench.page import is_page, write_page
from sidrec.bench.ranking import bench_table
from sidrec.bench.result import is_bench, load_bench
from sidrec.bench.subject import Subject, recipe_subject, tables_subject, with_fewer_rows
from sidrec.bench.trial import StepCounts
from sidrec.config import ConfigError, Recipe, load
from sidrec.config.load import checked_flags
from sidrec.config.section import section
from sidrec.io.output_folders import output_file
from sidrec.machine import unwritable
from sidrec.parallel.process_group import Ranks, joined_ranks, run_on_all_ranks
from sidrec.plans.tables_file import TablesFile, is_tables, read_tables

HELP = """usage: sidrec bench COMMAND ...

  plans SUBJECT [options]         measure sharding plans on the ranks at hand
  calibrate BENCH.json... [...]   fit the planner's costs to plans that were measured
  page BENCH.json [OUT.html]      draw the page of a result again

sidrec bench plans --help and sidrec bench calibrate --help say more."""


def main(argv: Sequence[str]) -> None:
    """Runs one of them. Raises what it raises, ConfigError for an unknown one."""
    match list(argv):
        case [] | ["-h" | "--help", *_] | ["page", "-h" | "--help", *_]:
            print(HELP)
        case ["plans", *words]:
            bench_plans_command(words)
        case ["calibrate", *words]:
            calibrate_command(words)
        case ["page", bench] | ["page", bench, _] as given:
            path = Path(bench)
            write_page(load_bench(path), Path(given[2]) if len(given) == 3 else path.with_suffix(".html"))
        case given:
            expected = "plans SUBJECT, calibrate BENCH.json... or page BENCH.json [OUT.html]"
            raise ConfigError(f"sidrec bench: expected {expected}, got {' '.join(given)!r}")


def calibrate_command(argv: Sequence[str]) -> None:
    """Calibrates. Raises ConfigError or ContractError; then nothing is written."""
    parser = argparse.ArgumentParser(
        prog="sidrec bench calibrate", description="Regress the planner's costs on measured plans."
    )
    parser.add_argument("benches", nargs="+", type=Path, metavar="BENCH.json", help="results of sidrec bench plans")
    parser.add_argument(
        "--out", type=Path, default=Path("calibration.json"), help="the calibration file to write or replace"
    )
    arguments = parser.parse_args(argv)
    calibrate(arguments.benches, arguments.out)


# `sidrec bench plans SUBJECT`: measures sharding plans on the ranks at hand.


PROGRAM = "sidrec bench plans"
PAGE = "bench.html"


ABOUT = """Measures sharding plans, each on the same batches, in rounds whose order rotates; in this process or on the
ranks of torchrun. Writes bench.json, which stays readable whatever happens, and bench.html, and prints a table.

Flags of `sidrec train` replace a recipe's values here too, as in --data.batch-size 1024."""


@section
class Options:
    """What to measure, and how often."""

    subject: tyro.conf.Positional[str]
    """A recipe (YAML), whose model is fed with its own log; a tables file (YAML); or criteo-mlperf, the tables of
    MLPerf's DLRM-DCNv2."""
    plans: str = ",".join((AUTO, *TYPES))
    """Names, with commas between: auto (what training takes), torchrec (what its planner takes), a sharding type (that
    one for every table), or a plan file (*.json)."""
    rounds: PositiveInt = 5
    """Rounds; every plan is visited once in each."""
    steps: PositiveInt = 10
    """Steps timed in a visit, whole and then as often in parts."""
    warm_up: PositiveInt = 3
    """Steps of a visit before the clock runs."""
    rows_per_step: PositiveInt | None = None
    """Rows of a step over all ranks, in the place of a tables file's."""
    rows_divisor: PositiveInt = 1
    """Divides the rows of a tables file's tables, for machines that the whole ones do not fit."""
    calibration: Path | None = None
    """What work costs here, as sidrec bench calibrate wrote it: auto's plan is searched by it, and every plan rated."""
    out: Path | None = None
    """Folder of the result; runs/bench/NAME where none is given."""
    overwrite: bool = False
    """Replace a result that is there."""


_OPTIONS: TypeAdapter[Options] = TypeAdapter(Options)


def bench_plans_command(argv: Sequence[str]) -> None:
    """Measures. Raises ConfigError or ContractError on all ranks together."""
    with joined_ranks() as ranks:
        options, flags = run_on_all_ranks(ranks, lambda: _options(argv))
        names = options.plans.split(",")
        run_on_all_ranks(ranks, lambda: check_names(names))
        subject = _subject(options, flags, ranks)
        out = options.out or Path("runs/bench") / subject.name
        run_on_all_ranks(ranks, lambda: _check_out(out, options.overwrite) if ranks.first else None)
        _announce(subject, names, out, ranks)
        result = bench_plans(
            subject, names, StepCounts(options.warm_up, options.steps), options.rounds, out, ranks, options.calibration
        )
        if ranks.first:
            write_page(result, out / PAGE)
            print(f"\n{bench_table(result)}\n{out / RESULT}\n{out / PAGE}", flush=True)


def _options(words: Sequence[str]) -> tuple[Options, list[str]]:
    """The options, and the flags that are none of them."""
    parsed, flags = tyro.cli(
        Options,
        args=list(words),
        prog=PROGRAM,
        description=ABOUT,
        return_unknown_args=True,
        console_outputs=os.environ.get("RANK", "0") == "0",  # every rank reads the same words
    )
    return checked_flags(_OPTIONS, parsed), flags


def _subject(options: Options, flags: Sequence[str], ranks: Ranks) -> Subject:
    """As many batches as a visit has steps, so that every visit sees the same ones."""
    found = run_on_all_ranks(ranks, lambda: _read(options, flags))
    batches = options.warm_up + 2 * options.steps
    if isinstance(found, Recipe):
        return recipe_subject(found, batches, ranks)
    return run_on_all_ranks(ranks, lambda: tables_subject(found, batches, ranks))


def _read(options: Options, flags: Sequence[str]) -> Recipe | TablesFile:
    if not is_tables(options.subject):
        if (options.rows_per_step, options.rows_divisor) != (None, 1):
            got = f"the recipe {options.subject}"
            raise ConfigError(f"--rows-per-step, --rows-divisor: expected a tables file with them, got {got}")
        return load([options.subject, *flags], PROGRAM)
    if flags:
        raise ConfigError(f"{PROGRAM}: expected its own options alone with a tables file, got {' '.join(flags)}")
    tables = with_fewer_rows(read_tables(options.subject), options.rows_divisor)
    return tables if options.rows_per_step is None else replace(tables, rows_per_step=options.rows_per_step)


def _check_out(out: Path, overwrite: bool) -> None:
    obstacle = unwritable(out)
    if obstacle:
        raise ConfigError(f"--out: expected a folder that can be written, got {obstacle}")
    if (out / RESULT).exists() and not overwrite:
        raise ConfigError(f"{out / RESULT}: expected no result there, or --overwrite, got one")
    output_file(out / RESULT, "a bench of plans", is_bench)
    output_file(out / PAGE, "the page of a bench", is_page)


def _announce(subject: Subject, names: Sequence[str], out: Path, ranks: Ranks) -> None:
    if ranks.first:
        print(
            f"{subject.name}: {len(names)} plan(s) on {ranks.world} rank(s), {ranks.device.type}, "
            f"{ranks.threads} thread(s) each; {subject.rows_per_rank:,} rows per rank and step; result in {out}",
            flush=True,
        )
