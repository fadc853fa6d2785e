"""What `sidrec bench plans` does: reads the subject, measures its plans on the ranks at hand, writes the result."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sidrec.bench.candidate_plans import check_names
from sidrec.bench.measure import RESULT, bench_plans
from sidrec.bench.page import is_page, write_page
from sidrec.bench.ranking import bench_table
from sidrec.bench.result import is_bench
from sidrec.bench.subject import Subject, recipe_subject, tables_subject, with_fewer_rows
from sidrec.bench.trial import StepCounts
from sidrec.cli.bench import PROGRAM, PlansOptions
from sidrec.config import ConfigError, Recipe, load
from sidrec.io.output_folders import output_file
from sidrec.machine import unwritable
from sidrec.parallel.process_group import Ranks, joined_ranks, run_on_all_ranks
from sidrec.plans.tables_file import TablesFile, is_tables, read_tables

PAGE = "bench.html"


def measure_plans(read: Callable[[], tuple[PlansOptions, list[str]]]) -> None:
    """Measures on the ranks at hand, and writes the result and its page.

    read: the options, and flags for a recipe's values. Raises ConfigError or ContractError on all ranks together.
    """
    with joined_ranks() as ranks:
        options, flags = run_on_all_ranks(ranks, read)
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


def _subject(options: PlansOptions, flags: Sequence[str], ranks: Ranks) -> Subject:
    """The subject with one batch for each step of a visit, so that all visits see the same batches."""
    found = run_on_all_ranks(ranks, lambda: _read(options, flags))
    batches = options.warm_up + 2 * options.steps
    if isinstance(found, Recipe):
        return recipe_subject(found, batches, ranks)
    return run_on_all_ranks(ranks, lambda: tables_subject(found, batches, ranks))


def _read(options: PlansOptions, flags: Sequence[str]) -> Recipe | TablesFile:
    if not is_tables(options.subject):
        if (options.rows_per_step, options.rows_divisor) != (None, 1):
            got = f"the recipe {options.subject}"
            raise ConfigError(f"--rows-per-step, --rows-divisor: expected a tables file with them, got {got}")
        return load([options.subject, *flags], PROGRAM)
    if flags:
        raise ConfigError(f"{PROGRAM}: expected no flags of a recipe with a tables file, got {' '.join(flags)}")
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
