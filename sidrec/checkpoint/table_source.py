"""Files with the rows of one table, ours or made by others: safetensors, npy and parquet, read by ranges of rows.

Shapes: R rows in the file, D their width, N rows of a part.
"""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sidrec.checkpoint.piece import DTYPES
from sidrec.checkpoint.stored_table import PART, rows_of_size
from sidrec.checkpoint.tensor_file import stored_tensors
from sidrec.schema import ContractError


class TableSource(Protocol):
    """Rows of a table. where: names the file, for sentences. rows: one more than the last row's number. width: D."""

    where: str
    rows: int
    width: int

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows in [first, last) that the file has, a few at a time: their numbers, int64 [N], ascending, and their
        values, float32 [N, D]. Raises ContractError for a file that does not hold what it says."""


def open_table(name: str, table: str) -> TableSource:
    """Opens FILE or FILE:NAME; NAME is a tensor of a safetensors file, or a column of a parquet file.

    Without one it is the only tensor, or that called `table`; the only column of lists, or that called "embedding".
    Raises ContractError where there is no two-dimensional table of floats.
    """
    file, _, part = (name, "", "") if Path(name).is_file() else name.rpartition(":") if ":" in name else (name, "", "")
    path = Path(file)
    if not path.is_file():
        raise ContractError(path, f"a file with rows of the table {table}", "none")
    match path.suffix:
        case ".safetensors":
            return SafetensorsRows(path, part, table)
        case ".npy" if not part:
            return NpyRows(path)
        case ".parquet":
            from sidrec.checkpoint.parquet_rows import ParquetRows

            return ParquetRows(path, part)
    raise ContractError(path, "FILE.safetensors[:TENSOR], FILE.npy or FILE.parquet[:COLUMN]", repr(name))


class SafetensorsRows:
    """A tensor of a safetensors file."""

    def __init__(self, path: Path, name: str, table: str) -> None:
        try:
            tensors = stored_tensors(path)
        except OSError as error:
            raise ContractError(path, "a safetensors file", error.strerror or error) from None
        self._stored = tensors[_tensor_name(path, list(tensors), name, table)]
        self.where = f"{path}, {self._stored.name}"
        floats = DTYPES[self._stored.dtype].is_floating_point
        self.rows, self.width = _shape_of(self.where, self._stored.shape, self._stored.dtype, floats)

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start, end in _ranges(first, min(last, self.rows), self.width):
            try:
                values_ND = self._stored.read(start, end).to(torch.float32)
            except OSError as error:
                raise ContractError(self.where, "readable rows", error.strerror or error) from None
            yield torch.arange(start, end), values_ND


class NpyRows:
    """An array of numpy's; mapped anew for every part, so that its pages are given back."""

    def __init__(self, path: Path) -> None:
        self._path, self.where = path, str(path)
        found = self._mapped()
        self.rows, self.width = _shape_of(self.where, found.shape, str(found.dtype), found.dtype.kind == "f")

    def _mapped(self) -> np.ndarray:
        try:
            mapped: Any = np.load(self._path, mmap_mode="r", allow_pickle=False)
            assert isinstance(mapped, np.ndarray), "it holds several arrays"
        except Exception as error:  # numpy takes a broken header for Python, and raises what Python's parser does
            words = " ".join(str(error).split()) or type(error).__name__
            raise ContractError(self._path, "an array as numpy.save writes it", words) from None
        return mapped

    def parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start, end in _ranges(first, min(last, self.rows), self.width):
            with np.errstate(over="ignore"):  # what is too large becomes inf, and is refused as such
                values_ND = np.array(self._mapped()[start:end], dtype=np.float32, order="C")
            yield torch.arange(start, end), torch.from_numpy(values_ND)


def _tensor_name(path: Path, names: list[str], name: str, table: str) -> str:
    wanted = name or (names[0] if len(names) == 1 else table)
    if wanted not in names:
        close = get_close_matches(wanted, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else f" among {', '.join(names) or 'no tensors'}"
        raise ContractError(path, f"a tensor {wanted}", f"none of that name{hint}")
    return wanted


def _shape_of(where: str, shape: tuple[int, ...], dtype: str, floats: bool) -> tuple[int, int]:
    if len(shape) != 2 or not floats:
        raise ContractError(where, "floats of shape [rows, width]", f"{dtype} {list(shape)}")
    return shape[0], shape[1]


def _ranges(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    step = rows_of_size(PART, width * torch.float32.itemsize)
    for start in range(first, last, step):
        yield start, min(start + step, last)


def check_values(source: TableSource, first: int, last: int, progress: Callable[[int], object]) -> None:
    """Reads rows [first, last). progress: is told of rows that are read.

    Raises ContractError naming the first value that is no finite float32.
    """
    for rows_N, values_ND in source.parts(first, last):
        bad_ND = ~torch.isfinite(values_ND)
        if bad_ND.any():
            place, column = bad_ND.nonzero()[0].tolist()
            where = f"{source.where}, row {rows_N[place]}, column {column}"
            raise ContractError(where, "a finite float32", values_ND[place, column].item())
        progress(len(rows_N))
