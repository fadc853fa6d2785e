"""items.parquet and id maps of a folder that another program wrote: checked, or made from Spark's folders of parts.

Spark writes folders, and sidrec reads one file each. Parts in items/ become items.parquet, parts in ids/COLUMN/ become
ids/COLUMN.parquet; the parts stay. A file that is there already is only checked, unless --replace is given, or nothing
can be lost: items.parquet is what this command wrote, or the map's parts hold the file's ids and more.

Shapes: N rows of items.parquet, I item ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidrec import schema
from sidrec.errors import ContractError
from sidrec.id_maps import digest, map_path, save_source_ids
from sidrec.io.files import readable, replaced_file
from sidrec.schema import ITEM_ID, TRAIN_IMPRESSIONS, MapDigest

from .adopt_files import MOST_ITEMS, SUFFIX
from .adopt_report import Problems, is_list, type_remedy
from .log_files import ITEM_ROW_GROUP
from .source_files import open_stream

PARTS = schema.ITEMS.removesuffix(SUFFIX)  # the folder of parts that becomes items.parquet
MADE = b"sidrec.adopted"  # key of the file's metadata: this command made items.parquet
MAP_ID = "id"  # optional column of a map's parts: the dense id of each row


@dataclass(frozen=True)
class GivenItems:
    """The items of a folder.

    parts: files, in the order of their item ids; empty if there are none. write: make items.parquet of them. moved: the
    folder items.parquet, which must be renamed to items first. ids_N: item ids, ascending. impressions_N: train
    impressions that the files state, None if they do not. widths: width of the vector columns.
    """

    parts: tuple[Path, ...] = ()
    write: bool = True
    moved: bool = False
    ids_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    impressions_N: np.ndarray | None = None
    widths: dict[str, int] = field(default_factory=dict)

    def listed(self) -> np.ndarray | None:
        """bool [I]: whether an item is listed; None without items. Item 0, unknown, always is."""
        if not len(self.ids_N):
            return None
        listed_I = np.zeros(int(self.ids_N.max(initial=0)) + 1, dtype=bool)
        listed_I[self.ids_N] = True
        listed_I[schema.UNKNOWN_ID] = True
        return listed_I


def given_items(data: Path, replace: bool, problems: Problems, notes: list[str]) -> GivenItems:
    """Reads and checks the items of a folder: item ids, train impressions, widths of vectors."""
    file, folder = data / schema.ITEMS, data / PARTS
    moved = file.is_dir()
    if moved and (folder.exists() or not replace):
        got = f"a folder of parts{', beside another one, items' if folder.exists() else ''}"
        problems.found(f"{schema.ITEMS}: expected a file", file, got, f"mv {file} {folder}, or the flag --replace")
    parts = parts_of(file if moved else folder)
    made = file.is_file() and _made_here(file, parts)
    if file.is_file() and not made and not (replace and parts):
        if parts:
            notes.append(f"{folder} is not read, as there is {file}; --replace makes that anew from the parts")
        return _read(GivenItems((file,), replace), replace, problems, notes)
    if not parts:
        if moved or folder.is_dir():
            problems.found(f"items: expected Parquet files ending in {SUFFIX}", file if moved else folder, "none")
        return GivenItems()
    return _read(GivenItems(parts, True, moved), replace, problems, notes)


def _made_here(file: Path, parts: Sequence[Path]) -> bool:
    """Whether items.parquet holds what this command made of the parts, or of nothing, and no column more."""
    try:
        with readable(file):
            found = pq.read_schema(file)
            given = [name for path in parts[:1] for name in pq.read_schema(path).names]
    except ContractError:
        return False
    return MADE in (found.metadata or {}) and set(found.names) == {ITEM_ID, TRAIN_IMPRESSIONS, *given}


def parts_of(folder: Path) -> tuple[Path, ...]:
    """The Parquet files of a folder that Spark wrote, sorted by name."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.name[0] not in "._"))


