"""`sidrec score`: probabilities of the rows of CSV or Parquet files, which hold source ids.

    OUT/part-00000.parquet ...      one for each CHUNK rows of the input, in its order
    OUT/scores.json                 bundle, input and parts; written last

A part is written in one step. The same command, started again after a kill, goes on after the last part; parts of
another bundle or input are refused. Memory: one chunk of rows, and the pages of the bundle's arrays that it reads.

Shapes: B rows, T history positions, P history entries of all rows in one line, U distinct items (0 is empty).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from numpy.typing import NDArray

from sidrec.errors import ContractError
from sidrec.io.files import json_text, read_json, readable, write_json
from sidrec.io.parquet_places import open_bytes, open_parquet, read_footer, write_parquet
from sidrec.io.places import Place, StoreFile, StorePath, listed, put
from sidrec.serve.bundle import Transform
from sidrec.serve.calibration import probability
from sidrec.serve.id_lookup import UNKNOWN, Texts
from sidrec.serve.scorer import ITEM, ROWS, USER, Floats, Ints, Model

HISTORY, SCORE, CALIBRATED, VERSION = "history", "score", "calibrated", "version"
UNKNOWN_ITEM, UNKNOWN_USER = "unknown_item", "unknown_user"
CHUNK = 1 << 17
BATCH = 4096
"""Rows that pass through the graph at a time."""
INDEX = "scores.json"
LIST_SEPARATOR = "|"
"""Between the ids of a list in a CSV file."""


@dataclass(frozen=True)
class Input:
    """Files of rows, in order. rows: of all, None if only reading them tells."""

    files: tuple[Place, ...]
    rows: int | None

    @classmethod
    def of(cls, path: Place) -> "Input":
        """A file, or a folder's files by name. Raises ContractError."""
        files: tuple[Place, ...] = (path,) if path.is_file() else tuple(_files_in(path))
        if not files or any(each.suffix not in _SUFFIXES for each in files):
            raise ContractError(path, "a CSV or Parquet file, or a folder of them", "none")
        if any(each.suffix == ".csv" for each in files):
            return cls(files, None)
        counts = []
        for each in files:
            with readable(each):
                counts.append(read_footer(each).num_rows)
        return cls(files, sum(counts))

    @property
    def fingerprint(self) -> str:
        """Changes when a file is another one: names, sizes and times of change."""
        facts = [[each.name, *_size_and_version(each)] for each in self.files]
        return sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def chunks(self, rows: int) -> Iterator[pa.Table]:
        """Tables of `rows` rows, the last one shorter. Raises ContractError naming the file."""
        waiting: list[pa.Table] = []
        count = 0
        for table in self._tables():
            waiting.append(table)
            count += table.num_rows
            while count >= rows:
                joined = pa.concat_tables(waiting, promote_options="permissive")
                yield joined.slice(0, rows)
                waiting, count = [joined.slice(rows)], count - rows
        if count:
            yield pa.concat_tables(waiting, promote_options="permissive")

    def _tables(self) -> Iterator[pa.Table]:
        for path in self.files:
            if path.suffix == ".csv":
                with readable(path, "a readable CSV file"), open_bytes(path) as opened:
                    for batch in pcsv.open_csv(opened, convert_options=_AS_TEXT):
                        yield pa.Table.from_batches([batch])
            else:
                with readable(path):
                    for batch in open_parquet(path).iter_batches(BATCH * 8):
                        yield pa.Table.from_batches([batch])


def _files_in(folder: Place) -> list[Place]:
    if isinstance(folder, StorePath):
        found = [folder / entry.name for entry in listed(folder) if "/" not in entry.name]
        return [each for each in found if each.suffix in _SUFFIXES]
    return sorted(each for each in folder.glob("*") if each.suffix in _SUFFIXES)


def _size_and_version(path: Place) -> tuple[int, int | str]:
    if isinstance(path, StorePath):
        with StoreFile(path) as stored:
            return stored.size, stored.version
    return path.stat().st_size, path.stat().st_mtime_ns


