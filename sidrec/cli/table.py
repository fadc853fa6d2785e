"""`sidrec table list | export`: the embedding tables of a checkpoint, one of them as a file that others read."""

import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import tyro
from pydantic import TypeAdapter
from tqdm import tqdm

from sidrec.checkpoint.stored_tables import CheckpointTable, StoredCheckpoint, StoredTable, cut_of, open_checkpoint
from sidrec.checkpoint.table_files import EMBEDDING, is_exported, no_ids, row_ids, write_parquet, write_safetensors
from sidrec.config import ConfigError
from sidrec.config.load import checked_flags
from sidrec.config.section import section
from sidrec.io.files import check_free, new_file
from sidrec.io.output_folders import output_file
from sidrec.machine import unwritable
from sidrec.schema import ContractError

HELP = """usage: sidrec table COMMAND ...

  list RUN_OR_CHECKPOINT [--json]                      the tables of a checkpoint, or of a run's newest
  export RUN_OR_CHECKPOINT TABLE FILE [options]        writes one of them to FILE.safetensors or FILE.parquet

sidrec table export --help says more. The way in again: the recipe's section `start`."""


FORMATS = (".safetensors", ".parquet")


ABOUT = """Writes one table of a checkpoint to a file, a range of rows at a time: no more than a few of them are in
memory, however large the table."""


@section
class ListOptions:
    """What to list."""

    source: tyro.conf.Positional[Path]
    """A run directory, or one of its checkpoints."""
    json: bool = False
    """Print JSON in the place of text."""


@section
class ExportOptions:
    """What to export."""

    source: tyro.conf.Positional[Path]
    """A run directory, or one of its checkpoints."""
    table: tyro.conf.Positional[str]
    """The table's name, as `sidrec table list` has it."""
    file: tyro.conf.Positional[Path]
    """FILE.safetensors: one tensor, named as the table. FILE.parquet: columns row and embedding, a list of floats of
    fixed size."""
    optimizer: bool = False
    """Write the optimizer's state too: tensors named TABLE/STATE, or columns named STATE."""
    ids: bool = False
    """Say what rows stand for (parquet): a column of item_id or another id, or sid_1, sid_2... of a SID's part."""
    overwrite: bool = False
    """Replace FILE where it exists and is such a table."""
    check: bool = True
    """First hold the files that the table lies in against their checksums, which reads them once more."""


_LIST: TypeAdapter[ListOptions] = TypeAdapter(ListOptions)
_EXPORT: TypeAdapter[ExportOptions] = TypeAdapter(ExportOptions)


def main(argv: Sequence[str]) -> None:
    """Lists or exports. Raises ConfigError, CheckpointError among them, or ContractError for a catalog or log."""
    match list(argv):
        case [] | ["-h" | "--help", *_]:
            print(HELP)
        case ["list", *words]:
            options = tyro.cli(ListOptions, args=words, prog="sidrec table list", description="Lists tables.")
            _list(checked_flags(_LIST, options))
        case ["export", *words]:
            export_options = tyro.cli(ExportOptions, args=words, prog="sidrec table export", description=ABOUT)
            _export(checked_flags(_EXPORT, export_options))
        case [other, *_]:
            raise ConfigError(f"sidrec table: expected list or export, got {other!r}")


def _list(options: ListOptions) -> None:
    checkpoint = open_checkpoint(options.source)
    if options.json:
        tables = {name: _facts(table) for name, table in checkpoint.tables.items()}
        print(json.dumps({"checkpoint": str(checkpoint.path), "tables": tables}))
        return
    print(checkpoint.path)
    lines: list[tuple[str, ...]] = [("table", "rows x width", "type", "bytes", "optimizer's state", "bytes", "cut")]
    lines += [_line(table) for table in checkpoint.tables.values()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())


def _facts(table: CheckpointTable) -> dict[str, object]:
    rows, width = table.weight.shape
    return {
        "rows": rows,
        "width": width,
        "type": table.weight.tensor.dtype,
        "bytes": table.weight.bytes,
        "state": {name: {"shape": state.shape, "bytes": state.bytes} for name, state in table.state.items()},
        "cut": cut_of(table.weight.tensor),
    }


