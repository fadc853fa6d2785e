"""`sidrec train RECIPE [flags]`: trains a recipe and evaluates it, in this process or on the ranks of torchrun."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torchrec

from sidrec.checkpoint.checkpoint_store import chosen_checkpoint, newest_sound
from sidrec.checkpoint.state import load_model
from sidrec.checkpoint.train_state import (
    Position,
    check_catalog,
    check_own_data,
    read_position,
    restore_random_state,
)
from sidrec.config import Recipe, load
from sidrec.data.dataset import Dataset, independent_levels
from sidrec.data.loader import SplitLoader
from sidrec.errors import CheckpointError, print_warning, printed_warnings
from sidrec.id_maps import IdMaps
from sidrec.io.files import write_json, write_text
from sidrec.metrics.exact import (
    SplitMetrics,
    coverage_table,
    few_users,
    load_metrics,
    metrics_table,
    save_metrics,
    undefined,
)
from sidrec.model.ranker import parameter_budget
from sidrec.parallel.process_group import Ranks, joined_ranks, run_on_all_ranks
from sidrec.plans.plan_file import PlanFile, write_plan
from sidrec.preflight.run_checks import (
    check_same_on_all_ranks,
    check_shared_folder,
    code_facts,
    data_facts,
    recipe_facts,
)
from sidrec.schema import Manifest
from sidrec.train.assembly import announce, build_training, inputs_of, open_dataset, open_loader
from sidrec.train.evaluation import BestCheckpoint, check_splits, evaluate_splits, split_report
from sidrec.train.run_directory import RunDirectory
from sidrec.train.stopping import exit_status
from sidrec.train.tracking import Tracking
from sidrec.train.trainer import Trainer
from sidrec.train.warm_start import find_warm_start, saved_start_facts
from sidrec.train.warnings_of_metrics import split_warnings

ABOUT = "Trains RECIPE from its newest checkpoint, or from the start, and evaluates it."


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, or that of a signal. Raises as `load` and `train` do, on all ranks together."""
    with joined_ranks() as ranks:
        return train(run_on_all_ranks(ranks, lambda: load(argv, "sidrec train", ABOUT)), ranks)


def train(
    recipe: Recipe,
    ranks: Ranks,
    trainer: type[Trainer] = Trainer,
    best_checkpoint: Callable[..., BestCheckpoint] = BestCheckpoint,
) -> int:
    """Trains a recipe from its newest checkpoint, or from the start, and evaluates it.

    trainer, best_checkpoint: called with the arguments of these classes.
    Returns: 0, or the exit status after a signal stopped the run. Raises SidrecErrors on all ranks together. A recipe
    that is refused leaves no run directory behind.
    """
    run = RunDirectory(recipe.run)
    tracking = Tracking()
    try:
        return _train(recipe, run, tracking, ranks, trainer, best_checkpoint)
    finally:
        tracking.close()
        run.lock.release()


def _train(
    recipe: Recipe,
    run: RunDirectory,
    tracking: Tracking,
    ranks: Ranks,
    trainer: type[Trainer],
    best_checkpoint: Callable[..., BestCheckpoint],
) -> int:
    check_same_on_all_ranks(ranks, run_on_all_ranks(ranks, lambda: {**code_facts(), **recipe_facts(recipe)}))
    run_on_all_ranks(ranks, lambda: run.check(recipe))
    check_shared_folder(run.path, ranks)
    run_on_all_ranks(ranks, lambda: run.lock.take() if ranks.first else None)
    announce(ranks, "reading the manifest and the catalog")
    data = open_dataset(recipe, ranks)
    check_same_on_all_ranks(ranks, run_on_all_ranks(ranks, lambda: data_facts(recipe, data.fingerprint)))
    loader = open_loader(recipe, data, recipe.data.train_on, shuffle=True, ranks=ranks)
    check_splits(recipe, data, ranks)
    saved = newest_sound(run.checkpoints, ranks, set_aside=True)
    position = run_on_all_ranks(ranks, lambda: _start_position(saved, recipe, data, loader))
    start = None if saved else find_warm_start(recipe, data, ranks)

    training = build_training(recipe, data, ranks, preflight=True)
    model, optimizer = training.model, training.optimizer
    if saved is not None:
        announce(ranks, f"restoring {saved}")
        load_model(saved, model, optimizer, ranks)
        restore_random_state(saved, position.step, recipe.seed, ranks)
    elif start is not None:
        announce(ranks, "copying what the recipe's section start names")
        start.fill(model, optimizer, ranks)
    start_facts: dict[str, object] = saved_start_facts(run.facts) if saved else {"start": start.facts} if start else {}
    run_on_all_ranks(ranks, lambda: _write_run_files(run, recipe, data, training.plan_file, start_facts, ranks))
    try:
        if ranks.first:
            _print_summary(recipe, data, loader.rows, position, ranks)
            tracking.open(recipe, run, position.step)
        config = recipe.checkpoint.best
        best = best_checkpoint(config, recipe, data, model, position, loader.steps, ranks) if config else None
        loop = trainer(recipe, run, loader, model, optimizer, position, ranks, best, tracking)
        signal = loop.train()
    except Exception:
        if ranks.first:
            run.give_up()
        raise

    if signal:
        return exit_status(signal)
    step = best.best.step if best and best.best else loop.steps
    if step != loop.steps:
        load_model(chosen_checkpoint(run.checkpoints, f"step-{step}", ranks), model, None, ranks)
    metrics = evaluate_splits(recipe, data, model, run, step, ranks, tracking)
    if ranks.first:
        report(run, metrics, data.manifest)
    return 0


