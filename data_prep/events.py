"""Events: the form that every raw log is read into, with checks that name the file and line of bad input.

An event table has the columns user, item (string, the source's own ids), timestamp (int64, seconds since 1970) and
label (float32, 0 or 1), and the source's own `int_*` (float32) and `cat_*` (string) columns.

A raw log is a `Source`: it yields event tables in any order, then metadata of the items. `data_prep.source_files` reads
its files.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec import schema
from sidrec.errors import ContractError, print_warning

from .source_columns import Lines

USER, ITEM, TIMESTAMP, LABEL = "user", "item", "timestamp", "label"
LATEST = 4_102_444_800  # 2100-01-01: later "seconds" are milliseconds or nonsense
CATALOG_TITLE, CATALOG_TEXT = "title", "content"


@dataclass(frozen=True)
class Items:
    """Metadata of items, one row per item id; row 0 is id 1.

    table: columns source_id, title, content (text that is embedded), and others for readers of items.parquet.
    categories: cat_* column -> text value per item; empty: unknown. lists: cat_* column -> list of texts per item, as
    in an event table.
    vectors: vector column -> float32 [items, width].
    listed: bool per item, whether the source's file of items lists it; None without such a file.
    numbers: int_* column -> float64 per item, NaN where missing, and the source's column.
    """

    table: pa.Table
    categories: Mapping[str, pa.Array]
    vectors: Mapping[str, np.ndarray]
    notes: Mapping[str, object]
    listed: np.ndarray | None = None
    numbers: Mapping[str, tuple[np.ndarray, str]] = field(default_factory=dict)
    lists: Mapping[str, pa.ListArray] = field(default_factory=dict)


@dataclass(frozen=True)
class EventColumns:
    """The source's own columns of an event table; all become columns of the log.

    dense: int_*, float32, as the log holds them. numbers: int_*, float64, NaN where missing, which preparation
    transforms (`data_prep.dense_numbers`) -> the source's column. categorical: cat_*, text. lists: cat_*, lists of
    different texts, none of them empty; no list is missing. labels: label_*, float32,
    0 or 1. extra: float32, beyond the contract. timed: whether events have times; without, every timestamp is 0.
    """

    dense: tuple[str, ...] = ()
    numbers: Mapping[str, str] = field(default_factory=dict)
    categorical: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    timed: bool = True


class IdMap:
    """Source ids (text) to dense ids 1, 2, ... in order of first appearance; 0: unknown. Holds all ids in memory."""

    def __init__(self, source_ids: Iterable[str] = ()) -> None:
        self._dense: dict[str, int] = {}
        for source_id in source_ids:
            self._dense.setdefault(source_id, len(self._dense) + 1)

    def __len__(self) -> int:
        return len(self._dense)

    def source_ids(self) -> list[str]:
        """Source ids in order of their dense ids, starting with id 1."""
        return list(self._dense)

    def get(self, source_id: str) -> int:
        """The dense id, 0 if there is none."""
        return self._dense.get(source_id, 0)

    def add(self, column: pa.ChunkedArray) -> np.ndarray:
        """Dense ids int64 [rows] of a text column. New ids are appended; empty or missing text is id 0."""
        encoded = column.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        dense = self._dense
        known = [dense.setdefault(text, len(dense) + 1) if text else 0 for text in encoded.dictionary.to_pylist()]
        codes = encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
        return np.asarray([*known, 0], dtype=np.int64)[codes]

    def add_lists(self, column: pa.ChunkedArray | pa.ListArray) -> pa.ListArray:
        """As `add`, of a column of lists: list<int32>."""
        lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        ids = self.add(pa.chunked_array([pc.list_flatten(lists)])).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, ids)

    def ids_of(self, column: pa.ChunkedArray) -> np.ndarray:
        """Dense ids int64 [rows] of a text column; 0 for text without an id."""
        return np.asarray([self._dense.get(text, 0) for text in column.to_pylist()], dtype=np.int64)

    def column(self) -> pa.ChunkedArray:
        """`source_ids` as an Arrow column."""
        found = pa.array(self._dense, pa.string())
        return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


def by_item(values: pa.ChunkedArray, item_M: np.ndarray, items: int) -> pa.Array:
    """Text by item: row k is the value of id k + 1, empty for items without one. item_M: id of each value."""
    place_I = np.full(items, -1, dtype=np.int64)
    place_I[item_M - 1] = np.arange(len(item_M))
    found = pc.fill_null(values.take(pa.array(place_I, mask=place_I < 0)), "")
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


class Source(Protocol):
    """A raw log: yields events in any order, then metadata of the items."""

    @property
    def name(self) -> str:
        """Name of the source in the manifest."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read. If one changes, an unfinished preparation starts again."""

    @property
    def event_columns(self) -> EventColumns:
        """Columns of the event tables beside user, item, timestamp and label."""

    @property
    def labels(self) -> str:
        """How labels are made, in words."""

    def catalog(self) -> list[str]:
        """Source ids that get the first new item ids, in this order, before any event is read."""

    def events(self) -> Iterator[pa.Table]:
        """Event tables. Raises ContractError with file, line and column of invalid input."""

    def items(self, ids: IdMap) -> Items:
        """Metadata of the items in `ids`. With --ids, ids may be in any order and lack metadata."""


