"""Lists the embedding tables of a checkpoint, and exports one as safetensors or parquet (`sidrec table`).

Shapes: R rows of a table, D its width, N rows of a range, I item ids, L levels of a SID.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from sidrec.checkpoint.stored_tables import (
    PART,
    CheckpointTable,
    StoredCheckpoint,
    StoredTable,
    open_checkpoint,
    rows_within,
    sharding_text,
)
from sidrec.checkpoint.table_files import EMBEDDING, ROW
from sidrec.checkpoint.tensor_shard import UPDATES, safetensors_header
from sidrec.config import ConfigError, Recipe
from sidrec.config.section import granularity_levels
from sidrec.data.item_tables import HID
from sidrec.errors import CheckpointError
from sidrec.io.files import check_free, new_file
from sidrec.io.output_folders import output_file
from sidrec.io.output_lock import locked
from sidrec.machine import unwritable
from sidrec.schema import ITEM_ID, LOG, ContractError, load_manifest
from sidrec.sid.catalog import load_catalog
from sidrec.sid.granularity import granularity_rows
from sidrec.text import did_you_mean, quoted, text_table

RowIds = Callable[[int, int], Mapping[str, pa.Array]]
"""Rows [first, last) -> id columns for these rows."""
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
    source: Path,
    name: str,
    file: Path,
    *,
    optimizer: bool = False,
    updates: bool = False,
    ids: bool = False,
    overwrite: bool = False,
    check: bool = True,
) -> None:
    """Writes the table `name` of a checkpoint to a file, a range of rows at a time.

    Args:
        source: run directory, whose newest checkpoint is read, or a checkpoint.
        file: FILE.safetensors or FILE.parquet.
        optimizer: also write the optimizer's state.
        updates: also write how many training steps updated each row.
        ids: also write the ids of the rows; parquet only.
        overwrite: replace `file` if it is an exported table.
        check: first verify the checksums of the checkpoint's files.

    Raises ConfigError, CheckpointError or ContractError; then no file is left behind.
    """
    checkpoint = open_checkpoint(source)
    table = _table(checkpoint, name)
    to_parquet = _is_parquet(file, ids)
    tensors = _tensors(table, optimizer, updates, to_parquet)
    target = _target(file, overwrite, checkpoint)
    rows = table.weight.shape[0]
    ids_of = row_ids(checkpoint.recipe, table.name, rows, checkpoint.position.catalog) if ids else no_ids
    files = set().union(*(tensor.files for tensor in tensors.values()))
    if check:
        with _progress("check", sum(checkpoint.index.files[name].size for name in files)) as progress:
            checkpoint.check_files(files, progress.update)
    size = sum(tensor.bytes for tensor in tensors.values())
    with locked(target), new_file(target, size, overwrite) as partial, _progress("export", size) as progress:
        if to_parquet:
            write_parquet(partial, tensors, progress.update, ids_of)
        else:
            write_safetensors(partial, tensors, progress.update)
    print(f"{table.name} of {checkpoint.path}: {rows:,} rows to {file}", file=sys.stderr)


def _table(checkpoint: StoredCheckpoint, name: str) -> CheckpointTable:
    if name not in checkpoint.tables:
        known = ", ".join(checkpoint.tables) or "none"
        near = did_you_mean(name, checkpoint.tables)
        raise ConfigError(f"{checkpoint.path}: expected one of the tables {known}, got {quoted(name)}{near}")
    return checkpoint.tables[name]


def _is_parquet(file: Path, ids: bool) -> bool:
    if file.suffix not in FORMATS:
        raise ConfigError(
            f"{quoted(file)}: expected a file name that ends in {' or '.join(FORMATS)}, got {file.suffix!r}"
        )
    if ids and file.suffix != ".parquet":
        raise ConfigError(f"--ids: expected a file name that ends in .parquet, got {file}")
    if obstacle := unwritable(file.parent):
        raise ConfigError(f"{quoted(file)}: expected a folder that can be written, got {obstacle}")
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


def _tensors(table: CheckpointTable, optimizer: bool, updates: bool, to_parquet: bool) -> dict[str, StoredTable]:
    """Tensors or columns by their names in the file."""
    state = dict(table.state) if optimizer else {}
    if optimizer and not state:
        raise ConfigError(f"--optimizer: expected a checkpoint with optimizer state of {table.name}, got none")
    if updates:
        if table.updates is None:
            expected = f"a checkpoint of 0.2.0 or later and the table {HID}, whose rows' updates are counted"
            raise ConfigError(f"--updates: expected {expected}, got {table.name} without counts")
        state[UPDATES] = table.updates
    if to_parquet:
        return {EMBEDDING: table.weight, **state}
    return {table.name: table.weight} | {f"{table.name}/{name}": found for name, found in state.items()}


def _progress(what: str, size: int) -> tqdm:
    """A bar over bytes with the time left, on a terminal, for work that takes longer than a second."""
    return tqdm(total=size, desc=what, unit="B", unit_scale=True, delay=1, disable=None)


# Writers: safetensors and parquet, a range of rows at a time, perhaps with the ids of the rows.


def no_ids(first: int, last: int) -> Mapping[str, pa.Array]:
    """No id columns."""
    return {}


def is_exported(path: Path) -> bool:
    """Whether a file looks like one of the writers below: one table, perhaps with its optimizer's state."""
    try:
        if path.suffix == ".parquet":
            names = pq.read_schema(path).names
            return names[:1] == [ROW] and EMBEDDING in names
        with safe_open(path, framework="pt") as file:
            tensors = list(file.keys())
        table = min(tensors, key=len, default="")
        return all(name == table or name.startswith(f"{table}/") for name in tensors)
    except (pa.ArrowException, SafetensorError, OSError):
        return False