def _line(table: CheckpointTable) -> tuple[str, ...]:
    rows, width = table.weight.shape
    state = ", ".join(f"{name} {list(found.shape)}" for name, found in table.state.items()) or "none"
    bytes_of_state = sum(found.bytes for found in table.state.values())
    size, cut = f"{table.weight.bytes:,}", cut_of(table.weight.tensor)
    return table.name, f"{rows:,} x {width}", table.weight.tensor.dtype, size, state, f"{bytes_of_state:,}", cut


def _export(options: ExportOptions) -> None:
    checkpoint = open_checkpoint(options.source)
    table = _table(checkpoint, options.table)
    to_parquet = _is_parquet(options)
    tensors = _tensors(table, options, to_parquet)
    target = _target(options, checkpoint)
    rows = table.weight.shape[0]
    ids = row_ids(checkpoint.recipe, table.name, rows, checkpoint.position.catalog) if options.ids else no_ids
    files = set().union(*(tensor.files for tensor in tensors.values()))
    if options.check:
        with _progress("check", sum(checkpoint.index.files[name].size for name in files)) as progress:
            checkpoint.check_files(files, progress.update)
    size = sum(tensor.bytes for tensor in tensors.values())
    with new_file(target, size, options.overwrite) as partial, _progress("export", size) as progress:
        if to_parquet:
            write_parquet(partial, tensors, progress.update, ids)
        else:
            write_safetensors(partial, tensors, progress.update)
    print(f"{table.name} of {checkpoint.path}: {rows:,} rows to {options.file}", file=sys.stderr)


def _table(checkpoint: StoredCheckpoint, name: str) -> CheckpointTable:
    if name not in checkpoint.tables:
        known = ", ".join(checkpoint.tables) or "none"
        close = get_close_matches(name, checkpoint.tables, n=1)
        raise ConfigError(
            f"{checkpoint.path}: expected one of the tables {known}, got {name}"
            f"{f'; did you mean {close[0]}?' if close else ''}"
        )
    return checkpoint.tables[name]


def _is_parquet(options: ExportOptions) -> bool:
    suffix = options.file.suffix
    if suffix not in FORMATS:
        raise ConfigError(f"{options.file}: expected a file name that ends in {' or '.join(FORMATS)}, got {suffix!r}")
    if options.ids and suffix != ".parquet":
        raise ConfigError(f"--ids: expected a file name that ends in .parquet, got {options.file}")
    if obstacle := unwritable(options.file.parent):
        raise ConfigError(f"{options.file}: expected a folder that can be written, got {obstacle}")
    return suffix == ".parquet"


def _target(options: ExportOptions, checkpoint: StoredCheckpoint) -> Path:
    """FILE without links. Raises ContractError for a file of the checkpoint, or one that is no exported table."""
    check_free(options.file, options.overwrite)
    target = output_file(options.file, "an exported table", is_exported)
    if checkpoint.path.resolve() in target.parents:
        expected = "a file apart from the checkpoint that is read"
        raise ContractError(options.file, expected, f"one in {checkpoint.path}; name another file")
    return target


def _tensors(table: CheckpointTable, options: ExportOptions, to_parquet: bool) -> dict[str, StoredTable]:
    """Tensors or columns by the names that they have in the file."""
    state = table.state if options.optimizer else {}
    if options.optimizer and not state:
        raise ConfigError(f"--optimizer: expected a checkpoint with optimizer state of {table.name}, got none")
    if to_parquet:
        return {EMBEDDING: table.weight, **state}
    return {table.name: table.weight} | {f"{table.name}/{name}": found for name, found in state.items()}


def _progress(what: str, size: int) -> tqdm:
    """Shows bytes and the time left, on a terminal, of what takes longer than a second."""
    return tqdm(total=size, desc=what, unit="B", unit_scale=True, delay=1, disable=None)
