"""`sidrec evaluate RUN [SPLIT ...]`: a run's metrics again, from a checkpoint alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sidrec.checkpoint.checkpoint_store import chosen
from sidrec.checkpoint.state import load_model
from sidrec.checkpoint.train_state import check_catalog, read_position
from sidrec.config import ConfigError
from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks
from sidrec.train.assembly import build_model, open_dataset
from sidrec.train.evaluation import check_splits, evaluate_splits
from sidrec.train.run import report
from sidrec.train.run_directory import RunDirectory

HELP = """usage: sidrec evaluate RUN [SPLIT ...] [--checkpoint newest|best|step-N]

Computes the metrics of a run again, from a checkpoint alone, and writes metrics.json and the predictions.

  RUN           a run directory, as `sidrec train` makes it: RUNS/NAME/seedN
  SPLIT         splits of the log; those of the run's recipe where none is given
  --checkpoint  the best where the run keeps one, else the newest, where it is not given"""


def main(argv: Sequence[str]) -> None:
    """Evaluates RUN on the splits given, or on those of its recipe; writes metrics.json and predictions.

    Raises ConfigError when RUN is no run directory or holds no checkpoint, ContractError when the catalog is another.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(HELP)
        return
    which, words = _which(list(argv))
    if not words or words[0].startswith("-"):
        raise ConfigError(f"sidrec evaluate: expected a run directory, got {words[0] if words else 'nothing'}")
    run = RunDirectory(Path(words[0]))
    with joined_ranks() as ranks:
        recipe = run_on_all_ranks(ranks, run.recipe)
        recipe = replace(recipe, parallel=replace(recipe.parallel, plan=None))  # it is for the ranks that trained
        if words[1:]:
            recipe = replace(recipe, evaluate=replace(recipe.evaluate, splits=tuple(words[1:])))
        data = open_dataset(recipe, ranks)
        check_splits(recipe, data, ranks)
        saved = chosen(run.checkpoints, which, ranks)
        position = run_on_all_ranks(ranks, lambda: read_position(saved))
        run_on_all_ranks(ranks, lambda: check_catalog(saved, position, data.fingerprint))
        sharded = build_model(recipe, data, ranks)
        load_model(saved, sharded.model, None, ranks)
        metrics = evaluate_splits(recipe, data, sharded.model, run, position.step, ranks)
        if ranks.first:
            report(run, metrics)


def _which(words: list[str]) -> tuple[str | None, list[str]]:
    """The checkpoint that is asked for, if one is, and the other words."""
    for place, word in enumerate(words):
        flag, given, value = word.partition("=")
        if flag == "--checkpoint":
            value = value if given else "".join(words[place + 1 : place + 2])
            if value not in ("newest", "best") and not value.removeprefix("step-").isdecimal():
                raise ConfigError(f"--checkpoint: expected newest, best or step-N, got {value or 'nothing'}")
            return value, words[:place] + words[place + (1 if given else 2) :]
    return None, words
