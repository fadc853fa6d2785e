"""Any CSV or Parquet log: `python -m data_prep.interactions LOG OUT --user-column ... --item-column ...`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from sidrec import schema
from sidrec.command_line import metavar
from sidrec.errors import ContractError, print_warning
from sidrec.schema import RANDOM
from sidrec.text import did_you_mean

from .build import LogSettings, prepare
from .command import run
from .dense_numbers import MISSING
from .events import (
    CATALOG_TEXT,
    CATALOG_TITLE,
    ITEM,
    LABEL,
    TIMESTAMP,
    USER,
    EventColumns,
    IdMap,
    Items,
    by_item,
    check_events,
)
from .item_vectors import NONE, TEXT_SOURCES
from .log_rows import ROW_DENSE
from .source_columns import Lines, amounts, first_values, numbers, seconds, texts
from .source_files import Block, blocks, column_names, files_of, whole

DENSE = schema.DENSE_PREFIX

LONGEST_NAME = 200  # bytes of a column's name: it becomes a file's, with a prefix and a suffix, and those have 255
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Columns:
    """Columns of the files. Without a label or rating column, every row is a positive and negatives are sampled."""

    user_column: str = "user_id"
    """Column of the interactions with the user."""
    item_column: str = "item_id"
    """Column of the interactions with the item."""
    timestamp_column: str = "timestamp"
    """Column of the interactions with the time: typed, a number since 1970, or ISO 8601; UTC where no zone is given."""
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of times that are numbers."""
    label_column: str | None = None
    """Column of the interactions with labels 0 and 1."""
    other_label_columns: tuple[str, ...] = ()
    """Further columns with labels 0 and 1, kept as label_<name>; `data.label` of a recipe names the one to learn."""
    rating_column: str | None = None
    """Column of the interactions with a rating."""
    threshold: float = 4.0
    """Ratings of at least this are positive."""
    cat_columns: tuple[str, ...] = ()
    """Columns of the interactions that become cat_<name> of the log."""
    cat_list_columns: tuple[str, ...] = ()
    """Columns of the interactions with several values in a row that become cat_<name>: lists, or text to split."""
    dense_columns: tuple[str, ...] = ()
    """Columns of numbers that become int_<name>: log(1 + x), standardised on the train split; negatives count as 0."""
    items_file: Path | None = None
    """CSV or Parquet file, folder or pattern of files, with one row per item."""
    items_id_column: str = "item_id"
    """Column of the items file with the item."""
    text_columns: tuple[str, ...] = ()
    """Columns of the items file whose text is embedded; the first one is the title."""
    item_cat_columns: tuple[str, ...] = ()
    """Columns of the items file that become cat_<name> of the log."""
    item_cat_list_columns: tuple[str, ...] = ()
    """Columns of the items file with several values in a row that become cat_<name>, as --cat-list-columns do."""
    list_separator: Annotated[str, metavar("CHARACTERS")] = "|"
    """Between the values of a row, in columns of several values that are text."""
    list_length: int = 50
    """Values kept of a row, in columns of several values."""
    item_dense_columns: tuple[str, ...] = ()
    """Columns of the items file with numbers that become int_<name>, as --dense-columns do."""
    separator: Annotated[str, metavar("CHARACTER", "found in the header")] = ""
    """Character between the values of text files."""

    def check(self) -> None:
        """Raises ContractError that names flags which contradict each other."""
        for name, value in vars(self).items():
            if value is not None and name.endswith(("_column", "_columns")):
                _check_names(f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,))
        if self.label_column and self.rating_column:
            raise ContractError("--label-column, --rating-column", "at most one of them", "both")
        roles = [self.user_column, self.item_column, self.timestamp_column, self.label_column or self.rating_column]
        if repeated := [name for name in roles if name is not None and roles.count(name) > 1]:
            flags = "--user-column, --item-column, --timestamp-column, --label-column, --rating-column"
            raise ContractError(flags, "different columns", f"{repeated[0]!r} twice")
        if self.items_file is None and (self.text_columns or self.of_items):
            flags = "--text-columns, --item-cat-columns, --item-cat-list-columns, --item-dense-columns"
            raise ContractError(flags, "an --items-file that has them", "none")
        if len(self.separator) > 1:
            raise ContractError("--separator", "one character", repr(self.separator))
        names = (*self.cat_columns, *self.cat_list_columns, *self.item_cat_columns, *self.item_cat_list_columns)
        if len(set(names)) < len(names):
            flags = "--cat-columns, --cat-list-columns, --item-cat-columns, --item-cat-list-columns"
            raise ContractError(flags, "different names", list(names))
        longest = np.iinfo(np.int32).max
        if not self.list_separator or not 1 <= self.list_length <= longest:
            expected = f"a separator, and a length of at least 1 and at most {longest:,}"
            got = f"{self.list_separator!r}, {self.list_length}"
            raise ContractError("--list-separator, --list-length", expected, got)
        self._check_labels()
        self._check_dense()
        self._check_lists()

    def _check_lists(self) -> None:
        others = {self.user_column, self.item_column, self.timestamp_column}
        others |= {*self.dense_columns, *self.other_label_columns}
        of_items = {self.items_id_column, *self.item_dense_columns}
        twice = [*others.intersection(self.cat_list_columns), *of_items.intersection(self.item_cat_list_columns)]
        if twice:
            flags = "--cat-list-columns, --item-cat-list-columns"
            raise ContractError(flags, "columns that no other flag names", repr(twice[0]))

    def _check_labels(self) -> None:
        others = self.other_label_columns
        if others and self.implicit:
            expected = "--label-column or --rating-column as well: sampled rows have no other labels"
            raise ContractError("--other-label-columns", expected, "neither")
        target = self.label_column or self.rating_column
        if len({target, *others}) <= len(others):
            raise ContractError("--other-label-columns", "different columns", [target, *others])

    def _check_dense(self) -> None:
        flags = "--dense-columns, --item-dense-columns"
        names = (*self.dense_columns, *self.item_dense_columns)
        made = [column for name in names for column in (DENSE + name, DENSE + name + MISSING)]
        taken = [*ROW_DENSE, *made]
        if repeated := sorted({column for column in made if taken.count(column) > 1}):
            got = f"{list(names)}: {repeated[0]} twice"
            raise ContractError(flags, f"different names, and none of {list(ROW_DENSE)}", got)
        targets = {self.label_column, self.rating_column, *self.other_label_columns}
        target = targets & {*self.dense_columns, *self.cat_columns, *self.cat_list_columns}
        if target:
            flags = f"--cat-columns, --cat-list-columns, {flags}"
            raise ContractError(flags, "columns that do not give the label away", f"the label's own, {target.pop()!r}")

    @property
    def names_of_events(self) -> dict[str, str]:
        """Column of an event table -> column of the interactions."""
        target = self.label_column or self.rating_column or LABEL
        others = {schema.LABEL_PREFIX + name: name for name in self.other_label_columns}
        names = {USER: self.user_column, ITEM: self.item_column, TIMESTAMP: self.timestamp_column, LABEL: target}
        return {**names, **others}

    @property
    def own(self) -> tuple[str, ...]:
        """Columns of the interactions beside user, item, time and target."""
        return (*self.cat_columns, *self.cat_list_columns, *self.dense_columns, *self.other_label_columns)

    @property
    def of_items(self) -> tuple[str, ...]:
        """Columns of the items file beside the item and texts."""
        return (*self.item_cat_columns, *self.item_cat_list_columns, *self.item_dense_columns)

    @property
    def implicit(self) -> bool:
        return self.label_column is None and self.rating_column is None


