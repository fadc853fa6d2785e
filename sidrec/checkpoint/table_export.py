"""Lists the embedding tables of a checkpoint, and writes one of them to a file (`sidrec table`)."""

import json
import sys
from pathlib import Path

from tqdm import tqdm

from sidrec.checkpoint.stored_tables import (
    CheckpointTable,
    StoredCheckpoint,
    StoredTable,
    open_checkpoint,
    sharding_text,
)
from sidrec.checkpoint.table_files import EMBEDDING, is_exported, no_ids, row_ids, write_parquet, write_safetensors
from sidrec.config import ConfigError
from sidrec.io.files import check_free, new_file
from sidrec.io.output_folders import output_file
from sidrec.machine import unwritable
from sidrec.schema import ContractError
from sidrec.text import did_you_mean, text_table

FORMATS = (".safetensors", ".parquet")


def list_tables(source: Path, *, as_json: bool) -> None:
    """Prints the tables of a checkpoint, or of a run's newest one, as text or JSON."""
    checkpoint = open_checkpoint(source)
    if as_json:
        tables = {name: _facts(table) for name, table in checkpoint.tables.items()}
        print(json.dumps({"checkpoint": str(checkpoint.path), "tables": tables}))
        return
    print(checkpoint.path)
    lines: list[tuple[str, ...]] = [("table", "rows x width", "type", "bytes", "optimizer's state", "bytes", "cut")]
    lines += [_line(table) for table in checkpoint.tables.values()]
    print(text_table(lines, left=len(lines[0])))


def _facts(table: CheckpointTable) -> dict[str, object]:
    rows, width = table.weight.shape
    return {
        "rows": rows,
        "width": width,
        "type": table.weight.tensor.dtype,
        "bytes": table.weight.bytes,
        "state": {name: {"shape": state.shape, "bytes": state.bytes} for name, state in table.state.items()},
        "cut": sharding_text(table.weight.tensor),
    }


def _line(table: CheckpointTable) -> tuple[str, ...]:
    rows, width = table.weight.shape
    state = ", ".join(f"{name} {list(found.shape)}" for name, found in table.state.items()) or "none"
    bytes_of_state = sum(found.bytes for found in table.state.values())
    size, cut = f"{table.weight.bytes:,}", sharding_text(table.weight.tensor)
    return table.name, f"{rows:,} x {width}", table.weight.tensor.dtype, size, state, f"{bytes_of_state:,}", cut


def export_table(
    source: Path, name: str, file: Path, *, optimizer: bool, ids: bool, overwrite: bool, check: bool
) -> None:
    """Writes the table `name` of a checkpoint to a file, a range of rows at a time.

    Args:
        source: run directory, whose newest checkpoint is read, or a checkpoint.
        file: FILE.safetensors or FILE.parquet.
        optimizer: also write the optimizer's state.
        ids: also write the ids of the rows; parquet only.
        overwrite: replace `file` if it is an exported table.
        check: first verify the checksums of the checkpoint's files.

    Raises ConfigError, CheckpointError or ContractError; then no file is left behind.
    """
    checkpoint = open_checkpoint(source)
    table = _table(checkpoint, name)
    to_parquet = _is_parquet(file, ids)
    tensors = _tensors(table, optimizer, to_parquet)
    target = _target(file, overwrite, checkpoint)
    rows = table.weight.shape[0]
    ids_of = row_ids(checkpoint.recipe, table.name, rows, checkpoint.position.catalog) if ids else no_ids
    files = set().union(*(tensor.files for tensor in tensors.values()))
    if check:
        with _progress("check", sum(checkpoint.index.files[name].size for name in files)) as progress:
            checkpoint.check_files(files, progress.update)
    size = sum(tensor.bytes for tensor in tensors.values())
    with new_file(target, size, overwrite) as partial, _progress("export", size) as progress:
        if to_parquet:
            write_parquet(partial, tensors, progress.update, ids_of)
        else:
            write_safetensors(partial, tensors, progress.update)
    print(f"{table.name} of {checkpoint.path}: {rows:,} rows to {file}", file=sys.stderr)


def _table(checkpoint: StoredCheckpoint, name: str) -> CheckpointTable:
    if name not in checkpoint.tables:
        known = ", ".join(checkpoint.tables) or "none"
        near = did_you_mean(name, checkpoint.tables)
        raise ConfigError(f"{checkpoint.path}: expected one of the tables {known}, got {name}{near}")
    return checkpoint.tables[name]


def _is_parquet(file: Path, ids: bool) -> bool:
    if file.suffix not in FORMATS:
        raise ConfigError(f"{file}: expected a file name that ends in {' or '.join(FORMATS)}, got {file.suffix!r}")
    if ids and file.suffix != ".parquet":
        raise ConfigError(f"--ids: expected a file name that ends in .parquet, got {file}")
    if obstacle := unwritable(file.parent):
        raise ConfigError(f"{file}: expected a folder that can be written, got {obstacle}")
    return file.suffix == ".parquet"


def _target(file: Path, overwrite: bool, checkpoint: StoredCheckpoint) -> Path:
    """The file without links.

    Raises ContractError for a file of the checkpoint, and for an existing file that is not an exported table.
    """
    check_free(file, overwrite)
    target = output_file(file, "an exported table", is_exported)
    if checkpoint.path.resolve() in target.parents:
        expected = "a file apart from the checkpoint that is read"
        raise ContractError(file, expected, f"one in {checkpoint.path}; name another file")
    return target


def _tensors(table: CheckpointTable, optimizer: bool, to_parquet: bool) -> dict[str, StoredTable]:
    """Tensors or columns by their names in the file."""
    state = table.state if optimizer else {}
    if optimizer and not state:
        raise ConfigError(f"--optimizer: expected a checkpoint with optimizer state of {table.name}, got none")
    if to_parquet:
        return {EMBEDDING: table.weight, **state}
    return {table.name: table.weight} | {f"{table.name}/{name}": found for name, found in state.items()}


def _progress(what: str, size: int) -> tqdm:
    """A bar over bytes with the time left, on a terminal, for work that takes longer than a second."""
    return tqdm(total=size, desc=what, unit="B", unit_scale=True, delay=1, disable=None)
