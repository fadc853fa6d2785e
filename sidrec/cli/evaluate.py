"""`sidrec evaluate RUN [SPLIT ...]`: computes a run's metrics again, from a checkpoint alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from sidrec.cli.arguments import read_before_ranks
from sidrec.command_line import describe, metavar, parse
from sidrec.config.section import section
from sidrec.errors import ConfigError
from sidrec.text import near_file

HELP = describe(
    "Computes the metrics of a run again, from a checkpoint alone, and writes metrics.json and the predictions.",
    "sidrec evaluate runs/demo/seed0 test --checkpoint best",
)


@section
class EvaluateOptions:
    """What to evaluate."""

    run: tyro.conf.Positional[Annotated[Path, metavar("RUN")]]
    """Run directory, as `sidrec train` makes it: RUNS/NAME/seedN."""
    splits: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("[SPLIT ...]", "those of the run's recipe")]] = ()
    """Splits of the log."""
    checkpoint: Annotated[str | None, metavar("{newest,best,step-N}", "best if the run keeps one, else newest")] = None
    """Checkpoint to evaluate."""


def main(argv: Sequence[str]) -> None:
    """Evaluates RUN; writes metrics.json and predictions.

    Raises ConfigError if RUN is no run directory or holds no checkpoint, ContractError if the catalog has changed; on
    all ranks together.
    """
    read = read_before_ranks(lambda: _options(argv))

    from sidrec.checkpoint.checkpoint_store import chosen_checkpoint
    from sidrec.checkpoint.state import load_model
    from sidrec.checkpoint.train_state import check_catalog, read_position
    from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks
    from sidrec.train.assembly import build_training, open_dataset
    from sidrec.train.evaluation import check_splits, evaluate_splits
    from sidrec.train.run import report
    from sidrec.train.run_directory import RunDirectory

    with joined_ranks() as ranks:
        options = run_on_all_ranks(ranks, read)
        run = RunDirectory(options.run)
        recipe = run_on_all_ranks(ranks, run.recipe)
        recipe = replace(recipe, parallel=replace(recipe.parallel, plan=None))  # made for the ranks of the training
        if options.splits:
            recipe = replace(recipe, evaluate=replace(recipe.evaluate, splits=options.splits))
        data = open_dataset(recipe, ranks)
        check_splits(recipe, data, ranks)
        saved = chosen_checkpoint(run.checkpoints, options.checkpoint, ranks)
        position = run_on_all_ranks(ranks, lambda: read_position(saved))
        run_on_all_ranks(ranks, lambda: check_catalog(saved, position, data.fingerprint))
        sharded = build_training(recipe, data, ranks)
        load_model(saved, sharded.model, None, ranks)
        metrics = evaluate_splits(recipe, data, sharded.model, run, position.step, ranks)
        if ranks.first:
            report(run, metrics)


def _options(words: Sequence[str]) -> EvaluateOptions:
    options = parse(EvaluateOptions, words, "sidrec evaluate", HELP)
    which = options.checkpoint
    if which not in (None, "newest", "best") and not which.removeprefix("step-").isdecimal():
        raise ConfigError(f"--checkpoint: expected newest, best or step-N, got {which or 'nothing'}")
    if not (options.run / "config.yaml").is_file():
        raise ConfigError(f"{options.run}: expected a run directory with config.yaml, got none{near_file(options.run)}")
    return options
