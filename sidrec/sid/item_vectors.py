"""Items for a tokenizer from items.parquet and pairs.parquet: read in bounded memory, every row checked.

Items without content, whose vectors are all zeros or missing in every column, get no semantic ID: they are left out,
and models know them by their HID alone.

Shapes: N items, M items left out, V width of all columns together, E behaviour width, D width of one column, R rows of
a batch, P pairs.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike

from sidrec.io.files import column_type, readable
from sidrec.io.local_cache import local_file
from sidrec.io.places import Place
from sidrec.io.progress import Bar
from sidrec.schema import (
    BEHAVIOR,
    ITEM_ID,
    OTHER_ID,
    PAIRS,
    TRAIN_IMPRESSIONS,
    UNKNOWN_ID,
    VECTOR_COLUMNS,
    ContractError,
)
from sidrec.sid.tokenizer import VECTORS_ALONE, LearnerInputs, SideInformation
from sidrec.text import byte_size

ROWS = 16_384  # rows in memory at a time
BUFFER = 1 << 20  # bytes of the file in memory at a time; by default pyarrow holds whole row groups
IDS, VECTORS, LEFT_OUT = "item_ids", "vectors", "left_out"  # arrays in the scratch folder; the fourth is BEHAVIOR
SHORTEST, LONGEST = 1e-15, 1e18  # lengths whose squares, and sums of them, float32 holds


@dataclass(frozen=True)
class ItemVectors:
    """item_ids_N: int64. vectors_NV: float32. side: what learners use besides. Memory maps with a scratch folder.

    left_out_M: int64 ids of items without content in any column.
    partly: number of the N items without content in one of several columns, whose part of the vector is zero.
    """

    item_ids_N: np.ndarray
    vectors_NV: np.ndarray
    side: SideInformation
    left_out_M: np.ndarray
    partly: int = 0


def read_item_vectors(
    path: Place,
    columns: tuple[str, ...],
    normalize: bool,
    scratch: Path | None = None,
    inputs: LearnerInputs = VECTORS_ALONE,
    batch_rows: int = ROWS,
) -> ItemVectors:
    """Reads and concatenates vector columns, each scaled to unit length first if `normalize`.

    scratch: an empty folder for ids, vectors and behaviour vectors as memory-mapped files, so that items larger than
        RAM fit; the caller removes it. None keeps them in memory.
    inputs: what the learner needs besides (`learner_inputs`). batch_rows: rows in memory at a time.

    All-zero behaviour vectors mark items whose behaviour is unknown. Learners with `unknown_behavior` accept them, and
    so does side information. Other learners refuse items that have content but no behaviour.

    Raises ContractError, with file, row and column, for: a missing or truncated file; no rows, or none with content; a
    missing column (the message lists the vector columns that exist); a type other than fixed-size lists of float32;
    NaN, infinite or missing values; vectors too long or too short for float32 squares that nothing scales; item ids
    below 1 or given twice; no room for the scratch files; and as `read_item_pairs` does.
    """
    file = _open(path)
    widths = _widths(file, columns, path)
    rows = file.metadata.num_rows
    if not rows:
        raise ContractError(path, "at least one item", "no rows")
    behavior_width = _behavior_width(file, path) if inputs.behavior else 0
    taken = _Taken(
        ids=new_array(scratch, IDS, (rows,), np.int64),
        vectors=new_array(scratch, VECTORS, (rows, sum(widths.values())), np.float32),
        behavior=new_array(scratch, BEHAVIOR, (rows, behavior_width), np.float32) if inputs.behavior else None,
    )
    raw = [name for name in columns if not normalize or name in inputs.unscaled]
    lengths = _Lengths(path)
    wanted = dict.fromkeys([*columns, BEHAVIOR] if inputs.behavior else columns)
    for start, batch in _batches(file, [ITEM_ID, *wanted], path, batch_rows):
        ids_R = _ids(batch, path, start)
        found = {name: _vectors(batch, name, path, start, ids_R) for name in wanted}
        has_RC = np.stack([found[name].any(axis=1) for name in columns], axis=1)
        if BEHAVIOR in columns and not inputs.unknown_behavior:
            _check_behavior(has_RC[:, columns.index(BEHAVIOR)] | ~has_RC.any(axis=1), path, start, ids_R)
        for name in raw:
            lengths.add(found[name], name, start, ids_R)
        scaled = [found[name] if name in raw else _unit(found[name]) for name in columns]
        taken.add(ids_R, np.concatenate(scaled, axis=1), found.get(BEHAVIOR), has_RC)
    lengths.check()
    if not taken.end:
        raise ContractError(
            f"{path}, column {', '.join(columns)}", "vectors with some content", "all zeros in all rows"
        )
    _check_ids(file, path)
    left_out_M = new_array(scratch, LEFT_OUT, (rows - taken.end,), np.int64)
    left_out_M[:] = np.concatenate(taken.left_out)
    ids_N, vectors_NV, behavior_NE = taken.arrays()
    side = _side(file, columns, inputs, ids_N, left_out_M, behavior_NE, path)
    return ItemVectors(ids_N, vectors_NV, side, left_out_M, taken.partly)


@dataclass
class _Taken:
    """Arrays with room for all items of a file, filled in order with those that have content: the first `end` rows."""

    ids: np.ndarray
    vectors: np.ndarray
    behavior: np.ndarray | None
    end: int = 0
    partly: int = 0
    left_out: list[np.ndarray] = field(default_factory=list)

    def add(
        self, ids_R: np.ndarray, vectors_RV: np.ndarray, behavior_RE: np.ndarray | None, has_RC: np.ndarray
    ) -> None:
        """has_RC: whether a row has content in each column."""
        taken_R = has_RC.any(axis=1)
        part = slice(self.end, self.end + int(taken_R.sum()))
        self.ids[part], self.vectors[part] = ids_R[taken_R], vectors_RV[taken_R]
        if self.behavior is not None and behavior_RE is not None:
            self.behavior[part] = behavior_RE[taken_R]
        self.left_out.append(ids_R[~taken_R])
        self.partly += int((taken_R & ~has_RC.all(axis=1)).sum())
        self.end = part.stop

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Ids, vectors and behaviour of the items taken."""
        return (
            self.ids[: self.end],
            self.vectors[: self.end],
            None if self.behavior is None else self.behavior[: self.end],
        )


