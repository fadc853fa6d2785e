"""Assembles a run on this rank: dataset, loaders, then plan, preflight, shards and optimizer.

Shared by train, evaluate, the doctor's measured run, benchmarks and tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from sidrec.checkpoint.train_state import Inputs
from sidrec.config import Recipe
from sidrec.data.dataset import Dataset, assemble_dataset, check_item_ids, fit_item_subwords, read_contracts
from sidrec.data.loader import SplitLoader, columns_of, open_split
from sidrec.model.ranker import Ranker
from sidrec.parallel.planning import hardware_of, local_world, make_plan
from sidrec.parallel.precision import check_formats, check_plan, exchange_codecs, set_matrix_products, table_params
from sidrec.parallel.process_group import Ranks, broadcast_object, run_on_all_ranks
from sidrec.parallel.sharding import shard, sharders_of
from sidrec.plans.hardware import Hardware
from sidrec.plans.plan_file import PlanFile, plan_file_of
from sidrec.plans.workload import RecipeWorkload, Workload, recipe_workload
from sidrec.preflight.resource_estimate import PlannedRun
from sidrec.preflight.run_checks import check_run
from sidrec.train.optimizers import ScheduledOptimizer, build_optimizer


def open_dataset(recipe: Recipe, ranks: Ranks, *, moments: bool = True) -> Dataset:
    """Reads manifest and catalog and checks them against the recipe, on all ranks together.

    moments: see `assemble_dataset`. Rank 0 learns the subwords and broadcasts them, because machines may round
    differently. Raises ConfigError or ContractError, before anything is allocated.
    """
    manifest, catalog = run_on_all_ranks(ranks, lambda: read_contracts(recipe))
    run_on_all_ranks(ranks, lambda: check_item_ids(recipe, manifest, catalog) if ranks.first else None)
    fitted = run_on_all_ranks(ranks, lambda: fit_item_subwords(recipe, manifest, catalog) if ranks.first else None)
    subwords = broadcast_object(ranks, fitted)
    return run_on_all_ranks(ranks, lambda: assemble_dataset(recipe, manifest, catalog, subwords, moments=moments))


def open_loader(recipe: Recipe, data: Dataset, split: str | Sequence[str], shuffle: bool, ranks: Ranks) -> SplitLoader:
    """This rank's batches of a split. Raises ConfigError or ContractError on all ranks together."""
    return run_on_all_ranks(
        ranks,
        lambda: open_split(
            recipe.data,
            recipe.model,
            split,
            rank=ranks.rank,
            world=ranks.world,
            seed=recipe.seed,
            shuffle=shuffle,
            tables=data.tables,
            manifest=data.manifest,
            context_rows=data.sizes.context_rows,
            local_world=local_world(ranks),
            pin_memory=ranks.device.type == "cuda",
        ),
    )


def inputs_of(recipe: Recipe, data: Dataset) -> Inputs:
    """The columns of numbers and lists that the recipe's model reads from this log."""
    dense = columns_of(recipe.data, recipe.model, data.manifest).log.dense
    return Inputs.of(data.manifest, dense, recipe.model.context)


@dataclass(frozen=True)
class Training:
    """This rank's sharded model and optimizer. plan: which rank holds which table. plan_file: `plan` in plan.json."""

    model: DistributedModelParallel
    optimizer: ScheduledOptimizer
    plan: ShardingPlan
    plan_file: PlanFile


def build_training(recipe: Recipe, data: Dataset, ranks: Ranks, *, preflight: bool = False) -> Training:
    """Plans, checks, shards and fills the ranker. recipe.seed makes the dense layers equal on every rank.

    preflight: print the stages, and check the planned run before a table is allocated. Raises ConfigError for
    formats that the device or the plan does not have; as `make_plan` and, with `preflight`, as `check_run` do; on all
    ranks together.
    """
    precision, device = recipe.precision, ranks.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    run_on_all_ranks(ranks, lambda: check_formats(precision, recipe.parallel, device.type, capability))
    set_matrix_products(precision)
    torch.manual_seed(recipe.seed)
    ranker = Ranker(recipe.model, data.sizes, precision=precision, device=device.type)
    estimate = WorkloadEstimate(recipe, data, ranks.world)
    params = table_params(precision, recipe.parallel)
    sharders = sharders_of(ranker, recipe.optimizer, recipe.seed, params, exchange_codecs(precision, device))
    if preflight:
        announce(ranks, "planning which rank holds which table")
    plan = make_plan(ranker, sharders, recipe.parallel, estimate.workload, ranks)
    run_on_all_ranks(ranks, lambda: check_plan(precision, recipe.parallel, plan))
    plan_file = plan_file_of(plan, ranker, ranks.world, local_world(ranks), ranks.device.type)
    if preflight:
        check_run(recipe, lambda: planned_run(recipe, data, estimate.full, hardware_of(ranks), plan), ranks)
        announce(ranks, "allocating and filling tables")
    model = shard(ranker, plan, sharders, recipe.seed, ranks)
    optimizer = build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim, by_flag=ranks.runs_ahead)
    return Training(model, optimizer, plan, plan_file)


@dataclass
class WorkloadEstimate:
    """A run's workload, estimated on first use: this reads a sample of the log, and only rank 0 needs it."""

    recipe: Recipe
    data: Dataset
    world: int

    @cached_property
    def full(self) -> RecipeWorkload:
        return recipe_workload(self.recipe, self.data, self.world)

    def workload(self) -> Workload:
        return self.full.workload


def announce(ranks: Ranks, stage: str) -> None:
    """Prints a stage of the start, on rank 0."""
    if ranks.first:
        print(f"start: {stage}", flush=True)


def planned_run(
    recipe: Recipe, data: Dataset, estimate: RecipeWorkload, hardware: Hardware, plan: ShardingPlan
) -> PlannedRun:
    """The run that the preflight checks: `plan` on `hardware`, nothing allocated yet."""
    return PlannedRun(
        recipe=recipe,
        manifest=data.manifest,
        tables=data.tables,
        sizes=data.sizes,
        workload=estimate.workload,
        unique_items=estimate.unique_items,
        hardware=hardware,
        plan=plan,
        sharders=sharders_of(estimate.workload.model, recipe.optimizer, recipe.seed),
    )
