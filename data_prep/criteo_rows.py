"""Lines of a raw Criteo log as arrays: the fixed dense transform, 32-bit categorical values, labels.

A line has 40 fields between tabs: label, I1 to I13 (numbers), C1 to C26 (up to 8 hexadecimal digits); all but the label
may be empty. N rows of a block, X = 13 dense and C = 26 categorical columns.
"""

import re
from dataclasses import dataclass, fields
from operator import add
from typing import Any

import numpy as np
import polars as pl

from data_prep.criteo_blocks import Block
from sidrec.schema import ContractError

DENSE = tuple(f"I{number}" for number in range(1, 14))
CATEGORICAL = tuple(f"C{number}" for number in range(1, 27))
DENSE_TRANSFORM = "log(1 + max(x, 0)), the same for every file; missing and non-finite values become 0, as x = 0 does"
MISSING = 0
"""A categorical value that is missing; the value 00000000 counts as missing too."""

_FIELDS = ("label", *DENSE, *CATEGORICAL)
_SCHEMA = {"label": pl.Int8} | dict.fromkeys(DENSE, pl.Float64) | dict.fromkeys(CATEGORICAL, pl.String)
_HEX = re.compile(rb"[0-9a-fA-F]{0,8}")
_TAB = 9


@dataclass(frozen=True)
class Tally:
    """Counts over rows; the last four by column."""

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


def read_rows(block: Block) -> CriteoRows:
    """Parses a block. Raises ContractError naming file, line and column of the first field that makes no sense."""
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
    """Polars fills a short line with nulls without a word, so tabs are counted too."""
    tabs = np.count_nonzero(np.frombuffer(block.text, np.uint8) == _TAB)
    return len(frame) == block.lines and tabs == block.lines * (len(_FIELDS) - 1)


def _first_mistake(block: Block, otherwise: str) -> ContractError:
    """What is wrong with the first line that is; slow, as it looks at every field."""
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
    """What the field should have been, if it makes no sense."""
    if column == "label":
        return None if text in (b"0", b"1") else "0 or 1"
    if column in CATEGORICAL:
        return None if _HEX.fullmatch(text) else "up to 8 hexadecimal digits"
    try:
        float(text or b"0")
    except ValueError:
        return "a number"
    return None