def check_events(events: pa.Table, lines: Lines, names: Mapping[str, str] = MappingProxyType({})) -> pa.Table:
    """Checks that ids are present, times in [1970, 2100), labels 0/1. Raises ContractError with the first bad line.

    names: column of the table -> column of the source, for the message.
    """
    rules = {
        USER: ("a user id", pc.equal(pc.utf8_length(pc.fill_null(events[USER], "")), 0)),
        ITEM: ("an item id", pc.equal(pc.utf8_length(pc.fill_null(events[ITEM], "")), 0)),
        TIMESTAMP: (
            "seconds since 1970, before the year 2100 (milliseconds?)",
            pc.or_(pc.less(events[TIMESTAMP], 0), pc.greater_equal(events[TIMESTAMP], LATEST)),
        ),
    }
    for column in events.column_names:
        if column == LABEL or column.startswith(schema.LABEL_PREFIX):
            rules[column] = ("0 or 1", pc.invert(pc.or_(pc.equal(events[column], 0), pc.equal(events[column], 1))))
    for column, (expected, bad) in rules.items():
        row = pc.index(pc.fill_null(bad, True), True).as_py()
        if row >= 0:
            got = repr(events[column][row].as_py())
            where = f"{lines.path}, line {lines.at(row)}, column {names.get(column, column)}"
            raise ContractError(where, expected, got)
    return events


FEW_MATCHES = 0.5  # share of the log's items below which the file of items is probably another's


def check_matches(listed_I: np.ndarray | None, item_rows: np.ndarray, source_ids: list[str], where: object) -> None:
    """Warns, with figures, if the file of items lists few of the log's items. listed_I: see `Items`.

    item_rows: events per item id, 0 included. where: the files, for the message. Raises ContractError if it lists none:
    one of them writes its ids in another way.
    """
    if listed_I is None:
        return
    shown = np.flatnonzero(item_rows[1:])
    matched = int(listed_I[shown].sum())
    if matched >= FEW_MATCHES * len(shown):
        return
    unlisted, examples = (
        [source_ids[item] for item in some[:3]] for some in (shown[~listed_I[shown]], np.flatnonzero(listed_I))
    )
    forms = f"the log has ids such as {unlisted}, the file of items {examples}"
    if not matched:
        raise ContractError(
            where, "a file of items that lists items of the log", f"none of its {len(shown):,}; {forms}"
        )
    share = f"{matched:,} of the {len(shown):,} items of the log"
    print_warning(f"{where}: the file of items lists only {share}; {forms}")
