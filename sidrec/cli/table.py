"""`sidrec table list | export`: the embedding tables of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sidrec.command_line import Subcommands, describe, metavar, parse
from sidrec.config.section import section

COMMANDS = Subcommands(
    "sidrec table",
    "Reads the embedding tables of a checkpoint.",
    {"list": "list the tables", "export": "write one table to FILE.safetensors or FILE.parquet"},
)
LIST = describe("Lists the tables of a checkpoint.", "sidrec table list runs/demo/seed0")
EXPORT = describe(
    "Writes one table of a checkpoint to a file, a few rows at a time, so that a table of any size fits in memory. The "
    "recipe's section `start` reads such a file.",
    "sidrec table export runs/demo/seed0 item_hid items.parquet --ids",
)

Source = tyro.conf.Positional[Annotated[Path, metavar("RUN")]]


@section
class ListOptions:
    """What to list."""

    source: Source
    """Run directory, whose newest checkpoint is read, or a checkpoint."""
    json: bool = False
    """Print JSON instead of text."""


@section
class ExportOptions:
    """What to export."""

    source: Source
    """Run directory, whose newest checkpoint is read, or a checkpoint."""
    table: tyro.conf.Positional[Annotated[str, metavar("TABLE")]]
    """Name of the table, as `sidrec table list` prints it."""
    file: tyro.conf.Positional[Annotated[Path, metavar("FILE")]]
    """FILE.safetensors: one tensor, named as the table. FILE.parquet: columns row and embedding, a list of floats of
    fixed size."""
    optimizer: bool = False
    """Also write the optimizer's state: tensors named TABLE/STATE, or columns named STATE."""
    ids: bool = False
    """Parquet only: also write the ids of the rows, as a column item_id or another id, or sid_1, sid_2... for a SID
    table."""
    overwrite: bool = False
    """Replace FILE if it exists and is an exported table."""
    check: bool = True
    """First verify the checksums of the checkpoint's files, which reads them once more."""


def main(argv: Sequence[str]) -> None:
    """Lists or exports. Raises ConfigError, CheckpointError, or ContractError for a catalog or log."""
    command, words = COMMANDS.choose(argv)
    if command == "list":
        options = parse(ListOptions, words, "sidrec table list", LIST)

        from sidrec.cli.export_table import list_tables

        list_tables(options)
    else:
        export = parse(ExportOptions, words, "sidrec table export", EXPORT)

        from sidrec.cli.export_table import export_table

        export_table(export)
