"""`sidrec evaluate RUN [SPLIT ...]`: a run's metrics again, from its newest checkpoint alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sidrec.config import ConfigError
from sidrec.parallel.process_group import joined_ranks, together
from sidrec.train import checkpoint
from sidrec.train.assembly import build_model
from sidrec.train.data import Data, open_data
from sidrec.train.evaluation import check_splits, evaluate_splits
from sidrec.train.report import report
from sidrec.train.run_directory import RunDirectory

HELP = """usage: sidrec evaluate RUN [SPLIT ...]

Computes the metrics of a run again, from its newest checkpoint alone, and writes metrics.json and the predictions.

  RUN      a run directory, as `sidrec train` makes it: RUNS/NAME/seedN
  SPLIT    splits of the log; those of the run's recipe where none is given"""


def main(argv: Sequence[str]) -> None:
    """Evaluates RUN on the splits given, or on those of its recipe; writes metrics.json and predictions.

    Raises ConfigError when RUN is no run directory or holds no checkpoint, ContractError when the catalog is another.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(HELP)
        return
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"sidrec evaluate: expected a run directory, got {argv[0] if argv else 'nothing'}")
    run = RunDirectory(Path(argv[0]))
    with joined_ranks() as ranks:
        recipe = together(ranks, run.recipe)
        recipe = replace(recipe, parallel=replace(recipe.parallel, plan=None))  # it is for the ranks that trained
        if argv[1:]:
            recipe = replace(recipe, evaluate=replace(recipe.evaluate, splits=tuple(argv[1:])))
        data = open_data(recipe, ranks)
        check_splits(recipe, data, ranks)
        saved = together(ranks, lambda: _trained(run, data))
        sharded = build_model(recipe, data, ranks)
        checkpoint.load(saved, sharded.model, None, ranks)
        metrics = evaluate_splits(recipe, data, sharded.model, run, ranks)
        if ranks.first:
            report(run, metrics)


def _trained(run: RunDirectory, data: Data) -> Path:
    saved = checkpoint.newest(run.checkpoints)
    if saved is None:
        raise ConfigError(f"{run.checkpoints}: expected a checkpoint, got none")
    checkpoint.read_position(saved, data.fingerprint)
    return saved
