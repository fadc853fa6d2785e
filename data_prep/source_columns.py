"""Converts columns of source files (text, numbers, flags, dates, times) to the types of an event table.

Errors name file, column and line of the first value that cannot be converted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.errors import ContractError

LIST_TYPES = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


@dataclass(frozen=True)
class Lines:
    """Where the rows of a block stand in their file. first: the line of the first row; rows of Parquet count from 1.

    line_of: finds the line of a row of text, whose values may span lines: (file, row, from 0) -> line. `first` is then
    the number of the first row, not its line.
    """

    path: Path
    first: int
    line_of: Callable[[Path, int], int] | None = None

    def at(self, row: int) -> int:
        """The line of a row of the block, counted from 1."""
        place = self.first + row
        return place if self.line_of is None else self.line_of(self.path, place)


def plain(column: pa.ChunkedArray, name: str, lines: Lines, free_text: bool) -> pa.ChunkedArray:
    """The column as text, whole or floating numbers, booleans, decimals, dates or times.

    Raises ContractError for lists, structures and other types, and for text that is not UTF-8.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(column.type, pa.BaseExtensionType):
        is_uuid = column.type.extension_name == "arrow.uuid"
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        if is_uuid:
            return _each(column, lambda value: str(UUID(bytes=value)))
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        column, kind = column.cast(pa.binary()), pa.binary()
    if kind in (pa.binary(), pa.large_binary(), pa.string(), pa.large_string(), pa.binary_view(), pa.string_view()):
        return _utf8(column.cast(pa.binary()), name, lines, free_text)
    tests = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal)
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if not any(test(kind) for test in tests) or pa.types.is_duration(kind):
        hint = "; lists are for --cat-list-columns" if any(test(kind) for test in LIST_TYPES) else ""
        raise ContractError(f"{lines.path}, column {name}", "text, numbers, dates or times", f"the type {kind}{hint}")
    return column.cast(pa.float64()) if kind == pa.float16() else column


def _utf8(column: pa.ChunkedArray, name: str, lines: Lines, free_text: bool) -> pa.ChunkedArray:
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        if not free_text:
            values = column.to_pylist()
            row = next(place for place, value in enumerate(values) if value is not None and _broken(value))
            where = f"{lines.path}, column {name}, line {lines.at(row)}"
            raise ContractError(where, "UTF-8 text", repr(values[row][:60])) from None
        text = _each(column, lambda value: value.decode("utf-8", "replace"))
    return text


def without_blanks(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Trimmed text, with empty values as null; and the number of values that were trimmed."""
    if not pa.types.is_string(column.type):
        return column, 0
    text = pc.utf8_trim_whitespace(column)
    count = pc.sum(pc.not_equal(text, column)).as_py() or 0
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text), count


def _broken(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _each(column: pa.ChunkedArray, text_of: Callable[[Any], str]) -> pa.ChunkedArray:
    values = [None if value is None else text_of(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.string())])


def lists(column: pa.ChunkedArray, separator: str, name: str, lines: Lines) -> pa.ListArray:
    """A column as lists of different texts: lists of any type, or text that `separator` parts; others are lists of one.

    Blanks around values, empty and missing values are left out. Raises ContractError for values of other types, text
    that is not UTF-8, and text that looks like a printed list.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not any(test(column.type) for test in LIST_TYPES):
        column = _split(texts(without_blanks(plain(column, name, lines, free_text=False))[0]), separator, name, lines)
    column = column.cast(pa.list_(column.type.value_type))
    parts = pa.chunked_array([pc.list_flatten(chunk) for chunk in column.chunks], column.type.value_type)
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    row_M = np.repeat(np.arange(len(column)), counts)
    of_row = Lines(lines.path, 0, lambda _, place: lines.at(int(row_M[place])))
    values = texts(without_blanks(plain(parts, name, of_row, free_text=False))[0])
    frame = pd.DataFrame({"row": row_M, "value": values.to_pandas()}).dropna().drop_duplicates()
    kept = np.bincount(frame["row"], minlength=len(column))
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(frame["value"].to_numpy(dtype=object), pa.string()))


def first_values(column: pa.ChunkedArray, most: int) -> tuple[pa.ListArray, int]:
    """The first `most` values of each list, and the number of values that are left out."""
    lists = pa.array([], column.type) if not column.num_chunks else pa.concat_arrays(column.chunks)
    left_out = int(np.maximum(pc.list_value_length(lists).to_numpy() - most, 0).sum())
    return (pc.list_slice(lists, 0, most) if left_out else lists), left_out


def _split(text: pa.ChunkedArray, separator: str, name: str, lines: Lines) -> pa.ChunkedArray:
    printed = pc.fill_null(pc.match_substring_regex(text, r"^\[.*\]$"), False)
    if pc.any(printed).as_py():
        row = pc.index(printed, True).as_py()
        where, got = f"{lines.path}, column {name}, line {lines.at(row)}", repr(text[row].as_py())
        raise ContractError(where, f"values parted by {separator!r}, or lists in Parquet", got)
    return pc.split_pattern(text, separator)


def texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of `blocks` as text: whole numbers without a point, whatever their type; dates and times by ISO 8601."""
    kind = column.type
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        is_whole = pc.all(pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), 2.0**53))).as_py()
        column = values.cast(pa.int64()) if is_whole is not False else values
    text = column.cast(pa.string())
    return pc.replace_substring_regex(text, r"\.0+$", "") if pa.types.is_decimal(kind) else text


INTEGER, NUMBER = r"^[+-]?\d{1,18}$", r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def numbers(column: pa.ChunkedArray, kind: pa.DataType, name: str, lines: Lines) -> pa.ChunkedArray:
    """A column as numbers of `kind`; true and false are 1 and 0.

    Raises ContractError with the first line whose value is missing, NaN, infinite or no such number.
    """
    wide = pa.float64() if pa.types.is_floating(kind) else pa.int64()
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.string())
    try:
        try:
            exact = not (pa.types.is_integer(column.type) and pa.types.is_floating(wide))  # beyond 2^53, round
            values = column.cast(wide, safe=exact)
        except pa.ArrowInvalid:
            column = _flags_as_digits(column)
            values = column.cast(wide)
        bad = pc.invert(pc.fill_null(pc.is_finite(values), False))
        if not pc.any(bad).as_py():
            return values.cast(kind, safe=False)
    except pa.ArrowInvalid:
        pattern = NUMBER if pa.types.is_floating(kind) else INTEGER
        bad = pc.invert(pc.fill_null(pc.match_substring_regex(column.cast(pa.string()), pattern), False))
    row = pc.index(bad, True).as_py()
    words = "a finite number" if pa.types.is_floating(kind) else "a whole number"
    raise ContractError(f"{lines.path}, column {name}, line {lines.at(row)}", words, repr(column[row].as_py()))


def amounts(column: pa.ChunkedArray, name: str, lines: Lines) -> pa.ChunkedArray:
    """A column as float64, NaN where a value is missing; true and false are 1 and 0.

    Raises ContractError with the first line whose value is infinite or no number.
    """
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.string())
    kind = column.type
    missing = pc.is_null(column, nan_is_null=True)
    if pa.types.is_string(kind):
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_lower(column), "nan"), False))
    else:
        column, kind = column.cast(pa.float64(), safe=False), pa.float64()
    zero = pa.scalar("0" if pa.types.is_string(kind) else 0, kind)
    values = numbers(pc.if_else(missing, zero, column), pa.float64(), name, lines)
    return pc.if_else(missing, pa.scalar(np.nan), values)


def _flags_as_digits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text with 1 and 0 for true and false, in any case of letters; other columns as they are."""
    if not pa.types.is_string(column.type):
        return column
    lower = pc.utf8_lower(column)
    return pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", column))


def seconds(column: pa.ChunkedArray, per_second: int, name: str, lines: Lines) -> pa.ChunkedArray:
    """A column of times as int64 seconds since 1970, rounded down.

    Typed times carry their own unit; those without a zone are UTC. Numbers, as numbers or text, count in units of which
    `per_second` make a second. Other text is ISO 8601. Raises ContractError with the first line that holds none.
    """
    kind = column.type
    if column.null_count:
        _refuse_time(column, pc.is_null(column), name, lines)
    if pa.types.is_string(kind):
        return _seconds_of_text(column, per_second, name, lines)
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("s")).cast(pa.int64())
    if pa.types.is_timestamp(kind):
        return _floor_divide(column.cast(pa.int64()), {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit])
    whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0)
    return _floor_divide(numbers(column, pa.int64() if whole else pa.float64(), name, lines), per_second)


def _seconds_of_text(text: pa.ChunkedArray, per_second: int, name: str, lines: Lines) -> pa.ChunkedArray:
    if pc.all(pc.fill_null(pc.match_substring_regex(text, INTEGER), False)).as_py():
        return _floor_divide(text.cast(pa.int64()), per_second)
    is_number = pc.fill_null(pc.match_substring_regex(text, NUMBER), False)
    if pc.all(is_number).as_py():
        return _floor_divide(numbers(text, pa.float64(), name, lines), per_second)
    if pc.any(is_number).as_py():  # the rarer form is the mistake
        mostly = pc.sum(is_number.cast(pa.int64())).as_py() * 2 >= len(text)
        _refuse_time(text, pc.invert(is_number) if mostly else is_number, name, lines)
    times = pd.to_datetime(text.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    if times.isna().any():
        _refuse_time(text, pa.chunked_array([pa.array(times.isna())]), name, lines)
    return pa.chunked_array([pa.array(times.dt.as_unit("s").astype("int64"))])


def _floor_divide(values: pa.ChunkedArray, unit: int) -> pa.ChunkedArray:
    """int64, rounded down; of values without nulls."""
    return pa.chunked_array([np.floor_divide(values.to_numpy(), unit).astype(np.int64)])


def _refuse_time(column: pa.ChunkedArray, bad: pa.ChunkedArray, name: str, lines: Lines) -> None:
    row = pc.index(bad, True).as_py()
    expected = "a time: a number of units since 1970, or ISO 8601 such as 2024-05-01T12:00:00Z, in all rows alike"
    raise ContractError(f"{lines.path}, column {name}, line {lines.at(row)}", expected, repr(column[row].as_py()))
