"""`sidrec plan` and `sidrec bench`: make, explain, measure and calibrate sharding plans.

Arguments are read first; functions import torch when they need it.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro
from pydantic import PositiveInt

from sidrec.cli.arguments import check_subject, read_before_ranks
from sidrec.command_line import Subcommands, describe, metavar, parse
from sidrec.config import Recipe, load, load_file
from sidrec.config.recipe import OptimizerConfig, ShardingKind
from sidrec.config.section import section
from sidrec.errors import ConfigError, NoPlanError
from sidrec.io.output_folders import output_file
from sidrec.io.output_lock import OutputLock, locked
from sidrec.machine import unwritable

if TYPE_CHECKING:
    from sidrec.bench.subject import Subject
    from sidrec.parallel.process_group import Ranks
    from sidrec.plans.hardware import Hardware
    from sidrec.plans.tables_file import TablesFile
    from sidrec.plans.workload import Workload


# sidrec plan: makes a plan and explains it.


PLAN = describe(
    "Makes a sharding plan for hardware that need not be at hand, explains it, and exports it as a file that training "
    "(parallel.plan) and `sidrec bench plans` take.",
    "sidrec plan demo.yaml --hardware 8xa100 --export plan.json",
    "sidrec plan criteo-mlperf --hardware 16x8h100",
)


@section
class PlanOptions:
    """What to plan for."""

    subject: tyro.conf.Positional[Annotated[str, metavar("SUBJECT")]]
    """Recipe (YAML), tables file (YAML), or criteo-mlperf: the tables of MLPerf's DLRM-DCNv2."""
    hardware: Annotated[str | None, metavar("NAME", "cpu")] = None
    """Machines by name, such as cpu, 8xa100, 8xh100, 16x8h100."""
    device: Annotated[Literal["cpu", "cuda"] | None, metavar("{cpu,cuda}", "of --hardware")] = None
    """Instead of --hardware: CPU processes, or machines of 8 A100s."""
    world: Annotated[PositiveInt | None, metavar("RANKS", "of the hardware")] = None
    """Ranks in total."""
    local_world: Annotated[PositiveInt | None, metavar("RANKS", "of the hardware")] = None
    """Ranks of one machine."""
    hbm: Annotated[str | None, metavar("SIZE", "of the hardware")] = None
    """Memory of a GPU, as 80GB."""
    ddr: Annotated[str | None, metavar("SIZE", "of the hardware; on CPU this machine's, shared by its ranks")] = None
    """Host memory of one rank, as 64GB."""
    batch_size: Annotated[PositiveInt | None, metavar("ROWS", "of the recipe or tables file")] = None
    """Rows of a step over all ranks."""
    forced: Annotated[str | None, metavar("TYPE", "the search chooses")] = None
    """One sharding type for every table."""
    calibration: Annotated[Path | None, metavar("FILE", "TorchRec's constants")] = None
    """Measured costs of these machines, as `sidrec bench calibrate` writes them."""
    export: Annotated[Path | None, metavar("FILE", "none")] = None
    """File to write the plan to; replaces a plan that exists."""
    json: bool = False
    """Print JSON instead of text."""


def plan(argv: Sequence[str]) -> None:
    """Searches a plan, prints its explanation, exports it.

    Raises ConfigError, ContractError, and NoPlanError if nothing fits.
    """
    options = parse(PlanOptions, argv, "sidrec plan", PLAN)
    check_subject(options.subject)

    from sidrec.plans.plan_file import is_plan

    hardware = _hardware(options)
    if options.export and (obstacle := unwritable(options.export.parent)):
        raise ConfigError(f"--export: expected a folder that can be written, got {obstacle}")
    export = output_file(options.export, "a sharding plan", is_plan) if options.export else None
    with locked(*([export] if export else [])):
        _search_and_export(options, hardware, export)


def _search_and_export(options: PlanOptions, hardware: "Hardware", export: Path | None) -> None:
    from sidrec.plans.calibration import CalibratedCost, load_calibration
    from sidrec.plans.cost import CostModel, TorchRecCost
    from sidrec.plans.explain import explain
    from sidrec.plans.explanation_text import explanation_text
    from sidrec.plans.options import sharding_plan
    from sidrec.plans.plan_file import plan_file_of, write_plan
    from sidrec.plans.search import search, search_progress

    cost: CostModel = TorchRecCost()
    if options.calibration:
        cost = CalibratedCost(load_calibration(options.calibration, hardware.device))
    workload, sharders, facts = _workload(options, hardware)
    started, cpu_started = time.monotonic(), time.process_time()
    try:
        found = search(workload, hardware, sharders, cost, options.forced, search_progress(started))
    except NoPlanError as error:
        hint = "; for a machine with more memory than this one, give --ddr" if _has_memory_of_this(options) else ""
        raise NoPlanError(f"{error}{hint}") from None
    explained = explain(found, workload, hardware, sharders, cost)
    explained = replace(explained, remarks=[*facts, *explained.remarks])
    took = f"{time.monotonic() - started:.1f} s, {time.process_time() - cpu_started:.1f} s of them CPU time"
    print(json.dumps(explained.as_json()) if options.json else f"{explanation_text(explained)}\n\n{took}")
    if export:
        chosen = sharding_plan(found[0].options, hardware)
        layout = plan_file_of(chosen, workload.model, hardware.world, hardware.local_world, hardware.device)
        export.parent.mkdir(parents=True, exist_ok=True)
        write_plan(export, layout)
        print(f"plan: {options.export}", file=sys.stderr)