def _read(items: GivenItems, replace: bool, problems: Problems, notes: list[str]) -> GivenItems:
    """Items with the files' contents; their parts ordered by item id. replace: count train impressions anew."""
    ids: list[np.ndarray] = []
    impressions: list[np.ndarray] = []
    widths: dict[str, int] = {}
    parts: list[Path] = []
    for path in items.parts:
        try:
            with readable(path, "a whole Parquet file"), pq.ParquetFile(path) as file:
                if not _check_columns(path, file.schema_arrow, items.write, problems):
                    continue
                if not file.metadata.num_rows:
                    continue
                ids.append(_column(file, ITEM_ID, path, problems))
                parts.append(path)
                if TRAIN_IMPRESSIONS in file.schema_arrow.names and not replace:
                    impressions.append(_column(file, TRAIN_IMPRESSIONS, path, problems))
                _add_widths(file, path, widths, problems)
        except ContractError as error:
            problems.found("a whole Parquet file", *error.args[::2])
    if not parts:  # none can be read, or none has rows
        return GivenItems((), items.write, items.moved)
    order = sorted(range(len(parts)), key=lambda place: int(ids[place][0]))
    ids_N = np.concatenate([ids[place] for place in order])
    if not _check_ids(ids_N, [parts[place] for place in order], [len(ids[place]) for place in order], problems, notes):
        return GivenItems(items.parts, items.write, items.moved)
    stated = len(impressions) == len(parts)
    impressions_N = np.concatenate([impressions[place] for place in order]) if stated else None
    return GivenItems(tuple(parts[place] for place in order), items.write, items.moved, ids_N, impressions_N, widths)


def _check_columns(path: Path, arrow: pa.Schema, write: bool, problems: Problems) -> bool:
    """Whether item_id can be read. Where the file is written anew, whole numbers of any size are accepted."""
    sound = True
    for name in (ITEM_ID, TRAIN_IMPRESSIONS):
        places = arrow.get_all_field_indices(name)
        if not places and name == TRAIN_IMPRESSIONS:
            if not write:
                remedy = "--replace adds the column, counted from the train split; all others stay"
                problems.found(f"items, column {name}: expected one, got none", path, "", remedy)
            continue
        if len(places) != 1:
            problems.found(f"items, column {name}: expected one, got {len(places) or 'none'}", path, "")
            sound = False
            continue
        kind = arrow.field(places[0]).type
        if kind != pa.int64() and not (write and pa.types.is_integer(kind)):
            rule = f"items, column {name}: expected int64, got {kind}"
            problems.found(rule, path, "", type_remedy(name, kind, pa.int64()))
            sound = sound and pa.types.is_integer(kind)
    for name in schema.VECTOR_COLUMNS:
        places = arrow.get_all_field_indices(name)
        kind = arrow.field(places[0]).type if len(places) == 1 else None
        if kind is None or (pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32()):
            continue
        if not is_list(kind) or not pa.types.is_floating(kind.value_type):
            problems.found(f"items, column {name}: expected lists of float32, got {kind}", path, "")
        elif not write:
            remedy = "--replace turns lists of equal length into fixed-size ones"
            problems.found(f"items, column {name}: expected fixed-size lists, got {kind}", path, "", remedy)
    return sound


def _column(file: pq.ParquetFile, name: str, path: Path, problems: Problems) -> np.ndarray:
    column = file.read([name])[name]
    if column.null_count:
        problems.found(f"items, column {name}: expected no missing value", path, f"{column.null_count:,} missing")
    values: np.ndarray = column.cast(pa.int64()).fill_null(0).to_numpy()
    if name == TRAIN_IMPRESSIONS and (values < 0).any():
        problems.found(f"items, column {name}: expected counts of at least 0", path, values.min())
    return values


def _add_widths(file: pq.ParquetFile, path: Path, widths: dict[str, int], problems: Problems) -> None:
    """Checks that all vectors of a column are as long, and finite; reads one batch at a time."""
    names = [name for name in schema.VECTOR_COLUMNS if name in file.schema_arrow.names]
    lists = [name for name in names if is_list(file.schema_arrow.field(name).type)]
    if not lists:
        return
    for batch in open_stream(path).iter_batches(ITEM_ROW_GROUP, columns=lists):
        for name in lists:
            column = batch.column(batch.schema.names.index(name))
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
            width = widths.setdefault(name, next((length for length in lengths if length is not None), 0))
            if column.null_count or set(lengths) - {width}:
                got = f"{sorted(length for length in lengths if length is not None)}, {column.null_count:,} missing"
                remedy = f"give items without {name} a vector of {width} zeros"
                problems.found(f"items, column {name}: expected {width} numbers in every row", path, got, remedy)
            values = pc.list_flatten(column)
            if values.null_count or not pc.all(pc.is_finite(values)).as_py():
                problems.found(f"items, column {name}: expected finite numbers", path, "NaN, infinity or null")


