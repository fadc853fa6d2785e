"""`sidrec plan SUBJECT`: a sharding plan for hardware that need not be there, and why it is as it is."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import tyro
from pydantic import PositiveInt, TypeAdapter
from torch import nn
from torchrec.distributed.types import ModuleSharder

from sidrec.config import ConfigError, Recipe, load_file
from sidrec.config.load import checked_flags
from sidrec.config.recipe import OptimizerConfig
from sidrec.config.section import section
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

SAYS_AFTER = 3.0
"""Seconds after which the search tells what it is at."""
SAYS_EVERY = 2.0
"""Seconds until it says so again of the same part."""


ABOUT = """Makes a sharding plan for hardware that need not be there, says why it is as it is, and keeps it as a file
that training and sidrec bench plans take."""


@section
class Options:
    """What to plan for."""

    subject: tyro.conf.Positional[str]
    """A recipe (YAML), a tables file (YAML), or criteo-mlperf, the tables of MLPerf's DLRM-DCNv2."""
    hardware: str | None = None
    """Machines by name, such as cpu, 8xa100, 8xh100, 16x8h100; cpu where neither this nor --device is given."""
    device: Literal["cpu", "cuda"] | None = None
    """In the place of --hardware: CPU processes, or machines of 8 A100s."""
    world: PositiveInt | None = None
    """Ranks in all, where they are not those of the hardware's name."""
    local_world: PositiveInt | None = None
    """Ranks of one machine."""
    hbm: str | None = None
    """Memory of a GPU, as 80GB."""
    ddr: str | None = None
    """Memory of a machine for each of its ranks, as 64GB."""
    batch_size: PositiveInt | None = None
    """Rows of a step over all ranks, in the place of the recipe's or the tables file's."""
    forced: str | None = None
    """One sharding type for every table."""
    calibration: Path | None = None
    """What work costs on these machines, as sidrec bench calibrate wrote it, in the place of TorchRec's constants."""
    export: Path | None = None
    """File to write the plan to; a plan that is there is replaced."""
    json: bool = False
    """Print JSON in the place of text."""


_OPTIONS: TypeAdapter[Options] = TypeAdapter(Options)


def main(argv: Sequence[str]) -> None:
    """Plans and explains. Raises ConfigError (NoPlanError where nothing fits) or ContractError."""
    options = _options(argv)
    hardware = _hardware(options)
    if options.export and (obstacle := unwritable(options.export.parent)):
        raise ConfigError(f"--export: expected a folder that can be written, got {obstacle}")
    export = output_file(options.export, "a sharding plan", is_plan) if options.export else None
    cost: CostModel = TorchRecCost()
    if options.calibration:
        cost = CalibratedCost(load_calibration(options.calibration, hardware.device))
    workload, sharders, facts = _workload(options, hardware)
    started, cpu_started = time.monotonic(), time.process_time()
    found = search(workload, hardware, sharders, cost, options.forced, _teller(started))
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


def _options(words: Sequence[str]) -> Options:
    return checked_flags(_OPTIONS, tyro.cli(Options, args=list(words), prog="sidrec plan", description=ABOUT))


def _hardware(options: Options) -> Hardware:
    if options.hardware and options.device:
        raise ConfigError(f"--device: expected none beside --hardware {options.hardware}, got {options.device}")
    name = options.hardware or {"cuda": "8xa100", "cpu": "cpu", None: "cpu"}[options.device]
    hardware = with_ranks(named_hardware(name), options.world, options.local_world)
    if options.hbm:
        if hardware.device == "cpu":
            raise ConfigError(f"--hbm: expected hardware with GPUs, such as {EXAMPLES.split(', ')[-1]}, got {name}")
        hardware = replace(hardware, hbm=bytes_of(options.hbm))
    return replace(hardware, ddr=bytes_of(options.ddr)) if options.ddr else hardware


def _workload(options: Options, hardware: Hardware) -> tuple[Workload, list[ModuleSharder[nn.Module]], list[str]]:
    """The workload, its sharders, and sentences on how it was reckoned."""
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
    reckoned = recipe_workload(recipe, read_dataset(recipe), world)
    facts = [
        f"a rank looks up about {reckoned.unique_items:,.0f} unique items in a step, for {reckoned.ids:,.0f} ids of "
        f"targets and histories ({reckoned.history_length:.1f} items on average): each is looked up once, so popular "
        "rows draw no more than that"
    ]
    if recipe.data.lanes % world:
        facts.append(f"to train on {world} ranks, set data.lanes ({recipe.data.lanes}) to a multiple of {world}")
    sharders = sharders_of(reckoned.workload.model, recipe.optimizer, recipe.seed)
    return reckoned.workload, sharders, facts


def _teller(started: float) -> Progress:
    """Says on stderr what the search is at, once it has taken a while, and how long the rest of that part will take."""
    began = said = started

    def tell(stage: str, done: int, of: int) -> None:
        nonlocal began, said
        now = time.monotonic()
        began = began if done else now
        if now - started < SAYS_AFTER or (done and now - said < SAYS_EVERY):
            return
        said = now
        left = f", {done} of {of}, about {(now - began) / done * (of - done):.0f} s more" if done else ""
        print(f"{now - started:.0f} s: {stage}{left}", file=sys.stderr, flush=True)

    return tell