def _has_memory_of_this(options: PlanOptions) -> bool:
    """Whether ranks were taken to share this machine's memory."""
    on_cpu = options.device == "cpu" or (options.device is None and "cpu" in (options.hardware or "cpu"))
    return on_cpu and options.ddr is None


def _hardware(options: PlanOptions) -> "Hardware":
    from sidrec.plans.hardware import EXAMPLES, bytes_of, named_hardware, with_ranks

    if options.hardware and options.device:
        raise ConfigError(f"--device: expected none beside --hardware {options.hardware}, got {options.device}")
    name = options.hardware or {"cuda": "8xa100", "cpu": "cpu", None: "cpu"}[options.device]
    hardware = with_ranks(named_hardware(name), options.world, options.local_world)
    if options.hbm:
        if hardware.device == "cpu":
            raise ConfigError(f"--hbm: expected hardware with GPUs, such as {EXAMPLES.split(', ')[-1]}, got {name}")
        hardware = replace(hardware, hbm=bytes_of(options.hbm))
    return replace(hardware, ddr=bytes_of(options.ddr)) if options.ddr else hardware


def _workload(options: PlanOptions, hardware: "Hardware") -> tuple["Workload", list[Any], list[str]]:
    """The workload, its sharders, and remarks on how the workload was estimated."""
    from sidrec.parallel.sharding import sharders_of
    from sidrec.plans.tables_file import TablesModel, is_tables, read_tables
    from sidrec.plans.workload import Workload

    if not is_tables(options.subject):
        return _recipe_workload(load_file(Path(options.subject)), options.batch_size, hardware.world)
    tables = read_tables(options.subject)
    rows = max(1, (options.batch_size or tables.rows_per_step) // hardware.world)
    workload = Workload(tables.name, TablesModel(tables.collection()).to("meta"), tables.loads(rows), rows)
    return workload, sharders_of(workload.model, OptimizerConfig(), 0), []


def _recipe_workload(recipe: Recipe, batch_size: int | None, world: int) -> tuple["Workload", list[Any], list[str]]:
    from sidrec.data.dataset import read_dataset
    from sidrec.parallel.sharding import sharders_of
    from sidrec.plans.workload import recipe_workload

    if batch_size:
        recipe = replace(recipe, data=replace(recipe.data, batch_size=batch_size))
    estimated = recipe_workload(recipe, read_dataset(recipe), world)
    facts = [
        f"a rank looks up about {estimated.unique_items:,.0f} unique items in a step, for {estimated.ids:,.0f} ids of "
        f"targets and histories ({estimated.history_length:.1f} items on average): each unique item is looked up once, "
        "however popular it is"
    ]
    if recipe.data.lanes % world:
        facts.append(f"to train on {world} ranks, set data.lanes ({recipe.data.lanes}) to a multiple of {world}")
    sharders = sharders_of(estimated.workload.model, recipe.optimizer, recipe.seed)
    return estimated.workload, sharders, facts


# sidrec bench: measures plans on the ranks at hand.


BENCH = Subcommands(
    "sidrec bench",
    "Measures sharding plans, and calibrates the costs by which plans are searched.",
    {
        "plans": "measure sharding plans on the ranks at hand",
        "calibrate": "regress the planner's costs on measured plans",
        "page": "draw the page of a result again",
    },
)
BENCH_PLANS = "sidrec bench plans"
MEASURE = describe(
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
class BenchOptions:
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
    keep_all: bool = False
    """Measure all plans in all rounds. Otherwise those whose every step takes more than five times the fastest plan's
    median are dropped after the first round."""
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


def bench(argv: Sequence[str]) -> None:
    """Runs one of the three. Raises ConfigError or ContractError; on all ranks together where there are several."""
    command, words = BENCH.choose(argv)
    if command == "plans":
        _measure_plans(read_before_ranks(lambda: _bench_options(words)))
    elif command == "calibrate":
        options = parse(CalibrateOptions, words, "sidrec bench calibrate", CALIBRATE)
        if not options.benches:
            raise ConfigError("sidrec bench calibrate: expected one BENCH.json or more, got none")

        from sidrec.bench.calibrate import calibrate

        with locked(options.out):
            calibrate(list(options.benches), options.out)
    else:
        drawn = parse(PageOptions, words, "sidrec bench page", DRAW)

        from sidrec.bench.page import write_page
        from sidrec.bench.result import load_bench

        page = drawn.out or drawn.bench.with_suffix(".html")
        with locked(page):
            write_page(load_bench(drawn.bench), page)


def _bench_options(words: Sequence[str]) -> tuple[BenchOptions, list[str]]:
    """The options, and flags for a recipe's values. Raises ConfigError for these, or for a subject that is no file."""
    options, flags = parse(BenchOptions, words, BENCH_PLANS, MEASURE, others=True)
    check_subject(options.subject)
    return options, flags


def _measure_plans(read: Callable[[], tuple[BenchOptions, list[str]]]) -> None:
    """Measures on the ranks at hand, and writes the result and its page.

    read: the options, and flags for a recipe's values. Raises ConfigError or ContractError on all ranks together.
    """
    from sidrec.bench.candidate_plans import check_names
    from sidrec.bench.measure import RESULT, bench_plans
    from sidrec.bench.page import write_page
    from sidrec.bench.ranking import bench_table
    from sidrec.bench.trial import StepCounts
    from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks

    with joined_ranks() as ranks, ExitStack() as at_the_end:
        options, flags = run_on_all_ranks(ranks, read)
        names = options.plans.split(",")
        run_on_all_ranks(ranks, lambda: check_names(names))
        subject = _subject(options, flags, ranks)
        out = options.out or Path("runs/bench") / subject.name
        page = out / "bench.html"
        lock = OutputLock(out)
        at_the_end.callback(lock.release)
        run_on_all_ranks(ranks, lambda: lock.take() if ranks.first else None)
        run_on_all_ranks(ranks, lambda: _check_out(out / RESULT, page, options.overwrite) if ranks.first else None)
        if ranks.first:
            print(
                f"{subject.name}: {len(names)} plan(s) on {ranks.world} rank(s), {ranks.device.type}, "
                f"{ranks.threads} thread(s) each; {subject.rows_per_rank:,} rows per rank and step; result in {out}",
                flush=True,
            )
        steps = StepCounts(options.warm_up, options.steps)
        result = bench_plans(
            subject, names, steps, options.rounds, out, ranks, options.calibration, keep_all=options.keep_all
        )
        if ranks.first:
            write_page(result, page)
            print(f"\n{bench_table(result)}\n{out / RESULT}\n{page}", flush=True)


def _subject(options: BenchOptions, flags: Sequence[str], ranks: "Ranks") -> "Subject":
    """The subject with one batch for each step of a visit, so that all visits see the same batches."""
    from sidrec.bench.subject import recipe_subject, tables_subject
    from sidrec.parallel.process_group import run_on_all_ranks

    found = run_on_all_ranks(ranks, lambda: _read_subject(options, flags))
    batches = options.warm_up + 2 * options.steps
    if isinstance(found, Recipe):
        return recipe_subject(found, batches, ranks)
    return run_on_all_ranks(ranks, lambda: tables_subject(found, batches, ranks))


def _read_subject(options: BenchOptions, flags: Sequence[str]) -> "Recipe | TablesFile":
    from sidrec.bench.subject import with_fewer_rows
    from sidrec.plans.tables_file import is_tables, read_tables

    if not is_tables(options.subject):
        if (options.rows_per_step, options.rows_divisor) != (None, 1):
            got = f"the recipe {options.subject}"
            raise ConfigError(f"--rows-per-step, --rows-divisor: expected a tables file with them, got {got}")
        return load([options.subject, *flags], BENCH_PLANS)
    if flags:
        raise ConfigError(f"{BENCH_PLANS}: expected no flags of a recipe with a tables file, got {' '.join(flags)}")
    tables = with_fewer_rows(read_tables(options.subject), options.rows_divisor)
    return tables if options.rows_per_step is None else replace(tables, rows_per_step=options.rows_per_step)


def _check_out(result: Path, page: Path, overwrite: bool) -> None:
    from sidrec.bench.page import is_page
    from sidrec.bench.result import is_bench

    if obstacle := unwritable(result.parent):
        raise ConfigError(f"--out: expected a folder that can be written, got {obstacle}")
    if result.exists() and not overwrite:
        raise ConfigError(f"{result}: expected no result there, or --overwrite, got one")
    output_file(result, "a bench of plans", is_bench)
    output_file(page, "the page of a bench", is_page)
