"""What every raw log is turned into first: events, with the file and line of anything that is wrong with them.

An event table has the columns user, item (string, the source's own ids), timestamp (int64, seconds since 1970) and
label (float32, 0 or 1), and whatever `int_*` (float32) and `cat_*` (string) columns the source brings along.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.id_map import IdMap
from sidrec.schema import ContractError

USER, ITEM, TIMESTAMP, LABEL = "user", "item", "timestamp", "label"
LATEST = 4_102_444_800  # 2100-01-01: later "seconds" are milliseconds or nonsense
CATALOG_TITLE, CATALOG_TEXT = "title", "content"


@dataclass(frozen=True)
class Items:
    """Metadata of items, one row per item id, row 0 for id 1.

    table: columns source_id, title, content (the text that vectors are made of), and others for people.
    categories: cat_* column -> value per item as text; empty means unknown.
    vectors: vector column -> float32 [items, width].
    """

    table: pa.Table
    categories: Mapping[str, pa.Array]
    vectors: Mapping[str, np.ndarray]
    notes: Mapping[str, object]


class Source(Protocol):
    """A raw log that can be read as events, in any order, and then asked about its items."""

    @property
    def name(self) -> str:
        """For the manifest."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file read: a changed file makes unfinished work void."""

    @property
    def dense(self) -> tuple[str, ...]:
        """int_* columns of the events."""

    @property
    def categorical(self) -> tuple[str, ...]:
        """cat_* columns of the events."""

    @property
    def extra(self) -> tuple[str, ...]:
        """Other float32 columns of the events, written to the log beside the contract's."""

    @property
    def labels(self) -> str:
        """How the label came to be, in words."""

    def catalog(self) -> list[str]:
        """Source ids that get the item ids 1, 2, ... before any event is read."""

    def events(self) -> Iterator[pa.Table]:
        """Event tables. Raises ContractError with file, line and column of what is wrong."""

    def items(self, ids: IdMap) -> Items:
        """Metadata of the items in `ids`."""


def numbers(text: pa.ChunkedArray, kind: pa.DataType, where: str, first_line: int) -> pa.ChunkedArray:
    """Parses a text column as `kind`, where the first value stands on line `first_line`.

    Raises ContractError with the first line that is missing, NaN, infinite or no number at all.
    """
    text = pc.utf8_trim_whitespace(text)
    try:
        values = pc.cast(text, pa.float64() if pa.types.is_floating(kind) else kind)
        bad = pc.invert(pc.fill_null(pc.is_finite(values), False))
        if not pc.any(bad).as_py():
            return pc.cast(values, kind, safe=False)
    except pa.ArrowInvalid:
        bad = pc.invert(pc.fill_null(pc.match_substring_regex(text, _pattern(kind)), False))
    row = pc.index(bad, True).as_py()
    raise ContractError(f"{where}, line {first_line + row}", _words(kind), repr(text[row].as_py()))


def _pattern(kind: pa.DataType) -> str:
    return r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$" if pa.types.is_floating(kind) else r"^-?\d{1,18}$"


def _words(kind: pa.DataType) -> str:
    return "a finite number" if pa.types.is_floating(kind) else "a whole number"


def check_events(events: pa.Table, where: object, first_line: int) -> pa.Table:
    """Ids are there, times lie in [1970, 2100), labels are 0 or 1. Raises ContractError with the first bad line."""
    rules = {
        USER: ("a user id", pc.equal(pc.utf8_length(pc.fill_null(events[USER], "")), 0)),
        ITEM: ("an item id", pc.equal(pc.utf8_length(pc.fill_null(events[ITEM], "")), 0)),
        TIMESTAMP: (
            "seconds since 1970, before the year 2100 (milliseconds?)",
            pc.or_(pc.less(events[TIMESTAMP], 0), pc.greater_equal(events[TIMESTAMP], LATEST)),
        ),
        LABEL: ("0 or 1", pc.invert(pc.or_(pc.equal(events[LABEL], 0), pc.equal(events[LABEL], 1)))),
    }
    for column, (expected, bad) in rules.items():
        row = pc.index(pc.fill_null(bad, True), True).as_py()
        if row >= 0:
            got = repr(events[column][row].as_py())
            raise ContractError(f"{where}, line {first_line + row}, column {column}", expected, got)
    return events


def check_unique(column: pa.ChunkedArray, where: str, first_line: int) -> None:
    """Raises ContractError with the first line whose id is missing or was there before."""
    seen: set[str] = set()
    for row, value in enumerate(column.to_pylist()):
        if not value or value in seen:
            raise ContractError(f"{where}, line {first_line + row}", "an id of its own", repr(value))
        seen.add(value)