@dataclass(frozen=True)
class Interactions:
    """A file of interactions, and a file of items or none, as a source of events."""

    log: Path
    columns: Columns
    timed: bool = True

    @property
    def name(self) -> str:
        return f"interactions {self.log.name}"

    @property
    def files(self) -> tuple[Path, ...]:
        items = self.columns.items_file
        return (*files_of(self.log), *(() if items is None else files_of(items)))

    @property
    def event_columns(self) -> EventColumns:
        return EventColumns(
            timed=self.timed,
            numbers={DENSE + column: column for column in self.columns.dense_columns},
            categorical=tuple(schema.CATEGORICAL_PREFIX + column for column in self.columns.cat_columns),
            lists=tuple(schema.CATEGORICAL_PREFIX + column for column in self.columns.cat_list_columns),
            labels=tuple(schema.LABEL_PREFIX + column for column in self.columns.other_label_columns),
        )

    @property
    def labels(self) -> str:
        if self.columns.label_column:
            return f"the column {self.columns.label_column}"
        if self.columns.rating_column:
            return f"1 where {self.columns.rating_column} is at least {self.columns.threshold:g}; every rating is a row"
        return "1 for every interaction; rows with 0 are sampled"

    @cached_property
    def _items(self) -> pa.Table | None:
        columns = self.columns
        if columns.items_file is None:
            return None
        wanted = tuple(dict.fromkeys((columns.items_id_column, *columns.text_columns, *columns.of_items)))
        lists = dict.fromkeys(columns.item_cat_list_columns, columns.list_separator)
        found = blocks(columns.items_file, wanted, columns.text_columns, columns.separator, lists)
        return whole(map(self._with_numbers, found), columns.items_file, columns.items_id_column)

    def _with_numbers(self, block: Block) -> Block:
        """The block, with its dense columns as numbers, so that errors name the line."""
        lines, table = block
        for name in self.columns.item_dense_columns:
            place = table.column_names.index(name)
            table = table.set_column(place, name, amounts(table[name], name, lines))
        return Block(lines, table)

    def catalog(self) -> list[str]:
        items = self._items
        return [] if items is None else list(items[self.columns.items_id_column].to_pylist())

    def events(self) -> Iterator[pa.Table]:
        columns = self.columns
        times = (columns.timestamp_column,) if self.timed else ()
        target = [column for column in (columns.label_column, columns.rating_column) if column]
        wanted = tuple(dict.fromkeys((columns.user_column, columns.item_column, *times, *target, *columns.own)))
        lists = dict.fromkeys(columns.cat_list_columns, columns.list_separator)
        cut: Counter[str] = Counter()
        for lines, table in blocks(self.log, wanted, separator=columns.separator, list_columns=lists):
            events = pa.table(
                {
                    USER: texts(table[columns.user_column]),
                    ITEM: texts(table[columns.item_column]),
                    TIMESTAMP: self._times(table, lines),
                    LABEL: self._label(table, lines),
                }
            )
            for name, column in zip(self.event_columns.categorical, columns.cat_columns, strict=True):
                events = events.append_column(name, texts(table[column]))
            for name, column in zip(self.event_columns.lists, columns.cat_list_columns, strict=True):
                kept, left_out = first_values(table[column], columns.list_length)
                events, cut[column] = events.append_column(name, kept), cut[column] + left_out
            for name, column in zip(self.event_columns.labels, columns.other_label_columns, strict=True):
                events = events.append_column(name, numbers(table[column], pa.float32(), column, lines))
            for name, column in self.event_columns.numbers.items():
                events = events.append_column(name, amounts(table[column], column, lines))
            yield check_events(events, lines, columns.names_of_events)
        _warn_of_cuts(self.log, cut, columns.list_length)

    def _times(self, table: pa.Table, lines: Lines) -> pa.ChunkedArray:
        name = self.columns.timestamp_column
        if not self.timed:
            return pa.chunked_array([np.zeros(table.num_rows, np.int64)])
        return seconds(table[name], PER_SECOND[self.columns.timestamp_unit], name, lines)

    def _label(self, table: pa.Table, lines: Lines) -> pa.ChunkedArray:
        columns = self.columns
        target = columns.label_column or columns.rating_column
        if target is None:
            return pa.chunked_array([pa.array([1.0] * table.num_rows, pa.float32())])
        values = numbers(table[target], pa.float64(), target, lines)
        if columns.rating_column:
            values = pc.greater_equal(values, columns.threshold)
        return pc.cast(values, pa.float32())

    def items(self, ids: IdMap) -> Items:
        listed, columns = self._items, self.columns
        item_M = np.zeros(0, np.int64) if listed is None else ids.ids_of(listed[columns.items_id_column])

        def text(column: str) -> list[str]:
            if listed is None:
                return [""] * len(ids)
            values = listed[column]
            if pa.types.is_list(values.type):
                values = pc.binary_join(values, " ")
            return list(by_item(values, item_M, len(ids)).to_pylist())

        texts = [text(column) for column in columns.text_columns]
        title = texts[0] if texts else [""] * len(ids)
        content = [" ".join(filter(None, parts)) for parts in zip(*texts, strict=True)] if texts else title
        table = pa.table(
            {
                "source_id": pa.array(ids.source_ids(), pa.string()),
                CATALOG_TITLE: pa.array(title, pa.string()),
                CATALOG_TEXT: pa.array(content, pa.string()),
            }
        )
        categories = {
            schema.CATEGORICAL_PREFIX + column: pa.array(text(column), pa.string())
            for column in columns.item_cat_columns
        }
        notes = {"items": len(ids), "not_in_items_file": len(ids) - len(item_M), "without_text": content.count("")}
        numbers = {
            DENSE + column: (self._item_numbers(column, item_M, len(ids)), column)
            for column in columns.item_dense_columns
        }
        listed_I = np.isin(np.arange(1, len(ids) + 1), item_M)
        lists = self._item_lists(item_M, len(ids))
        return Items(table, categories, {}, notes, None if listed is None else listed_I, numbers, lists)

    def _item_lists(self, item_M: np.ndarray, items: int) -> dict[str, pa.ListArray]:
        found, cut = {}, Counter[str]()
        for column in self.columns.item_cat_list_columns:
            assert self._items is not None, "item columns need an items file"
            kept, cut[column] = first_values(self._items[column], self.columns.list_length)
            row_I = np.full(items, len(kept))
            row_I[item_M - 1] = np.arange(len(kept))
            found[schema.CATEGORICAL_PREFIX + column] = pa.concat_arrays([kept, pa.array([[]], kept.type)]).take(row_I)
        _warn_of_cuts(self.columns.items_file, cut, self.columns.list_length)
        return found

    def _item_numbers(self, column: str, item_M: np.ndarray, items: int) -> np.ndarray:
        assert self._items is not None, "item columns need an items file"
        values_I = np.full(items, np.nan)
        values_I[item_M - 1] = pc.cast(self._items[column], pa.float64()).to_numpy()
        return values_I


