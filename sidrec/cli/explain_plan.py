"""What `sidrec plan` does: searches a plan for a recipe or a tables file, explains it, and exports it."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn
from torchrec.distributed.types import ModuleSharder

from sidrec.cli.plan import PlanOptions
from sidrec.config import ConfigError, Recipe, load_file
from sidrec.config.recipe import OptimizerConfig
from sidrec.data.dataset import read_dataset
from sidrec.io.output_folders import output_file
from sidrec.machine import unwritable
from sidrec.parallel.sharding import sharders_of
from sidrec.plans.cost import CalibratedCost, CostModel, TorchRecCost, load_calibration
from sidrec.plans.explain import explain, explanation_text
from sidrec.plans.hardware import EXAMPLES, Hardware, bytes_of, named_hardware, with_ranks
from sidrec.plans.options import sharding_plan
from sidrec.plans.plan_file import is_plan, plan_file_of, write_plan
from sidrec.plans.search import Progress, search
from sidrec.plans.tables_file import TablesModel, is_tables, read_tables
from sidrec.plans.workload import Workload, recipe_workload

FIRST_PROGRESS = 3.0
"""Seconds of search before the first progress line."""
PROGRESS_INTERVAL = 2.0
"""Seconds between progress lines of one stage."""


def explain_plan(options: PlanOptions) -> None:
    """Searches a plan, prints its explanation, exports it.

    Raises ConfigError, ContractError, and NoPlanError if nothing fits.
    """
    hardware = _hardware(options)
    if options.export and (obstacle := unwritable(options.export.parent)):
        raise ConfigError(f"--export: expected a folder that can be written, got {obstacle}")
    export = output_file(options.export, "a sharding plan", is_plan) if options.export else None
    cost: CostModel = TorchRecCost()
    if options.calibration:
        cost = CalibratedCost(load_calibration(options.calibration, hardware.device))
    workload, sharders, facts = _workload(options, hardware)
    started, cpu_started = time.monotonic(), time.process_time()
    found = search(workload, hardware, sharders, cost, options.forced, search_progress(started))
    explained = explain(found, workload, hardware, sharders, cost)
    explained = replace(explained, remarks=[*facts, *explained.remarks])
    took = f"{time.monotonic() - started:.1f} s, {time.process_time() - cpu_started:.1f} s of them CPU time"
    print(json.dumps(explained.as_json()) if options.json else f"{explanation_text(explained)}\n\n{took}")
    if export:
        plan = sharding_plan(found[0].options, hardware)
        layout = plan_file_of(plan, workload.model, hardware.world, hardware.local_world, hardware.device)
        export.parent.mkdir(parents=True, exist_ok=True)
        write_plan(export, layout)
        print(f"plan: {options.export}", file=sys.stderr)


def _hardware(options: PlanOptions) -> Hardware:
    if options.hardware and options.device:
        raise ConfigError(f"--device: expected none beside --hardware {options.hardware}, got {options.device}")
    name = options.hardware or {"cuda": "8xa100", "cpu": "cpu", None: "cpu"}[options.device]
    hardware = with_ranks(named_hardware(name), options.world, options.local_world)
    if options.hbm:
        if hardware.device == "cpu":
            raise ConfigError(f"--hbm: expected hardware with GPUs, such as {EXAMPLES.split(', ')[-1]}, got {name}")
        hardware = replace(hardware, hbm=bytes_of(options.hbm))
    return replace(hardware, ddr=bytes_of(options.ddr)) if options.ddr else hardware


def _workload(options: PlanOptions, hardware: Hardware) -> tuple[Workload, list[ModuleSharder[nn.Module]], list[str]]:
    """The workload, its sharders, and remarks on how the workload was estimated."""
    if not is_tables(options.subject):
        return _of_recipe(load_file(Path(options.subject)), options.batch_size, hardware.world)
    tables = read_tables(options.subject)
    rows = max(1, (options.batch_size or tables.rows_per_step) // hardware.world)
    workload = Workload(tables.name, TablesModel(tables.collection()).to("meta"), tables.loads(rows), rows)
    return workload, sharders_of(workload.model, OptimizerConfig(), 0), []


def _of_recipe(
    recipe: Recipe, batch_size: int | None, world: int
) -> tuple[Workload, list[ModuleSharder[nn.Module]], list[str]]:
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


def search_progress(started: float, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress callback: prints the stage of a long search, and the time that the stage still takes, on stderr."""
    stage_started = printed = started

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal stage_started, printed
        now = clock()
        stage_started = stage_started if done else now
        if now - started < FIRST_PROGRESS or (done and now - printed < PROGRESS_INTERVAL):
            return
        printed = now
        left = f", {done} of {total}, about {(now - stage_started) / done * (total - done):.0f} s more" if done else ""
        print(f"{now - started:.0f} s: {stage}{left}", file=sys.stderr, flush=True)

    return progress
