"""A small recipe as it is planned, for tests of what it needs."""

from pathlib import Path

import torch

from sidrec.config import Recipe
from sidrec.data.dataset import read_dataset
from sidrec.parallel.planning import hardware_here, plan_for
from sidrec.parallel.sharding import sharders_of
from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import recipe_workload
from sidrec.preflight.resource_estimate import PlannedRun
from sidrec.train.assembly import planned_run
from tests.small_log import small_recipe, write_small_log

CPU = torch.device("cpu")


def planned(recipe: Recipe, world: int, hardware: Hardware | None = None) -> PlannedRun:
    """By the plan that training would take on `world` ranks of this machine, or of `hardware`."""
    data = read_dataset(recipe)
    reckoned = recipe_workload(recipe, data, world)
    model, hardware = reckoned.workload.model, hardware or hardware_here(CPU, world, world)
    sharders = sharders_of(model, recipe.optimizer, recipe.seed)
    plan = plan_for(model, sharders, recipe.parallel, lambda: reckoned.workload, hardware)
    return planned_run(recipe, data, reckoned, hardware, plan)


def small_run(folder: Path, world: int, rows: int = 600, **sections: object) -> PlannedRun:
    """Writes the small log into `folder` and plans its recipe."""
    return planned(small_recipe(write_small_log(folder, rows=rows), **sections), world)