def _start_position(saved: Path | None, recipe: Recipe, data: Dataset, loader: SplitLoader) -> Position:
    """Where training resumes or begins. Raises CheckpointError if this log has no such position."""
    id_maps, inputs = data.manifest.id_maps, inputs_of(recipe, data)
    if saved is None:
        return Position(0, 0, 0, data.fingerprint, id_maps=id_maps, inputs=inputs)
    position = read_position(saved)
    check_own_data(saved, position, data, inputs)
    check_catalog(saved, position, data.fingerprint)
    if position.epoch_step >= loader.steps or position.step != position.epoch * loader.steps + position.epoch_step:
        place = f"step {position.step} as step {position.epoch_step} of epoch {position.epoch}"
        raise CheckpointError(
            f"{saved}: expected the log it was trained on, got one of {loader.steps} steps, not {place}"
        )
    return replace(position, id_maps=id_maps, inputs=inputs)  # an earlier version may have written the checkpoint


def _write_run_files(
    run: RunDirectory, recipe: Recipe, data: Dataset, plan: PlanFile, start_facts: dict[str, object], ranks: Ranks
) -> None:
    if ranks.first:
        run.begin(recipe)
        write_text(run.fingerprint, f"{data.fingerprint}\n")
        write_json(run.id_maps, IdMaps(data.manifest.id_maps).to_json())
        write_json(run.facts, _facts(recipe, data, ranks) | start_facts)
        write_plan(run.plan, plan)


def _facts(recipe: Recipe, data: Dataset, ranks: Ranks) -> dict[str, object]:
    return {
        "torch": torch.__version__,
        "torchrec": torchrec.__version__,
        "ranks": ranks.world,
        "device": ranks.device.type if ranks.device.type == "cpu" else torch.cuda.get_device_name(ranks.device),
        "threads_per_rank": ranks.threads,
        "parameters": asdict(parameter_budget(recipe.model, data.sizes)),
    }


def _start_text(recipe: Recipe, position: Position) -> str:
    if position.step:
        return f"resuming after step {position.step}"
    sources = [str(recipe.start.checkpoint)] if recipe.start.checkpoint else []
    sources += recipe.start.tables.values()
    return f"from the start, with what is in {', '.join(sources)}" if sources else "from the start"


def _print_summary(recipe: Recipe, data: Dataset, rows: int, position: Position, ranks: Ranks) -> None:
    if warning := independent_levels(recipe):
        print_warning(warning)
    tables = ", ".join(f"{name} {table.rows:,}" for name, table in data.sizes.item_tables.items())
    print(
        f"{recipe.name}, seed {recipe.seed}: {rows:,} {'+'.join(recipe.data.train_on)} rows, item tables {tables}\n"
        f"{ranks.world} rank(s) on {ranks.device.type}, {ranks.threads} thread(s) each (cores / ranks); "
        f"{f'sharding plan {recipe.parallel.plan}; ' if recipe.parallel.plan else ''}"
        f"{_start_text(recipe, position)}; "
        f"run directory {recipe.run}",
        flush=True,
    )


def report(run: RunDirectory, metrics: SplitMetrics, log: Manifest) -> None:
    """Writes metrics.json and the gate's picture; prints the metrics and a line each about attention and gate.

    log: the manifest of the log that was scored.
    Splits in an existing metrics.json that are not among `metrics` are kept.
    """
    before = load_metrics(run.metrics) if run.metrics.exists() else {}
    save_metrics({**before, **metrics}, run.metrics)
    print(metrics_table(metrics))
    print(coverage_table(metrics))
    for line in undefined(metrics):
        print(line)
    lines = [*few_users(metrics), *split_warnings(log)]
    lines += [line for split in metrics for line in split_report(run, split, metrics[split])]
    for line in lines:
        print(line)
    _record_warnings(run, [*printed_warnings, *(line for line in lines if line.startswith(WARNING))])
    print(f"{'run directory' if run.config.exists() else 'results'}: {run.path}", flush=True)


WARNING = "warning: "


def _record_warnings(run: RunDirectory, found: Sequence[str]) -> None:
    """Adds lines to warnings.txt, each once, over all processes of the run."""
    before = run.warnings.read_text(encoding="utf-8").splitlines() if run.warnings.exists() else []
    lines = dict.fromkeys([*before, *(" ".join(line.removeprefix(WARNING).split()) for line in found)])
    if lines:
        write_text(run.warnings, "".join(f"{line}\n" for line in lines))