def map_item_vectors(
    path: Place, columns: tuple[str, ...], scratch: Path, inputs: LearnerInputs = VECTORS_ALONE
) -> ItemVectors:
    """Maps the scratch files that `read_item_vectors`, called with the same arguments, wrote in another process.

    Both processes run on one machine. Raises ContractError when this process cannot see the files, and as
    `read_item_vectors` does.
    """
    left_out_M = mapped_array(scratch, LEFT_OUT)
    all_ids = mapped_array(scratch, IDS)
    end = len(all_ids) - len(left_out_M)
    behavior = mapped_array(scratch, BEHAVIOR)[:end] if inputs.behavior else None
    side = _side(_open(path), columns, inputs, all_ids[:end], left_out_M, behavior, path)
    return ItemVectors(all_ids[:end], mapped_array(scratch, VECTORS)[:end], side, left_out_M)


def _side(
    file: pq.ParquetFile,
    columns: tuple[str, ...],
    inputs: LearnerInputs,
    ids_N: np.ndarray,
    left_out_M: np.ndarray,
    behavior_NE: np.ndarray | None,
    path: Place,
) -> SideInformation:
    pairs = read_item_pairs(path.with_name(PAIRS), ids_N, left_out_M) if inputs.pairs else None
    widths = tuple(_widths(file, columns, path).items())
    return SideInformation(widths, _train_impressions(file, path, ids_N), pairs, behavior_NE)


def _widths(file: pq.ParquetFile, columns: tuple[str, ...], path: Place) -> dict[str, int]:
    return {column: _vector_width(file.schema_arrow, column, path) for column in columns}


def _behavior_width(file: pq.ParquetFile, path: Place) -> int:
    if BEHAVIOR not in file.schema_arrow.names:
        expected = f"a column {BEHAVIOR} for the learner's losses, as `sidrec prep behavior` adds it"
        raise ContractError(path, expected, file.schema_arrow.names)
    return _vector_width(file.schema_arrow, BEHAVIOR, path)


def _open(path: Place) -> pq.ParquetFile:
    if not path.is_file():
        raise ContractError(path, "item vectors, as data_prep writes them", "no such file")
    with readable(path):
        file = pq.ParquetFile(local_file(path), buffer_size=BUFFER, pre_buffer=False)
        schema = file.schema_arrow
    kind = column_type(schema, ITEM_ID, path)
    if kind != pa.int64():
        raise ContractError(f"{path}, column {ITEM_ID}", "int64", kind)
    return file


def _vector_width(schema: pa.Schema, column: str, path: Place) -> int:
    if column not in schema.names:
        there = [name for name in VECTOR_COLUMNS if name in schema.names]
        raise ContractError(path, f"a vector column {column}", f"vector columns {there} among {schema.names}")
    kind = column_type(schema, column, path)
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise ContractError(f"{path}, column {column}", "fixed-size lists of float32", kind)
    return int(kind.list_size)