_SUFFIXES = (".csv", ".parquet")
_AS_TEXT = pcsv.ConvertOptions(column_types={USER: pa.string(), ITEM: pa.string(), HISTORY: pa.string()})


@dataclass(frozen=True)
class Scored:
    """What was scored. unknown_items: rows on an item that the bundle does not know."""

    rows: int
    parts: int
    unknown_items: int
    unknown_users: int


def score_files(
    model: Model,
    source: Place,
    out: Place,
    done: Callable[[int], object] = lambda rows: None,
    chunk: int = CHUNK,
    explain: bool = False,
) -> Scored:
    """Scores `source` into the folder `out`. done: called with the rows of each part, also of those found there.
    explain: as in `score_table`.

    Raises ContractError for input that lacks a column or holds a wrong value, for an `out` with other parts, and for a
    model that explains nothing.
    """
    given = Input.of(source)
    facts = {"version": model.version, "input": given.fingerprint, "chunk": chunk, "explain": explain}
    _check_out(out, facts)
    _write_index(out, {**facts, "complete": False})
    rows = parts = unknown_items = unknown_users = 0
    for number, table in enumerate(given.chunks(chunk)):
        path = out / f"part-{number:05d}.parquet"
        if path.exists():
            scored = open_parquet(path).read([UNKNOWN_ITEM, UNKNOWN_USER])
        else:
            scored = score_table(model, table, f"{source}, row {rows + 1:,} on", explain)
            write_parquet(scored, path)
        unknown_items += pc.sum(scored[UNKNOWN_ITEM]).as_py() or 0
        unknown_users += pc.sum(scored[UNKNOWN_USER]).as_py() or 0
        rows, parts = rows + table.num_rows, number + 1
        done(table.num_rows)
    result = Scored(rows, parts, unknown_items, unknown_users)
    _write_index(out, {**facts, "complete": True, **asdict(result)})
    return result


def _write_index(out: Place, value: dict[str, Any]) -> None:
    if isinstance(out, StorePath):
        put(out / INDEX, json_text(value).encode())
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / INDEX, value, one_writer=True)


def _check_out(out: Place, facts: dict[str, Any]) -> None:
    if not out.exists():
        return
    filled = bool(listed(out)) if isinstance(out, StorePath) else not out.is_dir() or any(out.iterdir())
    if filled and not (out / INDEX).is_file():
        raise ContractError(out, "a folder of sidrec score, an empty one, or none", "something else")
    if (out / INDEX).is_file():
        found = read_json(out / INDEX, "what sidrec score writes")
        others = {key: found.get(key) for key in facts if found.get(key) != facts[key]}
        if others:
            wanted = {key: facts[key] for key in others}
            raise ContractError(out, f"scores of {wanted}", f"{others}; give another folder, or delete this one")


def score_table(model: Model, table: pa.Table, where: str, explain: bool = False) -> pa.Table:
    """The table's ids with the columns score, calibrated (where the bundle has a map), version, unknown_item and
    unknown_user.

    where: of its rows, for messages. explain: add columns of `Model.explain`, missing where an item has no SID.
    """
    logits, explained, unknown_items, unknown_users = [], [], [], []
    for first in range(0, table.num_rows, BATCH):
        rows = RowsToScore(model, table.slice(first, BATCH), where)
        inputs = rows.inputs()
        logits.append(model.run(ROWS, inputs))
        explained.append(model.explain(rows.item_B, inputs) if explain else {})
        unknown_items.append(rows.item_B == UNKNOWN)
        unknown_users.append(rows.unknown_user_B)
    logit_N = _joined(logits, np.float32)
    made: dict[str, Any] = {name: table[name] for name in (USER, ITEM) if name in table.column_names}
    made[SCORE] = probability(logit_N)
    if (calibrated_N := model.calibrated(logit_N)) is not None:
        made[CALIBRATED] = calibrated_N
    for name in model.description.explained.columns if explain else ():
        made[name] = pa.array(_joined([each[name] for each in explained], np.float32), from_pandas=True)
    made[VERSION] = pa.DictionaryArray.from_arrays(np.zeros(table.num_rows, dtype=np.int8), pa.array([model.version]))
    made[UNKNOWN_ITEM] = _joined(unknown_items, np.bool_)
    made[UNKNOWN_USER] = _joined(unknown_users, np.bool_)
    return pa.table(made)


