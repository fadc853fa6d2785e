"""Whole columns that are wrong although each of their values is legal: constant, an id in place of a value, the label.

`ColumnChecks` counts while events are read, block by block and vectorised, and `judge` looks at the counts afterwards:
it warns, with figures, of what is probably a mistake, and refuses what cannot be meant.

Shapes: E events of a block, V values of a category.
"""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.errors import ContractError, print_warning
from sidrec.schema import CATEGORICAL_PREFIX, DENSE_PREFIX, LABEL_PREFIX

from .command import flatten_snapshot, restore_snapshot
from .events import ITEM, LABEL, TIMESTAMP, USER, EventColumns, Items

LEAST_ROWS = 20  # fewer events say nothing about a column
ROWS_PER_VALUE = 20  # a category with fewer events per value may foretell labels by chance
LEAST_OF_A_LABEL = 5  # rows of 20: 2 in 15,504 random columns would tell the labels of all
MOSTLY = 0.9  # share of the rows
NEAR_LABEL = 0.9  # correlation with the label that a column known beforehand rarely has
DAY = 86_400
FIRST_PLAUSIBLE = 7305 * DAY  # 1990-01-01: earlier times are probably of a smaller unit than named, or relative
SMALLER_UNIT = 48 * DAY  # a thousandth of the times until 2100: what seconds become that are read as milliseconds


TOTALS = ("rows", "positives", "user_is_item")


