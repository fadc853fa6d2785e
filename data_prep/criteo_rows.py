"""From lines of a raw Criteo log to arrays: labels, transformed dense values, categorical values and their ids.

A line has 40 fields separated by tabs: label, I1 to I13 (numbers), C1 to C26 (up to 8 hexadecimal digits). All but the
label may be empty. `blocks` reads a file block by block, `read_rows` parses a block, `ValueCounts`, `vocabulary` and
`VocabularyIds` (or `hashed_ids`) turn values into ids.

Shapes: N rows of a block, X = 13 dense and C = 26 categorical columns, V values in a vocabulary.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from operator import add
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import polars as pl

from sidrec.errors import ContractError

DENSE = tuple(f"I{number}" for number in range(1, 14))
CATEGORICAL = tuple(f"C{number}" for number in range(1, 27))
DENSE_TRANSFORM = "log(1 + max(x, 0)), the same for every file; missing and non-finite values become 0, as x = 0 does"
MISSING = 0
"""Stands for a missing categorical value; so does the value 00000000 in the log."""
_FIELDS = ("label", *DENSE, *CATEGORICAL)
_SCHEMA = {"label": pl.Int8} | dict.fromkeys(DENSE, pl.Float64) | dict.fromkeys(CATEGORICAL, pl.String)
_HEX = re.compile(rb"[0-9a-fA-F]{0,8}")
_TAB = 9


@dataclass(frozen=True)
class Tally:
    """Counts over rows. The last four are by column."""

    rows: int
    positives: int
    dense_missing: tuple[int, ...]
    dense_non_finite: tuple[int, ...]
    dense_negative: tuple[int, ...]
    categorical_missing: tuple[int, ...]

    def __add__(self, other: "Tally") -> "Tally":
        both = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        sums: dict[str, Any] = {
            name: a + b if isinstance(a, int) else tuple(map(add, a, b)) for name, (a, b) in both.items()
        }
        return Tally(**sums)

    @classmethod
    def empty(cls) -> "Tally":
        dense, categorical = (0,) * len(DENSE), (0,) * len(CATEGORICAL)
        return cls(0, 0, dense, dense, dense, categorical)


@dataclass(frozen=True)
class CriteoRows:
    """dense_NX: float32, transformed. value_NC: uint32, MISSING where there is none. label_N1: int32."""

    dense_NX: np.ndarray
    value_NC: np.ndarray
    label_N1: np.ndarray
    tally: Tally


@dataclass(frozen=True)
class Block:
    """Whole lines of a file, each with its newline. first_line: number of the first one in the file, from 1."""

    source: Path
    first_line: int
    text: bytes

    @property
    def lines(self) -> int:
        return self.text.count(b"\n")


def read_rows(block: Block) -> CriteoRows:
    """Parses a block. Raises ContractError with file, line and column of the first invalid field."""
    try:
        frame = pl.read_csv(block.text, schema=_SCHEMA, separator="\t", has_header=False, quote_char=None)
    except pl.exceptions.PolarsError as error:
        raise _first_mistake(block, " ".join(str(error).split())[:200]) from None
    values = frame.select(pl.col(CATEGORICAL).str.to_integer(base=16, dtype=pl.UInt32, strict=False))
    missing = frame.null_count().row(0)
    dense_missing, categorical_missing = missing[1 : 1 + len(DENSE)], missing[1 + len(DENSE) :]
    sound = _whole(frame, block) and frame["label"].is_in([0, 1]).all() and not missing[0]
    if not sound or values.null_count().row(0) != categorical_missing:
        raise _first_mistake(block, f"{len(frame)} rows from {block.lines} lines")
    dense = pl.col(DENSE)
    transformed = pl.when(dense.is_finite()).then(dense.clip(0).log1p()).otherwise(0).cast(pl.Float32)
    return CriteoRows(
        dense_NX=frame.select(transformed).to_numpy(order="c"),
        value_NC=values.fill_null(MISSING).to_numpy(order="c"),
        label_N1=frame["label"].cast(pl.Int32).to_numpy().reshape(-1, 1),
        tally=Tally(
            rows=len(frame),
            positives=int(frame["label"].sum()),
            dense_missing=dense_missing,
            dense_non_finite=frame.select((~dense.is_finite()).sum()).row(0),
            dense_negative=frame.select((dense < 0).sum()).row(0),
            categorical_missing=categorical_missing,
        ),
    )


def _whole(frame: pl.DataFrame, block: Block) -> bool:
    """Whether all lines are complete. Polars fills short lines with nulls silently, so tabs are counted."""
    tabs = np.count_nonzero(np.frombuffer(block.text, np.uint8) == _TAB)
    return len(frame) == block.lines and tabs == block.lines * (len(_FIELDS) - 1)


def _first_mistake(block: Block, otherwise: str) -> ContractError:
    """The error for the first invalid field. Slow: checks every field. otherwise: found, if no field is invalid."""
    for number, line in enumerate(block.text.split(b"\n")[:-1], block.first_line):
        found = line.removesuffix(b"\r").split(b"\t")
        where = f"{block.source}, line {number}"
        if len(found) != len(_FIELDS):
            hint = " (a test file has no labels)" if len(found) == len(_FIELDS) - 1 else ""
            return ContractError(where, f"{len(_FIELDS)} fields between tabs", f"{len(found)}{hint}")
        for column, text in zip(_FIELDS, found, strict=True):
            if expected := _mistake(column, text):
                return ContractError(f"{where}, {column}", expected, repr(text.decode(errors="replace")))
    last = block.first_line + block.lines - 1
    return ContractError(f"{block.source}, lines {block.first_line} to {last}", "a Criteo log", otherwise)


def _mistake(column: str, text: bytes) -> str | None:
    """What was expected of an invalid field; None for a valid one."""
    if column == "label":
        return None if text in (b"0", b"1") else "0 or 1"
    if column in CATEGORICAL:
        return None if _HEX.fullmatch(text) else "up to 8 hexadecimal digits"
    try:
        float(text or b"0")
    except ValueError:
        return "a number"
    return None


GZIP = b"\x1f\x8b"


def blocks(source: Path, size: int, watch: Callable[[int], object] = int) -> Iterator[Block]:
    """The lines of a file, about `size` bytes (uncompressed) at a time.

    watch: called with the bytes of the file read since the last call. Raises ContractError for a file that is empty,
    missing or a broken gzip file, and for a line longer than `size`.
    """
    if not source.is_file():
        raise ContractError(source, "a file to read", "none")
    with source.open("rb") as file:
        compressed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if compressed else file
        line, rest, before = 1, b"", 0
        while chunk := _read(stream, size, source):
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if len(rest) > size:
                raise ContractError(f"{source}, line {line}", f"a line of at most {size} bytes", "a longer one")
            if newline:
                block = Block(source, line, whole + newline)
                yield block
                line += block.lines
            watch(file.tell() - before)
            before = file.tell()
        if rest:
            yield Block(source, line, rest + b"\n")
        elif line == 1:
            raise ContractError(source, "at least one line", "an empty file")


def _read(stream: IO[bytes], size: int, source: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ContractError(source, "a whole gzip file", error) from None


# From categorical values to ids.


UNKNOWN, RARE, FIRST = 0, 1, 2
LEAST_MERGED = 1 << 18  # values that wait before a merge, so that not every small block causes one


class ValueCounts:
    """Distinct values of one column and their counts, without MISSING.

    Memory: 12 bytes per distinct uint32, up to twice that with values that wait, about 50 during a merge.
    """

    def __init__(self, kind: type[np.unsignedinteger] = np.uint32, least_merged: int = LEAST_MERGED) -> None:
        """least_merged: values that wait before a merge."""
        self._least_merged = least_merged
        self._values, self._counts = np.zeros(0, kind), np.zeros(0, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_values = 0

    @property
    def held(self) -> int:
        """Number of values in memory, duplicates among those that wait included."""
        return len(self._values) + self._waiting_values

    def count(self, value_N: np.ndarray) -> None:
        """Counts rows of the column: [N] of the kind."""
        values, counts = np.unique(value_N, return_counts=True)
        known = slice(1, None) if len(values) and values[0] == MISSING else slice(None)
        self.add(values[known], counts[known])

    def add(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Adds counts: distinct values and their int64 counts."""
        self._waiting.append((values, counts))
        self._waiting_values += len(values)
        if self._waiting_values > max(len(self._values), self._least_merged):  # so that merging stays linear
            self._merge()

    def total(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct values, rising, and their counts int64."""
        if self._waiting:
            self._merge()
        return self._values, self._counts

    def _merge(self) -> None:
        parts = [(self._values, self._counts), *self._waiting]
        self._waiting, self._waiting_values = [], 0
        values = np.concatenate([part[0] for part in parts])
        counts = np.concatenate([part[1] for part in parts])
        order = np.argsort(values)
        values = values[order]
        first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
        self._values = values[first]
        self._counts = np.add.reduceat(counts[order], first) if len(first) else counts


def vocabulary(values: np.ndarray, counts: np.ndarray, threshold: int) -> np.ndarray:
    """uint32 [V]: values that occur at least `threshold` times, by falling count, then by value.

    The value at index i has the id i + FIRST.
    """
    kept = counts >= threshold
    values, counts = values[kept], counts[kept]
    return values[np.lexsort((values, -counts))]


@dataclass(frozen=True)
class VocabularyIds:
    """Maps values to ids by a vocabulary: MISSING to UNKNOWN, values not in it to RARE. Memory: 8 bytes per value."""

    sorted_values: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, vocabulary_V: np.ndarray) -> "VocabularyIds":
        values = np.concatenate([[np.uint32(MISSING)], vocabulary_V])
        ids = np.concatenate([[UNKNOWN], np.arange(FIRST, FIRST + len(vocabulary_V))]).astype(np.int32)
        order = np.argsort(values)
        return cls(values[order], ids[order])

    def __call__(self, value_N: np.ndarray) -> np.ndarray:
        """int32 [N] for uint32 [N]."""
        # Distinct values are sorted, so consecutive searches hit nearby memory.
        values, place_N = np.unique(value_N, return_inverse=True)
        at = np.minimum(np.searchsorted(self.sorted_values, values), len(self.sorted_values) - 1)
        return np.where(self.sorted_values[at] == values, self.ids[at], np.int32(RARE))[place_N]


def hashed_ids(value_NC: np.ndarray, rows: int) -> np.ndarray:
    """int32 ids in [0, rows): UNKNOWN for MISSING, else 1 + value mod (rows - 1). rows: at least 2."""
    return np.where(value_NC == MISSING, UNKNOWN, 1 + value_NC % np.uint32(rows - 1)).astype(np.int32)