def _check_ids(
    ids_N: np.ndarray, parts: Sequence[Path], rows: Sequence[int], problems: Problems, notes: list[str]
) -> bool:
    """Whether the ids are ascending and in range. Adds a problem if not, and a note on gaps."""
    back = np.flatnonzero(np.diff(ids_N) <= 0)
    remedy = 'Spark: .repartitionByRange(n, "item_id").sortWithinPartitions("item_id")'
    if len(back):
        row = int(back[0]) + 1
        part = int(np.searchsorted(np.cumsum(rows), row, side="right"))
        where = f"{parts[part]}, row {row - sum(rows[:part])}"
        rule = f"items, column {ITEM_ID}: expected every item once, in the order of ids"
        problems.found(rule, where, f"{ids_N[row]} after {ids_N[row - 1]}", remedy)
    elif ids_N[0] <= schema.UNKNOWN_ID or ids_N[-1] >= MOST_ITEMS:
        rule = f"items, column {ITEM_ID}: expected ids from 1 to {MOST_ITEMS - 1:,}"
        problems.found(rule, parts[0], f"{ids_N[0]} to {ids_N[-1]}")
    elif ids_N[-1] != len(ids_N):
        notes.append(
            f"items.parquet has {len(ids_N):,} items with ids up to {ids_N[-1]:,}: `sidrec prep behavior` and "
            "`item-vectors` take folders that list every id from 1 up"
        )
        return True
    else:
        return True
    return False


def train_impressions(items: GivenItems, counted_I: np.ndarray, problems: Problems, notes: list[str]) -> np.ndarray:
    """Train impressions by item id, int64 [I]: those that the files state, else `counted_I`, the rows of train.

    I is above every listed item. Adds a problem for each item of which less is stated than train has rows.
    """
    if items.impressions_N is None:
        return counted_I
    counted_N = counted_I[items.ids_N]
    fewer, more = items.impressions_N < counted_N, items.impressions_N > counted_N
    rule = f"items, column {TRAIN_IMPRESSIONS}: expected at least the item's rows in train"
    for row in np.flatnonzero(fewer).tolist():
        where = f"item {items.ids_N[row]}, of which train has {counted_N[row]:,} rows"
        problems.found(rule, where, int(items.impressions_N[row]), "--replace counts them anew", "items")
    if more.any():
        notes.append(
            f"train_impressions of {int(more.sum()):,} items count more rows than train has: rows before train?"
        )
    stated_I = np.zeros_like(counted_I)
    stated_I[items.ids_N] = items.impressions_N
    return stated_I


def write_given_items(data: Path, items: GivenItems, impressions_I: np.ndarray) -> None:
    """Writes items.parquet in one step; one row group in memory at a time. impressions_I: int64 [I]."""
    target, parts = data / schema.ITEMS, items.parts
    if items.moved:
        target.rename(data / PARTS)
        parts = tuple(data / PARTS / path.name for path in parts)
    with replaced_file(target, one_writer=True) as partial:
        writer: pq.ParquetWriter | None = None
        try:
            for found in _tables(parts, items.widths, impressions_I):
                table = found.replace_schema_metadata({MADE: b"1"})
                writer = writer or pq.ParquetWriter(partial, table.schema)
                if table.schema != writer.schema:
                    raise ContractError(data / PARTS, "parts with equal columns", f"{table.schema.names} and others")
                writer.write_table(table, row_group_size=ITEM_ROW_GROUP)
        finally:
            if writer is not None:
                writer.close()