def write_safetensors(path: Path, tensors: Mapping[str, StoredTable], progress: Callable[[int], object]) -> None:
    """Writes tensors by name, in their stored types. progress: called with the number of bytes written."""
    with path.open("wb") as file:
        file.write(safetensors_header((name, table.dtype, table.shape) for name, table in tensors.items()))
        for table in tensors.values():
            for _, rows in table.parts():
                file.write(rows.reshape(-1).view(torch.uint8).numpy().data)
                progress(rows.nbytes)


def write_parquet(
    path: Path, tensors: Mapping[str, StoredTable], progress: Callable[[int], object], ids: RowIds = no_ids
) -> None:
    """Writes a parquet row per table row: its number, its ids, and each tensor [R, D] as a list of D float32, or as an
    int64 if it holds counts [R, 1].

    tensors: column -> table, with equally many rows. progress: called with the number of bytes read.
    """
    count = next(iter(tensors.values())).shape[0]
    step = rows_within(PART, sum(table.bytes // max(1, count) for table in tensors.values()))
    with pq.ParquetWriter(path, _schema(tensors, ids), compression="none", use_dictionary=False) as file:
        for first in range(0, count, step):
            last = min(first + step, count)
            rows = {name: table.rows(first, last) for name, table in tensors.items()}
            columns = {ROW: pa.array(np.arange(first, last)), **ids(first, last)}
            columns |= {name: _column(rows_ND) for name, rows_ND in rows.items()}
            file.write_table(pa.table(columns))
            progress(sum(rows_ND.nbytes for rows_ND in rows.values()))


def _schema(tensors: Mapping[str, StoredTable], ids: RowIds) -> pa.Schema:
    id_fields = [(name, array.type) for name, array in ids(0, 0).items()]
    columns = [(name, _column(table.rows(0, 0)).type) for name, table in tensors.items()]
    return pa.schema([(ROW, pa.int64()), *id_fields, *columns])


def _column(rows_ND: Tensor) -> pa.Array:
    if not rows_ND.is_floating_point():
        return pa.array(rows_ND.squeeze(1).numpy(), pa.int64())
    values = pa.array(rows_ND.to(torch.float32).reshape(-1).numpy())
    return pa.FixedSizeListArray.from_arrays(values, rows_ND.shape[1])


def row_ids(recipe: Recipe, table: str, rows: int, fingerprint: str | None) -> RowIds:
    """Id columns of a table's rows: item_id or the log's id column, or codes sid_1, sid_2... of a SID table.

    Row 0, of unknown ids, has id 0 and no codes. fingerprint: of the catalog that the checkpoint was trained with.
    Raises CheckpointError if ids share rows or rows change owners, or if the recipe's catalog or log has changed.
    """
    item = recipe.model.item
    if table in recipe.model.context:
        return _numbered(table)
    if table == HID and item.hid_rows_are_ids:
        return _numbered(ITEM_ID)
    if item.sids is not None and table in item.sids.granularities:
        return _codes(recipe, table, rows, fingerprint)
    raise CheckpointError(f"--ids: expected a table with a row for each id, got {table}, whose rows ids share or swap")


def _numbered(column: str) -> RowIds:
    return lambda first, last: {column: pa.array(np.arange(first, last))}


def _codes(recipe: Recipe, table: str, rows: int, fingerprint: str | None) -> RowIds:
    catalog = load_catalog(recipe.data.catalog)
    if catalog.fingerprint != fingerprint:
        was = f"{recipe.data.catalog} as the checkpoint was trained with, {fingerprint}"
        raise CheckpointError(f"--ids: expected the catalog {was}, got {catalog.fingerprint}")
    ids = load_manifest(recipe.data.path / LOG).ids[ITEM_ID]
    codes_IL = catalog.codes_by_id(ids)
    rows_I, found = granularity_rows(codes_IL, table, catalog.extension_by_id(ids))
    if found != rows:
        log = f"{recipe.data.path} as the checkpoint was trained with, {rows:,} rows of {table}"
        raise CheckpointError(f"--ids: expected the log {log}, got {found:,}")
    columns = {}
    for level in granularity_levels(table):
        codes_R = np.full(rows, -1)
        codes_R[rows_I] = codes_IL[:, level - 1]
        columns[f"sid_{level}"] = codes_R
    return lambda first, last: _code_columns(columns, first, last)


def _code_columns(columns: Mapping[str, np.ndarray], first: int, last: int) -> dict[str, pa.Array]:
    parts = {name: codes_R[first:last] for name, codes_R in columns.items()}
    return {name: pa.array(codes_N, pa.int32(), mask=codes_N < 0) for name, codes_N in parts.items()}
