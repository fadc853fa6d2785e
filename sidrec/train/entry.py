"""`sidrec train RECIPE [flags]`: trains a recipe and evaluates it, in this process or on the ranks of torchrun."""

from collections.abc import Sequence

import torch
import torchrec

from sidrec.config import Recipe, load
from sidrec.parallel.plan import plan_as_json
from sidrec.parallel.process_group import Ranks, agree, joined_ranks
from sidrec.train import checkpoint
from sidrec.train.assembly import Data, build_model, open_data, open_loader
from sidrec.train.checkpoint import Position
from sidrec.train.evaluation import evaluate_splits
from sidrec.train.loop import Trainer
from sidrec.train.optimizers import build_optimizer
from sidrec.train.report import report
from sidrec.train.run_directory import RunDirectory, write_json, write_text


def main(argv: Sequence[str]) -> None:
    """Trains. Raises ConfigError, ContractError or PlanError, on all ranks together."""
    recipe = load(argv, prog="sidrec train")
    with joined_ranks() as ranks:
        train(recipe, ranks)


def train(recipe: Recipe, ranks: Ranks) -> None:
    """A recipe from its newest checkpoint, or from the start, to metrics.json."""
    run = RunDirectory(recipe.run)
    data = open_data(recipe, ranks)
    loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
    _begin(run, recipe, data, ranks)

    sharded = build_model(recipe, data, ranks)
    optimizer = build_optimizer(sharded.model, recipe.optimizer, recipe.model.embedding_dim)
    position = Position(step=0, epoch=0, epoch_step=0, catalog=data.fingerprint)
    saved = checkpoint.newest(run.checkpoints)
    if saved is not None:
        position = checkpoint.read_position(saved, data.fingerprint)
        checkpoint.load(saved, sharded.model, optimizer, ranks)
    if ranks.first:
        write_json(run.plan, plan_as_json(sharded.plan))
        _say_what_runs(recipe, data, position, ranks)

    Trainer(recipe, run, loader, sharded.model, optimizer, position, ranks).train()

    metrics = evaluate_splits(recipe, data, sharded.model, run, ranks)
    if ranks.first:
        report(run, metrics)


def _begin(run: RunDirectory, recipe: Recipe, data: Data, ranks: Ranks) -> None:
    """Makes the run directory; a directory of another recipe stops all ranks."""
    error: Exception | None = None
    if ranks.first:
        try:
            run.begin(recipe)
            write_text(run.fingerprint, f"{data.fingerprint}\n")
            write_json(run.facts, _facts(ranks))
        except (OSError, ValueError) as problem:
            error = problem
    agree(ranks, error)


def _facts(ranks: Ranks) -> dict[str, object]:
    return {
        "torch": torch.__version__,
        "torchrec": torchrec.__version__,
        "ranks": ranks.world,
        "device": ranks.device.type if ranks.device.type == "cpu" else torch.cuda.get_device_name(ranks.device),
        "threads_per_rank": ranks.threads,
    }


def _say_what_runs(recipe: Recipe, data: Data, position: Position, ranks: Ranks) -> None:
    tables = ", ".join(f"{name} {rows:,}" for name, rows in data.sizes.item_rows.items())
    print(
        f"{recipe.name}, seed {recipe.seed}: {data.manifest.rows('train'):,} train rows, item tables {tables}\n"
        f"{ranks.world} rank(s) on {ranks.device.type}, {ranks.threads} thread(s) each (cores / ranks); "
        f"{'from the start' if position.step == 0 else f'resuming after step {position.step}'}; "
        f"run directory {recipe.run}",
        flush=True,
    )