def _batches(file: pq.ParquetFile, columns: list[str], path: Place, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    with Bar(total=file.metadata.num_rows, desc="read item vectors", unit=" items", disable=None) as bar:
        try:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                yield start, batch
                start += batch.num_rows
                bar.update(batch.num_rows)
        except (OSError, pa.ArrowException) as error:
            raise ContractError(f"{path}, from row {start} on", "readable column data", error) from None


def _ids(batch: pa.RecordBatch, path: Place, start: int) -> np.ndarray:
    column = batch.column(ITEM_ID)
    if column.null_count:
        row = start + int(np.flatnonzero(column.is_null())[0])
        raise ContractError(f"{path}, row {row}, column {ITEM_ID}", "an item id", "no value")
    return column.to_numpy()


def _vectors(batch: pa.RecordBatch, name: str, path: Place, start: int, ids_R: np.ndarray) -> np.ndarray:
    """float32 [R, D] of one column; zeros for a missing vector.

    Raises ContractError for NaN or infinite values, and vectors with some values missing.
    """
    column = batch.column(name)
    there_R = np.asarray(column.is_valid())
    values = column.drop_null().flatten()
    if values.null_count:
        first = int(np.flatnonzero(there_R)[np.flatnonzero(values.is_null())[0] // column.type.list_size])
        raise ContractError(_where(path, start, first, name, ids_R), "a whole vector", "missing values")
    vectors_RD = values.to_numpy().reshape(-1, column.type.list_size)
    if not there_R.all():
        spread_RD = np.zeros((len(column), column.type.list_size), np.float32)
        spread_RD[there_R] = vectors_RD
        vectors_RD = spread_RD
    bad_R = ~np.isfinite(vectors_RD).all(axis=1)
    if bad_R.any():
        where = _where(path, start, int(np.flatnonzero(bad_R)[0]), name, ids_R)
        raise ContractError(where, "finite values", f"NaN or infinity ({bad_R.sum()} such rows)")
    return vectors_RD


def _check_behavior(sound_R: np.ndarray, path: Place, start: int, ids_R: np.ndarray) -> None:
    """Raises ContractError for an item that has content, but no behaviour, which the learner needs."""
    if not sound_R.all():
        expected = "a vector with some content (only adc_sid and mm_rqvae learn from items without behaviour)"
        where = _where(path, start, int(np.flatnonzero(~sound_R)[0]), BEHAVIOR, ids_R)
        raise ContractError(where, expected, f"all zeros ({(~sound_R).sum()} such rows)")


class _Lengths:
    """Checks that float32 holds the squares of vectors that are used as they are.

    A vector longer than LONGEST overflows them; a column without a vector of SHORTEST underflows them, and all its
    items would look alike.
    """

    def __init__(self, path: Place) -> None:
        self._path = path
        self._longest: dict[str, float] = {}

    def add(self, vectors_RD: np.ndarray, name: str, start: int, ids_R: np.ndarray) -> None:
        """Raises ContractError, with row and column, for a vector that is too long."""
        lengths_R = np.linalg.norm(vectors_RD.astype(np.float64), axis=1)
        row = int(lengths_R.argmax())
        if lengths_R[row] > LONGEST:
            self._refuse(_where(self._path, start, row, name, ids_R), lengths_R[row])
        self._longest[name] = max(self._longest.get(name, 0.0), float(lengths_R[row]))

    def check(self) -> None:
        """Raises ContractError for a column whose vectors are all too short."""
        for name, length in self._longest.items():
            if 0 < length < SHORTEST:
                self._refuse(f"{self._path}, column {name}", length)

    def _refuse(self, where: str, length: float) -> NoReturn:
        expected = f"vectors of length {SHORTEST:g} to {LONGEST:g}, whose squares float32 holds"
        raise ContractError(where, expected, f"{length:.3g}; scale the column, or let tokenizer.normalize do it")


def _where(path: Place, start: int, row: int, column: str, ids_R: np.ndarray) -> str:
    return f"{path}, row {start + row} (item {ids_R[row]}), column {column}"


def _unit(vectors_RD: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length; zero rows stay zero.

    Rows with very large or small values are first scaled by a power of two, which rounds nothing, so that their
    squares neither overflow nor underflow.
    """
    peaks_R1 = np.abs(vectors_RD).max(axis=1, keepdims=True)
    extreme_R1 = (peaks_R1 > 0) & ((peaks_R1 < 2.0**-40) | (peaks_R1 > 2.0**40))
    if extreme_R1.any():
        vectors_RD = np.ldexp(vectors_RD, np.where(extreme_R1, -np.frexp(peaks_R1)[1], 0))
    norms_R1 = np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    return vectors_RD / np.where(norms_R1 > 0, norms_R1, 1)


def _check_ids(file: pq.ParquetFile, path: Place) -> None:
    with readable(path, "readable column data"):
        ids_N = file.read([ITEM_ID]).column(0).to_numpy()
    if ids_N.min() <= UNKNOWN_ID:
        row = int(np.flatnonzero(ids_N <= UNKNOWN_ID)[0])
        raise ContractError(f"{path}, row {row}, column {ITEM_ID}", f"ids above {UNKNOWN_ID}", int(ids_N[row]))
    order = np.argsort(ids_N, kind="stable")
    twice = np.flatnonzero(np.diff(ids_N[order]) == 0)
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        where = f"{path}, row {second}, column {ITEM_ID}"
        raise ContractError(where, "every item once", f"{ids_N[second]}, already in row {first}")


def _train_impressions(file: pq.ParquetFile, path: Place, ids_N: np.ndarray) -> np.ndarray | None:
    """int64 [N] of these items, which are in the file's order; None without the column."""
    if TRAIN_IMPRESSIONS not in file.schema_arrow.names:
        return None
    column_type(file.schema_arrow, TRAIN_IMPRESSIONS, path)
    with readable(path, "readable column data"):
        counts = file.read([TRAIN_IMPRESSIONS]).column(0)
    if counts.type != pa.int64() or counts.null_count:
        raise ContractError(f"{path}, column {TRAIN_IMPRESSIONS}", "int64 without missing values", counts.type)
    if len(counts) > len(ids_N):
        return counts.to_numpy()[np.isin(file.read([ITEM_ID]).column(0).to_numpy(), ids_N)]
    return counts.to_numpy()


def read_item_pairs(path: Place, item_ids_N: np.ndarray, left_out_M: np.ndarray | None = None) -> np.ndarray:
    """int64 [P, 2]: row numbers of items that belong together, in the file's order and direction.

    item_ids_N: ids by row, every id once. left_out_M: ids of items whose pairs are dropped.

    Raises ContractError for a missing or unreadable file, no pairs, columns
    other than int64 without missing values, ids that no item has, and an item paired with itself.
    """
    if not path.is_file():
        expected = "item pairs for the learner's losses, as `sidrec prep behavior` writes them"
        raise ContractError(path, expected, "no such file")
    with readable(path):
        table = pq.read_table(local_file(path))
    if not {ITEM_ID, OTHER_ID} <= set(table.column_names):
        raise ContractError(path, f"columns {ITEM_ID} and {OTHER_ID}", table.column_names)
    for name in (ITEM_ID, OTHER_ID):
        column_type(table.schema, name, path)
    if not table.num_rows:
        raise ContractError(path, "at least one pair", "no rows")
    if left_out_M is not None and len(left_out_M):
        kept = [np.isin(table[name].to_numpy(), left_out_M, invert=True) for name in (ITEM_ID, OTHER_ID)]
        table = table.filter(pa.array(kept[0] & kept[1]))
        if not table.num_rows:
            raise ContractError(path, "at least one pair of items with content", "none")
    rows_P2 = np.stack([_rows(table[name], name, path, item_ids_N) for name in (ITEM_ID, OTHER_ID)], axis=1)
    alike = np.flatnonzero(rows_P2[:, 0] == rows_P2[:, 1])
    if len(alike):
        item = item_ids_N[rows_P2[alike[0], 0]]
        raise ContractError(f"{path}, row {alike[0]}", "two different items", f"item {item} twice")
    return rows_P2


def _rows(column: pa.ChunkedArray, name: str, path: Place, item_ids_N: np.ndarray) -> np.ndarray:
    if column.type != pa.int64() or column.null_count:
        missing = f"{column.type} with {column.null_count} missing"
        raise ContractError(f"{path}, column {name}", "int64 without missing values", missing)
    ids_P = column.to_numpy()
    order = np.argsort(item_ids_N, kind="stable")
    place_P = np.minimum(np.searchsorted(item_ids_N, ids_P, sorter=order), len(order) - 1)
    rows_P = order[place_P]
    unknown = np.flatnonzero(item_ids_N[rows_P] != ids_P)
    if len(unknown):
        got = f"{ids_P[unknown[0]]} ({len(unknown)} such rows)"
        raise ContractError(f"{path}, row {unknown[0]}, column {name}", "an id of items.parquet", got)
    return rows_P


def new_array(folder: Path | None, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """A new array, mapped to FOLDER/NAME.npy, where other processes of the machine can map it too; None is in memory.

    The disk space is allocated at once, as a disk that fills up under a mapped file kills the process without a
    message. Raises ContractError when there is not enough.
    """
    if folder is None:
        return np.empty(shape, dtype)
    path = folder / f"{name}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            free = shutil.disk_usage(folder).free
            expected = f"room for {byte_size(array.nbytes)} of {name}; TMPDIR names another folder"
            raise ContractError(folder, expected, f"{error.strerror}, {byte_size(free)} free") from None
    return array


def mapped_array(folder: Path, name: str) -> np.ndarray:
    """The array that another process of this machine filled, read-only.

    Raises ContractError when this process cannot see the file.
    """
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except OSError as error:
        expected = "a file that the first process of this machine has written for all of them"
        raise ContractError(path, expected, error.strerror) from None
