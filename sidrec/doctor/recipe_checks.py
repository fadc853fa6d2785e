"""Checks of a recipe on this machine: those of training itself, a sample of rows, checksums, the duration."""

from collections.abc import Sequence
from dataclasses import replace

import psutil
import torch

from sidrec.config import Recipe
from sidrec.data.dataset import Dataset, read_dataset
from sidrec.data.loader import open_split
from sidrec.doctor.measured_run import duration_finding, logged_rate, measure
from sidrec.errors import SidrecError
from sidrec.parallel.planning import hardware_here, plan_for
from sidrec.parallel.sharding import sharders_of
from sidrec.plans.options import silenced_planner
from sidrec.plans.workload import recipe_workload
from sidrec.preflight import Finding, problems
from sidrec.preflight.capacity_check import available_resources
from sidrec.preflight.data_checks import FILES
from sidrec.preflight.data_sample import checksum_finding, id_map_findings, read_sample, sample_findings
from sidrec.preflight.resource_estimate import PlannedRun
from sidrec.preflight.run_checks import read_split_footers, run_findings
from sidrec.schema import LOG
from sidrec.text import byte_size
from sidrec.train.assembly import planned_run
from sidrec.train.run_directory import RunDirectory

TORCHRUN = 145 << 20
"""Private bytes of the torchrun process (measured)."""


def examine_recipe(recipe: Recipe, world: int | None, *, measured: bool, all_files: bool) -> list[Finding]:
    """Findings on a run of the recipe on `world` ranks of this machine; None means one rank for each GPU, or one.

    measured: train some steps, to estimate the duration. all_files: read all rows and files instead of a sample.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ranks = world or (torch.cuda.device_count() if device.type == "cuda" else 1)
    try:
        run = plan_here(recipe, device, ranks)
        footers = read_split_footers(run, None if all_files else FILES)
        starting = psutil.Process().memory_full_info().uss + (TORCHRUN // ranks if ranks > 1 else 0)
        available = [available_resources(recipe.run, _device(device, rank)) for rank in range(ranks)]
        findings = [_plan_finding(run), *run_findings(run, available, footers, starting)]
        findings += _data(run, list(footers), all_files)
    except SidrecError as error:
        return [Finding("recipe", "problem", str(error))]
    return [*findings, *_duration(run, measured and not problems(findings))]


def _device(device: torch.device, rank: int) -> torch.device:
    return torch.device("cuda", rank % torch.cuda.device_count()) if device.type == "cuda" else device


def plan_here(recipe: Recipe, device: torch.device, world: int) -> PlannedRun:
    """The plan of the recipe on `world` ranks of this machine.

    Raises ConfigError or ContractError for whatever training would refuse.
    """
    RunDirectory(recipe.run).check(recipe)
    data = read_dataset(recipe)
    for splits in (recipe.data.train_on, *((split,) for split in recipe.evaluate.splits)):
        _check_split(recipe, data, splits, world)
    hardware = hardware_here(device, world, world)
    expected = recipe_workload(recipe, data, world)
    model = expected.workload.model
    sharders = sharders_of(model, recipe.optimizer, recipe.seed)
    with silenced_planner():
        plan = plan_for(model, sharders, recipe.parallel, lambda: expected.workload, hardware)
    return planned_run(recipe, data, expected, hardware, plan)


def _check_split(recipe: Recipe, data: Dataset, splits: tuple[str, ...], world: int) -> None:
    """Checks that every file of the splits exists and that the lanes divide among the ranks."""
    open_split(
        replace(recipe.data, workers=0),
        recipe.model,
        splits,
        rank=0,
        world=world,
        seed=recipe.seed,
        shuffle=splits == recipe.data.train_on,
        tables=data.tables,
        manifest=data.manifest,
    )


def _plan_finding(run: PlannedRun) -> Finding:
    kinds: dict[str, int] = {}
    for tables in run.plan.plan.values():
        for layout in dict(tables).values():
            kinds[layout.sharding_type] = kinds.get(layout.sharding_type, 0) + 1
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return Finding("plan", "ok", f"{sum(kinds.values())} table(s) on {run.hardware.world} rank(s): {counts}")


def _data(run: PlannedRun, splits: Sequence[str], all_files: bool) -> list[Finding]:
    log = run.recipe.data.path / LOG
    manifest = run.columns.log
    samples = {split: read_sample(log, manifest, split, whole=all_files, label=run.columns.label) for split in splits}
    checksums = checksum_finding(log, manifest, splits, whole=all_files)
    return [*sample_findings(samples), checksums, *id_map_findings(run.recipe.data.path, manifest)]


def _duration(run: PlannedRun, measured: bool) -> list[Finding]:
    rows, world = sum(map(run.manifest.rows, run.recipe.data.train_on)), run.hardware.world
    if not measured:
        return [duration_finding(run.recipe, rows, logged_rate(run.recipe, world))]
    try:
        rate, memory = measure(run.recipe, world)
    except SidrecError as error:
        return [Finding("measured steps", "problem", str(error))]
    found = f"ranks and loader processes have {byte_size(memory)} of private memory after the measured steps"
    return [duration_finding(run.recipe, rows, rate), Finding("measured memory", "ok", found)]
