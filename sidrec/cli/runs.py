"""`sidrec train | evaluate | table`: train runs, evaluate them, and read their tables.

Arguments are read first; functions import torch when they need it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sidrec.cli.arguments import RecipeOptions, read_before_ranks, recipe_and_options
from sidrec.command_line import Subcommands, describe, metavar, parse
from sidrec.config.section import PlaceKey, section
from sidrec.errors import ConfigError
from sidrec.text import near_folder, quoted

TRAIN = describe(
    "Trains a recipe from its newest checkpoint, or from the start, and evaluates it.",
    "sidrec train demo.yaml --seed 3 --train.epochs 2",
    "torchrun --nproc-per-node 2 -m sidrec.train demo.yaml",
)


def train(argv: Sequence[str]) -> int:
    """Trains in this process or on the ranks of torchrun.

    Returns the exit status: 0, or a signal's. Raises SidrecError on all ranks together.
    """
    read = read_before_ranks(lambda: recipe_and_options(RecipeOptions, argv, "sidrec train", TRAIN)[0])

    from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks
    from sidrec.train import run

    with joined_ranks() as ranks:
        return run.train(run_on_all_ranks(ranks, read), ranks)


# sidrec evaluate: computes a run's metrics again, from a checkpoint alone.


EVALUATE = describe(
    "Computes the metrics of a run again, from a checkpoint alone, and writes metrics.json and the predictions. With "
    "--data, scores another data folder, as that of the next day, and writes into a folder of its own.",
    "sidrec evaluate runs/demo/seed0 test --checkpoint best",
    "sidrec evaluate runs/demo/seed0 --data tomorrow --catalog tomorrow-sids",
)


@section
class EvaluateOptions:
    """What to evaluate."""

    run: tyro.conf.Positional[Annotated[Path, metavar("RUN")]]
    """Run directory, as `sidrec train` makes it: RUNS/NAME/seedN."""
    splits: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("[SPLIT ...]", "those of the run's recipe")]] = ()
    """Splits of the log. With --data: by default those of the recipe that FOLDER has."""
    checkpoint: Annotated[str | None, metavar("{newest,best,step-N}", "best if the run keeps one, else newest")] = None
    """Checkpoint to evaluate."""
    data: Annotated[PlaceKey | None, metavar("FOLDER", "the run's own")] = None
    """Data folder to score. Its ids must be the run's, or these and more: prepare it with --ids."""
    catalog: Annotated[PlaceKey | None, metavar("CATALOG", "the run's own")] = None
    """With --data: the run's catalog, or one that `sidrec fit --extend` made from it."""
    out: Annotated[Path | None, metavar("OUT", "RUN/evaluations/NAME, NAME that of FOLDER")] = None
    """With --data: folder for the metrics and predictions."""


def evaluate(argv: Sequence[str]) -> None:
    """Evaluates RUN; writes metrics.json and predictions.

    Raises ConfigError if RUN is no run directory or holds no checkpoint, CheckpointError if ids or catalog are not
    those of its training, ContractError for bad data; on all ranks together.
    """
    read = read_before_ranks(lambda: _evaluate_options(argv))

    from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks
    from sidrec.train.evaluate_run import OtherData, evaluate_other_data, evaluate_run

    with joined_ranks() as ranks:
        options = run_on_all_ranks(ranks, read)
        if options.data is None:
            evaluate_run(options.run, options.splits, options.checkpoint, ranks)
        else:
            other = OtherData(options.data, options.catalog, options.out)
            evaluate_other_data(options.run, other, options.splits, options.checkpoint, ranks)


def _evaluate_options(words: Sequence[str]) -> EvaluateOptions:
    options = parse(EvaluateOptions, words, "sidrec evaluate", EVALUATE)
    which = options.checkpoint
    if which not in (None, "newest", "best") and not which.removeprefix("step-").isdecimal():
        raise ConfigError(f"--checkpoint: expected newest, best or step-N, got {which or 'nothing'}")
    for name, given in (("--catalog", options.catalog), ("--out", options.out)):
        if given is not None and options.data is None:
            raise ConfigError(f"{name}: expected --data with it, which names the folder to score, got none")
    if not (options.run / "config.yaml").is_file():
        near = near_folder(options.run, "config.yaml")
        raise ConfigError(f"{quoted(options.run)}: expected a run directory with config.yaml, got none{near}")
    return options


# sidrec table: the embedding tables of a checkpoint.


TABLE = Subcommands(
    "sidrec table",
    "Reads the embedding tables of a checkpoint.",
    {"list": "list the tables", "export": "write one table to FILE.safetensors or FILE.parquet"},
)
TABLE_LIST = describe("Lists the tables of a checkpoint.", "sidrec table list runs/demo/seed0")
TABLE_EXPORT = describe(
    "Writes one table of a checkpoint to a file, a few rows at a time, so that a table of any size fits in memory. The "
    "recipe's section `start` reads such a file.",
    "sidrec table export runs/demo/seed0 item_hid items.parquet --ids",
)

CheckpointSource = tyro.conf.Positional[Annotated[Path, metavar("RUN")]]


@section
class TableListOptions:
    """What to list."""

    source: CheckpointSource
    """Run directory, whose newest checkpoint is read, or a checkpoint."""
    json: bool = False
    """Print JSON instead of text."""


@section
class TableExportOptions:
    """What to export."""

    source: CheckpointSource
    """Run directory, whose newest checkpoint is read, or a checkpoint."""
    table: tyro.conf.Positional[Annotated[str, metavar("TABLE")]]
    """Name of the table, as `sidrec table list` prints it."""
    file: tyro.conf.Positional[Annotated[Path, metavar("FILE")]]
    """FILE.safetensors: one tensor, named as the table. FILE.parquet: columns row and embedding, a list of floats of
    fixed size."""
    optimizer: bool = False
    """Also write the optimizer's state: tensors named TABLE/STATE, or columns named STATE."""
    updates: bool = False
    """Of the table hid, also write how many training steps updated each row: a tensor TABLE/updates, or a column
    updates."""
    ids: bool = False
    """Parquet only: also write the ids of the rows, as a column item_id or another id, or sid_1, sid_2... for a SID
    table."""
    overwrite: bool = False
    """Replace FILE if it exists and is an exported table."""
    check: bool = True
    """First verify the checksums of the checkpoint's files, which reads them once more."""


def table(argv: Sequence[str]) -> None:
    """Lists or exports. Raises ConfigError, CheckpointError, or ContractError for a catalog or log."""
    command, words = TABLE.choose(argv)
    if command == "list":
        listed = parse(TableListOptions, words, "sidrec table list", TABLE_LIST)

        from sidrec.checkpoint.table_export import list_tables

        list_tables(listed.source, as_json=listed.json)
    else:
        export = parse(TableExportOptions, words, "sidrec table export", TABLE_EXPORT)

        from sidrec.checkpoint.table_export import export_table

        export_table(
            export.source,
            export.table,
            export.file,
            optimizer=export.optimizer,
            updates=export.updates,
            ids=export.ids,
            overwrite=export.overwrite,
            check=export.check,
        )