def _check_names(flag: str, columns: tuple[str, ...]) -> None:
    """Raises ContractError that names a column whose name no file could have."""
    for column in columns:
        if not column:
            raise ContractError(flag, "names of columns", "an empty one")
        size = len(column.encode(errors="surrogateescape"))
        if size > LONGEST_NAME:
            raise ContractError(flag, f"names of at most {LONGEST_NAME} bytes", f"one of {size} bytes")


def _warn_of_cuts(path: Path | None, cut: Counter[str], most: int) -> None:
    for column, values in (+cut).items():
        print_warning(f"{path}, column {column}: {values:,} values beyond the first {most} of a row left out")


@dataclass(frozen=True)
class InteractionsCommand:
    """Writes log/ and items.parquet from interactions: CSV or other delimited text, plain or packed, or Parquet."""

    src: tyro.conf.Positional[Annotated[Path, metavar("LOG")]]
    """File with one interaction a row, folder of such files, or pattern ('log/*.parquet')."""
    out: tyro.conf.Positional[Annotated[Path, metavar("OUT")]]
    """Data folder to write."""
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)
    log: Annotated[LogSettings, tyro.conf.arg(name="")] = field(default_factory=LogSettings)
    vectors: Annotated[str | None, metavar("SOURCE", "wordllama with --text-columns, else none")] = None
    """Item vectors from wordllama, sentence-transformers, none, or FILE.npy (row = item_id - 1)."""

    def run(self) -> None:
        self.columns.check()
        if self.vectors in TEXT_SOURCES and not self.columns.text_columns:
            raise ContractError(f"--vectors {self.vectors}", "--text-columns, whose text it embeds", "none")
        timed = self._has_times()
        vectors = self.vectors or ("wordllama" if self.columns.text_columns else NONE)
        prepare(Interactions(self.src, self.columns, timed), self.out, self.log, self.columns.implicit, vectors)

    def _has_times(self) -> bool:
        """Raises ContractError for a log without times, unless a random split is asked for."""
        name, names = self.columns.timestamp_column, column_names(self.src, self.columns.separator)
        if name in names or not any(names):  # of an empty file, the reader says more
            return True
        near = f"columns {names}{did_you_mean(name, names)}"
        if self.log.split != RANDOM:
            wanted = f"a column {name!r} (or another --timestamp-column); for a log without times, --split {RANDOM}"
            raise ContractError(self.src, wanted, near)
        if name != Columns.timestamp_column:
            raise ContractError(self.src, f"a column {name!r}, as --timestamp-column says", near)
        if self.columns.implicit:
            expected = "--label-column or --rating-column: without times, no negatives can be sampled"
            raise ContractError(f"--split {RANDOM}", expected, "neither")
        said = "rows are split at random, and no row has a history or statistics"
        print_warning(f"{self.src}: no column {name!r}: {said}{did_you_mean(name, names)}")
        return False


if __name__ == "__main__":
    run(
        InteractionsCommand,
        "data_prep.interactions",
        "clicks.csv.gz data/clicks --timestamp-unit ms",
        "ratings.parquet data/ratings --rating-column stars --items-file items.csv --text-columns title",
    )