def _joined(parts: Sequence[NDArray[Any]], kind: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=kind), *parts])


class RowsToScore:
    """A batch of rows as inputs of the graph."""

    def __init__(self, model: Model, table: pa.Table, where: str) -> None:
        self._model, self._where = model, where
        self._table = table.combine_chunks()
        self._size = table.num_rows
        self.item_B = self.ids(ITEM)
        self.unknown_user_B = np.zeros(self._size, dtype=np.bool_)

    def inputs(self) -> dict[str, NDArray[Any]]:
        about = self._model.description
        made: dict[str, NDArray[Any]] = {
            **self._model.bundle.of_rows(self.item_B, self.history(about.history_length), hashed_distinct),
            "stats": self.numbers(about.stats),
            "dense": self.numbers(about.dense),
        }
        for column in about.context:
            made[f"context_{column.name}"] = self._lists(column.name) if column.lists else self._context(column.name)
        return made

    # Columns.

    def _column(self, name: str, needed: bool = True) -> pa.Array | None:
        if name in self._table.column_names:
            column = self._table[name]
            return column.chunk(0) if column.num_chunks else pa.array([], column.type)
        if needed:
            raise ContractError(self._where, f"a column {name}", f"columns {self._table.column_names}")
        return None

    def ids(self, name: str, needed: bool = True) -> Ints:
        """The ids of a column, UNKNOWN where it is left out. Raises ContractError for one that is needed."""
        column = self._column(name, needed)
        return np.zeros(self._size, dtype=np.int64) if column is None else self._ids_of(name, column)

    def _ids_of(self, name: str, values: pa.Array) -> Ints:
        """Ids of source ids; a missing one is unknown."""
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_floating(values.type):  # 4.0 is another text than 4
            raise ContractError(f"{self._where}, column {name}", "texts or whole numbers", values.type)
        lookup = self._model.bundle.ids.get(name)
        if lookup is None:
            found = self._cast(name, values, pa.int64())
            number = pc.fill_null(found, UNKNOWN).to_numpy(zero_copy_only=False)
            known = self._model.known_ids(name)
            return np.where((number > UNKNOWN) & (number < known), number, UNKNOWN)
        texts = self._cast(name, values, pa.large_string())
        ids = lookup.rows(texts_of(texts))
        return np.where(texts.is_null().to_numpy(zero_copy_only=False), UNKNOWN, ids) if texts.null_count else ids

    def _cast(self, name: str, values: pa.Array, kind: pa.DataType) -> pa.Array:
        try:
            return values.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            expected = "whole numbers" if kind == pa.int64() else "texts or whole numbers"
            raise ContractError(f"{self._where}, column {name}", expected, error) from None

    def _list_column(self, name: str, needed: bool) -> tuple[pa.Array, Ints]:
        """The values of all lists in one line, and where each row's begin and end: [B + 1]."""
        column = self._column(name, needed)
        if column is None:
            return pa.array([], pa.string()), np.zeros(self._size + 1, dtype=np.int64)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            lists = pc.split_pattern(pc.fill_null(column, ""), LIST_SEPARATOR)
            empty = pc.equal(pc.fill_null(column, ""), "")
            column = pc.if_else(empty, pa.scalar([], lists.type), lists)
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise ContractError(f"{self._where}, column {name}", "lists of ids", column.type)
        lengths_B = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return pc.list_flatten(column), np.concatenate([[0], np.cumsum(lengths_B)])

    def history(self, most: int) -> Ints:
        """The latest items of each row, oldest first, padded at the end: int64 [B, T]."""
        values, offsets = self._list_column(HISTORY, needed=False)
        item_P = self._ids_of(ITEM, values)
        length_B = np.minimum(np.diff(offsets), most)
        width = max(1, int(length_B.max(initial=0)))
        place_BT = (offsets[1:] - length_B)[:, None] + np.arange(width)
        valid_BT = np.arange(width) < length_B[:, None]
        made_BT = np.zeros((self._size, width), dtype=np.int64)
        made_BT[valid_BT] = item_P[place_BT[valid_BT]]
        return made_BT

    def _context(self, name: str) -> Floats:
        ids_B = self.item_B if name == ITEM else self.ids(name, needed=name == USER)
        if name == USER:
            self.unknown_user_B = ids_B == UNKNOWN
        found: Floats = self._model.bundle.context[name].take(ids_B)
        return found

    def _lists(self, name: str) -> Floats:
        """The mean of the vectors of a row's ids; 0 without known ids."""
        values, offsets = self._list_column(name, needed=False)
        ids_P = self._ids_of(name, values)
        known_before = np.concatenate([[0], np.cumsum(ids_P > UNKNOWN)])
        return self._model.bundle.context[name].means(ids_P[ids_P > UNKNOWN], np.diff(known_before[offsets]))

    def numbers(self, names: Sequence[str]) -> Floats:
        """Columns of numbers side by side, [B, X]; made from their sources where the rows have these alone."""
        made_BX = np.empty((self._size, len(names)), dtype=np.float32)
        for place, name in enumerate(names):
            made_BX[:, place] = self._number(name)
        return made_BX

    def _number(self, name: str) -> NDArray[Any]:
        column = self._column(name, needed=False)
        transforms = self._model.description.transforms
        if column is None and name in transforms:
            return transformed(self._floats(transforms[name].source, missing=np.nan), transforms[name])
        made_from = next((of for of in transforms.values() if of.missing == name), None)
        if column is None and made_from is not None:
            return np.isnan(self._floats(made_from.source, missing=np.nan)).astype(np.float32)
        return self._floats(name)

    def _floats(self, name: str, missing: float | None = None) -> NDArray[np.float64]:
        column = self._column(name)
        assert column is not None, "a needed column"
        values = self._cast_number(name, column)
        if missing is not None:
            values = pc.fill_null(values, missing)
        found: NDArray[np.float64] = values.to_numpy(zero_copy_only=False)
        bad_B = ~np.isfinite(found) if missing is None else np.isinf(found)
        if bad_B.any():
            row = int(np.argmax(bad_B))
            raise ContractError(
                f"{self._where}, column {name}", "finite numbers", f"{column[row]} in its row {row + 1}"
            )
        return found

    def _cast_number(self, name: str, column: pa.Array) -> pa.Array:
        try:
            return column.cast(pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ContractError(f"{self._where}, column {name}", "numbers", error) from None


def hashed_distinct(id_N: Ints) -> tuple[Ints, Ints]:
    """`sorted_distinct` in the order of appearance: for a batch's ids, a sort takes longer than the graph does."""
    found = pa.array(id_N).dictionary_encode()
    return found.dictionary.to_numpy(), found.indices.to_numpy().astype(np.int64)


def transformed(number_B: NDArray[np.float64], by: Transform) -> NDArray[np.float64]:
    """The dense column of a source's numbers; NaN is a missing one."""
    made_B = (np.log1p(np.maximum(number_B, 0)) - by.mean) / by.deviation
    return np.where(np.isnan(number_B), 0.0, made_B)


def texts_of(column: pa.Array) -> Texts:
    """An Arrow column of large texts without copying its bytes; missing ones are empty."""
    _, offsets, data = column.buffers()
    first = column.offset
    offsets_M = np.frombuffer(offsets, dtype=np.int64)[first : first + len(column) + 1]
    empty = np.empty(0, dtype=np.uint8)
    return Texts(empty if data is None else np.frombuffer(data, dtype=np.uint8), offsets_M)
