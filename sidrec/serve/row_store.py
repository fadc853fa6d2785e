"""Rows of vectors in memory-mapped files.

    f32   as trained
    f16   half of it; half-precision rounding, relative 5e-4
    int8  a byte per value, and for each row its least value and a step, float32: rounding of half a step
    i32   whole numbers, such as those of granules

Shapes: R rows of a store, M rows that are taken, B lists of rows, D width.
"""

from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

Precision = Literal["f32", "f16", "int8", "i32"]
SCALES = "scales"
LEVELS = 255
ROWS_AT_A_TIME = 1 << 18
Floats = NDArray[np.float32]


class RowStore:
    """The rows of one file, read when they are taken."""

    def __init__(self, folder: Path, name: str, precision: Precision) -> None:
        """Raises OSError and ValueError for files that `write_rows` did not write."""
        self._rows_RD = np.load(folder / file_of(name, precision), mmap_mode="r")
        self._scales_R2 = np.load(folder / scales_of(name), mmap_mode="r") if precision == "int8" else None

    def __len__(self) -> int:
        return len(self._rows_RD)

    @property
    def width(self) -> int:
        """D."""
        return int(self._rows_RD.shape[1])

    def take(self, row_M: NDArray[np.int64]) -> NDArray[Any]:
        """The rows, float32 [M, D], or int64 of i32. Raises IndexError for a row beyond the store."""
        found_MD = self._rows_RD[row_M]
        if self._scales_R2 is None:
            return found_MD.astype(np.int64 if found_MD.dtype == np.int32 else np.float32, copy=False)
        least_M1, step_M1 = np.hsplit(self._scales_R2[row_M], 2)
        return found_MD * step_M1 + least_M1

    def means(self, row_M: NDArray[np.int64], length_B: NDArray[np.int64]) -> Floats:
        """The mean of each list's rows, float32 [B, D]; 0 for an empty list. row_M: of list after list."""
        sum_BD = np.zeros((len(length_B), self.width), dtype=np.float32)
        np.add.at(sum_BD, np.repeat(np.arange(len(length_B)), length_B), self.take(row_M))
        return sum_BD / np.maximum(length_B, 1).astype(np.float32)[:, None]


def file_of(name: str, precision: Precision) -> str:
    """The file of a store. Names of columns are any text: what is not a letter of a file's name is escaped."""
    return f"{quote(name, safe='')}.{precision}.npy"


def scales_of(name: str) -> str:
    """The file with the rows' least values and steps, for int8."""
    return f"{quote(name, safe='')}.{SCALES}.npy"


class RowsToWrite(Protocol):
    """An array [R, D], or what gives its parts when it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


def write_rows(folder: Path, name: str, rows_RD: RowsToWrite, precision: Precision) -> list[str]:
    """Writes a store; returns the names of its files. Zero rows stay zero in every precision.

    Raises ValueError for a value that is not finite in this precision. Memory: a block of rows at a time.
    """
    kind = {"f32": np.float32, "f16": np.float16, "int8": np.uint8, "i32": np.int32}[precision]
    rows = np.lib.format.open_memmap(folder / file_of(name, precision), mode="w+", dtype=kind, shape=rows_RD.shape)
    scales = None
    if precision == "int8":
        shape = (rows_RD.shape[0], 2)
        scales = np.lib.format.open_memmap(folder / scales_of(name), mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, rows_RD.shape[0], ROWS_AT_A_TIME):
        part = slice(first, first + ROWS_AT_A_TIME)
        if precision == "i32":
            rows[part] = rows_RD[part]
            continue
        block_RD = np.asarray(rows_RD[part], dtype=np.float32)
        _check_finite(block_RD, name, first, precision)
        if scales is None:
            rows[part] = block_RD
        else:
            rows[part], scales[part] = _quantized(block_RD)
    rows.flush()
    if scales is None:
        return [file_of(name, precision)]
    scales.flush()
    return [file_of(name, precision), scales_of(name)]


def _check_finite(block_RD: Floats, name: str, first: int, precision: Precision) -> None:
    largest = np.finfo(np.float16 if precision == "f16" else np.float32).max
    bad_R = ~(np.abs(block_RD) <= largest).all(axis=1)
    if bad_R.any():
        row = first + int(np.argmax(bad_R))
        raise ValueError(f"{name}, row {row}: expected values that {precision} can hold, up to {largest:g}")


def _quantized(block_RD: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Levels of each value, and [least value, step] of each row."""
    least_R, most_R = block_RD.min(axis=1, initial=0), block_RD.max(axis=1, initial=0)
    step_R = (most_R - least_R) / LEVELS
    # 0 is a level of its own: rows of new and unknown items are zero, and padding must add nothing
    divisor_R1 = np.where(step_R > 0, step_R, 1)[:, None]
    levels_RD = np.clip(np.rint((block_RD - least_R[:, None]) / divisor_R1), 0, LEVELS)
    return levels_RD.astype(np.uint8), np.stack([least_R, step_R], axis=1).astype(np.float32)