class ColumnChecks:
    """Counts over the events of a source. source: its name, for messages."""

    def __init__(self, source: str, columns: EventColumns) -> None:
        self._source, self._columns = source, columns
        self._rows = self._positives = self._user_is_item = 0
        self._item_number = _ConsecutiveNumbers()
        self._values: Mapping[str, ValueCounts] = {}
        self._numbers = {name: _Numbers() for name in columns.numbers}
        self._labels = {name: np.zeros((2, 2), np.int64) for name in columns.labels}
        self._lists = {name: _Lists() for name in columns.lists}
        self._times = _Times()
        texts = (*columns.categorical, *columns.numbers)
        self._same = {(name, other): True for name in texts for other in (USER, ITEM)}
        self._same |= {(name, TIMESTAMP): columns.timed for name in (USER, ITEM, *columns.numbers)}
        self._same |= {(USER, LABEL): True, (ITEM, LABEL): True}
        names = list(columns.numbers)
        self._same |= {(name, other): True for place, name in enumerate(names) for other in names[:place]}

    def save(self) -> bytes:
        """The counts, for `restore`."""
        arrays: dict[str, np.ndarray] = {}
        for name, root in self._counts().items():
            flatten_snapshot(name, root, arrays)
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        return stream.getvalue()

    def restore(self, saved: bytes) -> None:
        """Takes over what `save` of the same columns returned."""
        with np.load(io.BytesIO(saved)) as stored:
            arrays = dict(stored)
        found: dict[str, Any] = {name: restore_snapshot(root, name, arrays) for name, root in self._counts().items()}
        self._rows, self._positives, self._user_is_item = (int(found[name]) for name in TOTALS)
        self._item_number, self._times = found["item_number"], found["times"]
        self._same = dict(zip(self._same, found["same"].tolist(), strict=True))
        for kind, by_name in self._by_column().items():
            by_name.update({name: found[f"{kind}{place}"] for place, name in enumerate(by_name)})

    def _by_column(self) -> dict[str, dict[str, Any]]:
        return {"numbers": self._numbers, "labels": self._labels, "lists": self._lists}

    def _counts(self) -> dict[str, object]:
        totals = zip(TOTALS, (self._rows, self._positives, self._user_is_item), strict=True)
        found: dict[str, object] = {name: np.asarray(value) for name, value in totals}
        found |= {"item_number": self._item_number, "times": self._times, "same": np.asarray([*self._same.values()])}
        for kind, by_name in self._by_column().items():  # by place, as names of columns are any text
            found |= {f"{kind}{place}": counts for place, counts in enumerate(by_name.values())}
        return found

    def add(self, events: pa.Table) -> None:
        """Counts a block of events, as the source yields them."""
        label_E = events[LABEL].to_numpy() > 0
        self._item_number.add(events[ITEM], self._rows)
        for name, numbers in self._numbers.items():
            numbers.add(events[name].to_numpy(), label_E)
        for name, counts in self._labels.items():
            np.add.at(counts, (label_E.astype(np.int64), (events[name].to_numpy() > 0).astype(np.int64)), 1)
        for name, lists in self._lists.items():
            lists.add(events[name])
        for pair in [pair for pair, same in self._same.items() if same]:
            self._same[pair] = _same_values(*(events[name] for name in pair))
        self._times.add(events[TIMESTAMP].to_numpy())
        self._user_is_item += pc.sum(pc.equal(events[USER], events[ITEM])).as_py() or 0
        self._rows += len(label_E)
        self._positives += int(label_E.sum())

    def judge(self, implicit: bool, values: Mapping[str, "ValueCounts"]) -> None:
        """Prints warnings. implicit: the log holds positives only. values: of users, items and categories.

        Raises ContractError for what cannot be meant.
        """
        self._values = values
        if self._columns.timed:
            self._times.judge(self._source, self._rows)
        if self._rows < LEAST_ROWS:
            return
        self._judge_ids()
        if not implicit and self._positives == self._rows:
            got = f"{self._rows:,} events, all positive; a log of positives alone needs no label or rating column"
            raise ContractError(self._source, "labels 0 and 1", got)
        for name, found in values.items():
            if name.startswith(CATEGORICAL_PREFIX):
                self._judge_category(name, found)
        for name, numbers in self._numbers.items():
            self._judge_number(name, numbers)
        for name, counts in self._labels.items():
            self._judge_label(name, counts)
        for name, lists in self._lists.items():
            self._judge_lists(name, lists)

    def _warn(self, name: str, what: str) -> None:
        print_warning(f"{self._source}, {_named(name)}: {what}")

    def _refuse(self, name: str, expected: str, got: str) -> None:
        raise ContractError(f"{self._source}, {_named(name)}", expected, got)

    def _judge_ids(self) -> None:
        rows, first = self._rows, self._item_number.first
        if self._user_is_item == rows:
            self._refuse(ITEM, "other values than the user column has", f"the same in all {rows:,} rows")
        if self._user_is_item > MOSTLY * rows:
            self._warn(ITEM, f"{self._user_is_item:,} of {rows:,} rows have the same value as in the user column")
        if first is not None:
            got = f"{first}, {first + 1}, {first + 2}, … in {rows:,} rows: the number of the row"
            self._refuse(ITEM, "items, which several rows can share", got)
        self._judge_id(USER, "no row has a history")
        self._judge_id(ITEM, "nothing that is learned of an item is of use to another row")

    def _judge_id(self, name: str, cost: str) -> None:
        """cost: of an id for each row."""
        rows, values = self._rows, self._values[name]
        found = values.different
        if self._same[name, LABEL]:
            self._refuse(name, "ids", f"the label in all {rows:,} rows")
        if self._same[name, TIMESTAMP]:
            self._warn(name, f"all {rows:,} rows have the same value as in {_named(TIMESTAMP)}")
        elif self._tells_label(values):
            self._warn(name, f"its {found:,} values tell the label of all {rows:,} rows")
        if found == rows:
            self._warn(name, f"{rows:,} rows have {found:,} different values: {cost}")
        elif found == 1:
            self._warn(name, f"all {rows:,} rows have one value")
        elif found > MOSTLY * rows:
            self._warn(name, f"{found:,} different values in {rows:,} rows: for most, {cost}")

    @property
    def _both_labels(self) -> bool:
        return min(self._positives, self._rows - self._positives) >= LEAST_OF_A_LABEL

    def _tells_label(self, values: "ValueCounts") -> bool:
        """Whether all rows of each value have one label, and this is no chance."""
        return self._both_labels and not values.mixed and self._rows >= ROWS_PER_VALUE * max(1, values.different)

    def _judge_category(self, name: str, values: "ValueCounts") -> None:
        rows, found = self._rows, values.different
        if self._tells_label(values):
            got = f"a column whose {found:,} values tell the label of all {rows:,} rows; leave it out"
            self._refuse(name, "what is known before the label", got)
        for other in (USER, ITEM):
            if self._same[name, other]:
                self._warn(name, f"all {rows:,} rows have the same value as in the {other} column")
        if found == 0:
            self._warn(name, f"all {rows:,} values are missing")
        elif found == 1 and not values.missing:
            self._warn(name, f"all {rows:,} rows have one value")
        elif found > MOSTLY * rows:
            self._warn(name, f"{found:,} different values in {rows:,} rows: an id of the row, not a category")

    def _judge_number(self, name: str, numbers: "_Numbers") -> None:
        rows, found = self._rows, f"leave it out; {self._positives:,} of {self._rows:,} rows are positive"
        if self._both_labels:
            if numbers.separates_labels:
                got = f"a column that tells the label of every row, {numbers.ranges}; {found}"
                self._refuse(name, "what is known before the label", got)
            if numbers.missing_tells_labels:
                got = f"a column that is missing in just the rows of one label; {found}"
                self._refuse(name, "what is known before the label", got)
            if abs(numbers.correlation) > NEAR_LABEL:
                what = f"correlates with the label by {numbers.correlation:.3f}"
                self._warn(name, f"{what}: is it known before the label?")
        same = [other for (column, other), holds in self._same.items() if column == name and holds]
        for other in same:
            self._warn(name, f"all {rows:,} rows have the same value as in {_named(other)}")
        if numbers.low == numbers.high:
            self._warn(name, f"every number is {numbers.low:g}")
        elif not numbers.known:
            self._warn(name, f"all {rows:,} numbers are missing")
        elif not same and numbers.integral and numbers.distinct > 0.98 * numbers.known and numbers.known > LEAST_ROWS:
            found = f"about {numbers.distinct:,.0f} different whole numbers in {numbers.known:,} rows"
            self._warn(name, f"{found}: an id, not an amount?")

    def _judge_lists(self, name: str, lists: "_Lists") -> None:
        if not lists.values:
            self._warn(name, f"all {self._rows:,} lists are empty")
        elif not lists.several and lists.marked > lists.values / 2:
            found = f"no row has several values, and {lists.marked:,} of {lists.values:,} values hold one of , ; |"
            self._warn(name, f"{found}, such as {lists.example!r}: is that the --list-separator?")

    def _judge_label(self, name: str, counts: np.ndarray) -> None:
        if not counts[:, 0].any() or not counts[:, 1].any():
            self._warn(name, f"all {self._rows:,} labels are {int(counts[:, 1].any())}")
        elif not counts[0, 1] and not counts[1, 0]:
            self._warn(name, f"all {self._rows:,} rows have the same label as in the label column")