def _tables(parts: Sequence[Path], widths: dict[str, int], impressions_I: np.ndarray) -> Iterator[pa.Table]:
    if not parts:
        yield pa.table({ITEM_ID: np.arange(1, len(impressions_I)), TRAIN_IMPRESSIONS: impressions_I[1:]})
    for path in parts:
        for batch in open_stream(path).iter_batches(ITEM_ROW_GROUP):
            table = pa.Table.from_batches([batch])
            ids = table[ITEM_ID].cast(pa.int64()).to_numpy()
            rest = table.drop_columns([name for name in (ITEM_ID, TRAIN_IMPRESSIONS) if name in table.column_names])
            for name, width in widths.items():
                vectors = pc.list_flatten(rest[name]).cast(pa.float32()).combine_chunks()
                fixed = pa.FixedSizeListArray.from_arrays(vectors, width)
                rest = rest.set_column(rest.column_names.index(name), name, fixed)
            rest = rest.add_column(0, ITEM_ID, pa.array(ids))
            yield rest.add_column(1, TRAIN_IMPRESSIONS, pa.array(impressions_I[ids]))


# Id maps.


@dataclass(frozen=True)
class GivenMap:
    """The map of an id column. write: its source ids, if ids/COLUMN.parquet is to be written; else None."""

    digest: MapDigest
    write: pa.ChunkedArray | None = None


def given_maps(
    data: Path, replace: bool, columns: Sequence[str], problems: Problems, notes: list[str]
) -> dict[str, GivenMap]:
    """The id maps of a folder, by column. columns: the id columns of the log."""
    folder = data / schema.IDS
    found: dict[str, GivenMap] = {}
    names = sorted(path for path in folder.iterdir() if path.name[0] not in "._") if folder.is_dir() else []
    for column in dict.fromkeys(unquote(path.name.removesuffix(SUFFIX)) for path in names):
        if column not in columns:
            notes.append(f"{folder}: there is a map of {column}, which is no id column of the log; it is not used")
            continue
        file = map_path(data, column)
        parts = parts_of(file.with_suffix(""))
        if file.is_dir():
            remedy = f"mv {file} {file.with_suffix('')}"
            problems.found(f"id map of {column}: expected a file", file, "a folder of parts", remedy)
            continue
        kept = _source_ids((file,), column, problems) if file.exists() and not (replace and parts) else None
        given = _source_ids(parts, column, problems) if parts else None
        if kept is not None and given is not None and not given.slice(0, len(kept)).equals(kept):
            remedy = f"--replace takes those of {file.with_suffix('')}"
            problems.found(f"id map of {column}: expected the ids of its parts", file, "others", remedy)
        write = given is not None and (kept is None or len(given) > len(kept))
        source_ids = given if write else kept
        if source_ids is not None:
            stated = MapDigest(len(source_ids), digest(source_ids, len(source_ids)))
            found[column] = GivenMap(stated, source_ids if write else None)
    return found


def _source_ids(paths: Sequence[Path], column: str, problems: Problems) -> pa.ChunkedArray | None:
    chunks, next_id = [], 1
    for path in paths:
        try:
            with readable(path, "a whole Parquet file"), pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                kind = file.schema_arrow.field(schema.SOURCE_ID).type if schema.SOURCE_ID in names else None
                if kind not in (pa.string(), pa.large_string()):
                    rule = f"id map of {column}: expected a text column {schema.SOURCE_ID}"
                    problems.found(rule, path, kind or names, f'Spark: F.col("{schema.SOURCE_ID}").cast("string")')
                    return None
                table = file.read([name for name in (MAP_ID, schema.SOURCE_ID) if name in names])
        except ContractError as error:
            problems.found("a whole Parquet file", *error.args[::2])
            return None
        if MAP_ID in names:
            wanted = np.arange(next_id, next_id + table.num_rows)
            if not np.array_equal(table[MAP_ID].to_numpy(), wanted):
                rule = f"id map of {column}: expected rows in the order of ids, from 1 up"
                problems.found(rule, path, "others", f'Spark: .orderBy("{MAP_ID}")')
                return None
        next_id += table.num_rows
        chunks += table[schema.SOURCE_ID].cast(pa.string()).chunks
    whole = pa.chunked_array(chunks, pa.string())
    distinct = pc.count_distinct(whole, mode="all").as_py()
    if whole.null_count or distinct < len(whole):
        got = f"{len(whole) - distinct:,} repeated, {whole.null_count:,} missing"
        problems.found(f"id map of {column}: expected every source id once", paths[0], got)
        return None
    return whole


def write_given_maps(data: Path, maps: dict[str, GivenMap]) -> None:
    """Writes the maps that are made from parts, each in one step."""
    for column, found in maps.items():
        if found.write is not None:
            save_source_ids(data, column, found.write)
