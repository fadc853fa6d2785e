"""Runs that save in the middle, and runs that go on from there on another plan."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import distributed as dist

from benchmarks.reshard_matrix.rankers import build_ranker
from sidrec.checkpoint.dcp_storage import save_shards
from sidrec.checkpoint.rowwise_adagrad_reshard import Columns
from sidrec.checkpoint.state import load_model, state_shards
from sidrec.config import Recipe
from sidrec.data.batch import Batch
from sidrec.data.dataset import Dataset
from sidrec.errors import SidrecError
from sidrec.parallel.process_group import Ranks
from sidrec.train.assembly import open_dataset, open_loader
from sidrec.train.stopping import synced_batches

SAVED_AFTER, STEPS = 3, 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """An optimizer, a sharding type and a number of ranks."""

    optimizer: str
    sharding: str
    world: int

    def checkpoint(self, folder: Path) -> Path:
        """Where its run saves."""
        return folder / f"{self.optimizer}-{self.sharding}-{self.world}"


@dataclass(frozen=True)
class Run:
    """A run's losses after it has saved, or has loaded. columns: how each table's are cut.

    start: the plan that saved what it has loaded, if it has. refusal: why it could not.
    """

    plan: Plan
    start: Plan | None
    losses: tuple[float, ...]
    columns: dict[str, list[Columns]]
    refusal: str | None = None


def save_runs(recipe: Recipe, optimizers: Sequence[str], kinds: Sequence[str], folder: Path, ranks: Ranks) -> list[Run]:
    """Trains each optimizer with each sharding type from the start; saves after SAVED_AFTER steps, and trains on."""
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, STEPS, ranks)
    runs = []
    for optimizer in optimizers:
        for sharding in kinds:
            ranker = build_ranker(recipe, data, optimizer, sharding, ranks)
            ranker.train(batches[:SAVED_AFTER])
            plan = Plan(optimizer, sharding, ranks.world)
            path = plan.checkpoint(folder)
            if ranks.first:
                path.mkdir(parents=True)
            dist.barrier(group=ranks.control)
            save_shards(path, state_shards(ranker.model, ranker.optimizer, ranks), ranks.rank, ranks.control)
            runs.append(Run(plan, None, tuple(ranker.train(batches[SAVED_AFTER:])), ranker.columns()))
    return runs


def load_runs(recipe: Recipe, saved: Sequence[Run], kinds: Sequence[str], folder: Path, ranks: Ranks) -> list[Run]:
    """Goes on from each saved run with each sharding type, on these ranks."""
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, STEPS, ranks)[SAVED_AFTER:]
    runs: list[Run] = []
    began = time.monotonic()
    for optimizer in dict.fromkeys(run.plan.optimizer for run in saved):
        starts = [run.plan for run in saved if run.plan.optimizer == optimizer]
        for sharding in kinds:
            ranker = build_ranker(recipe, data, optimizer, sharding, ranks)
            plan, columns = Plan(optimizer, sharding, ranks.world), ranker.columns()
            for start in starts:
                try:
                    load_model(start.checkpoint(folder), ranker.model, ranker.optimizer, ranks)
                    runs.append(Run(plan, start, tuple(ranker.train(batches)), columns))
                except SidrecError as refusal:
                    runs.append(Run(plan, start, (), columns, str(refusal)))
            if ranks.first:
                _say(len(runs), len(saved) * len(kinds), began, ranks)
    return runs


def first_batches(recipe: Recipe, data: Dataset, steps: int, ranks: Ranks) -> list[Batch]:
    """This rank's first batches of the train split."""
    batches = open_loader(recipe, data, "train", shuffle=True, ranks=ranks).batches(0)
    return list(synced_batches(islice(batches, steps), steps, ranks))


def _say(done: int, cases: int, began: float, ranks: Ranks) -> None:
    left = (time.monotonic() - began) * (cases - done) / done
    log.info("loaded on %d rank(s): %d of %d cases, %.0f s left", ranks.world, done, cases, left)