def _named(name: str) -> str:
    if name in (USER, ITEM):
        return f"the {name} column"
    if name == TIMESTAMP:
        return "the column of times"
    for prefix in (CATEGORICAL_PREFIX, DENSE_PREFIX, LABEL_PREFIX):
        name = name.removeprefix(prefix)
    return f"column {name}"


def _same_values(column: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether both columns of a block are equal in all rows; texts are compared with numbers as numbers."""
    if pa.types.is_string(column.type) and pa.types.is_string(other.type):
        return bool(pc.all(pc.fill_null(pc.equal(column, other), False)).as_py())
    try:
        return bool(np.array_equal(*(values.cast(pa.float64(), safe=False).to_numpy() for values in (column, other))))
    except pa.ArrowInvalid:  # text that is no number
        return False


@dataclass(frozen=True)
class ValueCounts:
    """Of a column of texts. different: values. missing: rows without one. mixed: values whose rows have both labels."""

    different: int
    missing: int
    mixed: int


@dataclass
class _ConsecutiveNumbers:
    """Whether a column holds consecutive whole numbers, row by row, and their first."""

    holds: bool = True
    number: int = 0

    @property
    def first(self) -> int | None:
        return self.number if self.holds else None

    def add(self, text: pa.ChunkedArray, rows_before: int) -> None:
        if self.holds:
            first = _first_of_consecutive(text, rows_before, self.number if rows_before else None)
            self.holds, self.number = first is not None, first or 0


def _first_of_consecutive(text: pa.ChunkedArray, rows_before: int, first: int | None) -> int | None:
    try:
        number_E = text.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    start = int(number_E[0]) if first is None else first + rows_before
    return start - rows_before if np.array_equal(number_E, start + np.arange(len(number_E))) else None


@dataclass
class _Numbers:
    """Counts of a column of numbers, by label where a field is an array of two.

    lows, highs, missing: by label. integral: all are whole. smallest_hashes: of the values, to estimate how many differ
    (Bar-Yossef et al. 2002). sums: of x, x², y, xy over the rows with a number.
    """

    KEPT = 4096
    lows: np.ndarray = field(default_factory=lambda: np.full(2, np.inf))
    highs: np.ndarray = field(default_factory=lambda: np.full(2, -np.inf))
    missing: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    known: int = 0
    integral: bool = True
    smallest_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def add(self, value_E: np.ndarray, label_E: np.ndarray) -> None:
        known_E = ~np.isnan(value_E)
        self.missing += np.bincount(label_E[~known_E], minlength=2)
        for label in (0, 1):
            values = value_E[known_E & (label_E == label)]
            self.lows[label] = min(self.lows[label], values.min(initial=np.inf))
            self.highs[label] = max(self.highs[label], values.max(initial=-np.inf))
        values, labels = value_E[known_E], label_E[known_E]
        self.known += len(values)
        self.integral = self.integral and bool((values == np.floor(values)).all())
        if self.integral:
            hashes = pd.util.hash_array(values)
            if len(self.smallest_hashes) == self.KEPT:
                hashes = hashes[hashes < self.smallest_hashes[-1]]
            self.smallest_hashes = np.unique(np.concatenate([self.smallest_hashes, hashes]))[: self.KEPT]
        logs = np.log1p(np.maximum(values, 0))
        self.sums += [logs.sum(), np.square(logs).sum(), labels.sum(), logs[labels].sum()]

    @property
    def low(self) -> float:
        return float(self.lows.min())

    @property
    def high(self) -> float:
        return float(self.highs.max())

    @property
    def separates_labels(self) -> bool:
        """Whether a threshold tells the labels of all rows."""
        if self.missing.any() or not np.isfinite(self.lows).all():
            return False
        return bool(self.highs[0] < self.lows[1] or self.highs[1] < self.lows[0])

    @property
    def ranges(self) -> str:
        return "; ".join(f"{self.lows[label]:g} to {self.highs[label]:g} where it is {label}" for label in (0, 1))

    @property
    def missing_tells_labels(self) -> bool:
        known = np.isfinite(self.lows)
        return bool(((self.missing > 0) ^ known).all() and known.sum() == 1)

    @property
    def distinct(self) -> float:
        if len(self.smallest_hashes) < self.KEPT:
            return len(self.smallest_hashes)
        return (self.KEPT - 1) / (float(self.smallest_hashes[-1]) / 2.0**64)

    @property
    def correlation(self) -> float:
        """Of log(1 + max(x, 0)) with the label."""
        x, squares, y, products = self.sums
        count = max(1, self.known)
        spread = np.sqrt(max(0.0, squares * count - x * x)) * np.sqrt(max(0.0, y * count - y * y))
        return float((products * count - x * y) / spread) if spread > 1e-9 * count else 0.0


@dataclass
class _Lists:
    """Counts of a column of lists. several: rows with more than one value. marked: values that hold a separator."""

    values: int = 0
    several: int = 0
    marked: int = 0
    example: str = ""

    def add(self, column: pa.ChunkedArray) -> None:
        values = pc.list_flatten(column)
        marked = values.filter(pc.match_substring_regex(values, "[^,;|][,;|][^,;|]"))
        self.values += len(values)
        self.several += pc.sum(pc.greater(pc.list_value_length(column), 1)).as_py() or 0
        self.marked += len(marked)
        self.example = self.example or (marked[0].as_py() if len(marked) else "")


@dataclass
class _Times:
    """zero, early, middle, future: rows at time 0, of a smaller unit perhaps, until 1990, and later than now."""

    first: int = np.iinfo(np.int64).max
    last: int = 0
    zero: int = 0
    early: int = 0
    middle: int = 0
    future: int = 0

    def add(self, time_E: np.ndarray) -> None:
        self.first, self.last = min(self.first, int(time_E.min())), max(self.last, int(time_E.max()))
        self.zero += int((time_E == 0).sum())
        self.early += int(((time_E > 0) & (time_E < SMALLER_UNIT)).sum())
        self.middle += int(((time_E >= SMALLER_UNIT) & (time_E < FIRST_PLAUSIBLE)).sum())
        self.future += int((time_E > time.time() + DAY).sum())

    def judge(self, source: str, rows: int) -> None:
        span = f"from {_date(self.first)} to {_date(self.last)}"
        if self.last < FIRST_PLAUSIBLE:
            print_warning(f"{source}: all times are {span}: check their unit, unless they count from another start")
            return
        if self.early and not self.middle:
            got = f"{self.early:,} of {rows:,} times before {_date(SMALLER_UNIT)}, the others up to {_date(self.last)}"
            raise ContractError(f"{source}, times", "times of one unit in all rows", got)
        if self.zero:
            print_warning(f"{source}: {self.zero:,} of {rows:,} times are 0, 1970-01-01: are they missing?")
        if self.future:
            print_warning(f"{source}: {self.future:,} of {rows:,} times are later than now; all are {span}")
        if self.first == self.last and rows >= LEAST_ROWS:
            print_warning(f"{source}: all {rows:,} rows have one time: no row has a history or statistics")


def _date(seconds: int) -> str:
    return str(np.datetime64(seconds, "s").astype("datetime64[D]"))


# The columns of items.


def check_item_columns(items: Items, where: object) -> None:
    """Warns of categories and numbers of items that are constant, or an id of the item. where: the files."""
    rows = items.table.num_rows if items.listed is None else int(items.listed.sum())
    if rows < LEAST_ROWS:
        return
    for name, values in items.categories.items():
        known = pc.unique(pc.drop_null(pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)))
        _warn_of_items(where, name, len(known), rows)
    for name, (numbers, _) in items.numbers.items():
        found = np.unique(numbers[~np.isnan(numbers)])
        _warn_of_items(where, name, len(found), rows if (found == np.floor(found)).all() else 0)


def _warn_of_items(where: object, name: str, values: int, rows: int) -> None:
    what: Mapping[int, str] = {0: "no item has a value", 1: "all items that have a value have the same"}
    if values in what:
        print_warning(f"{where}, {_named(name)}: {what[values]}")
    elif values == rows:
        print_warning(f"{where}, {_named(name)}: {values:,} different values of {rows:,} items: an id of the item?")
