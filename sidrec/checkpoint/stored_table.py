"""Tables of a checkpoint, read by row ranges: by any process, without the model, and no more than is asked for.

Shapes: R rows of a table, D its width, N rows of a range.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sidrec.checkpoint.index import CheckpointIndex, StoredPiece, StoredTensor, read_index
from sidrec.checkpoint.piece import DTYPES, CheckpointError, piece_name
from sidrec.checkpoint.piece_names import MODEL, OPTIMIZER
from sidrec.checkpoint.tensor_file import StoredRows, stored_tensors

PART = 1 << 22
"""Bytes of a table that are in memory at a time, where it is read from one end to the other."""


class StoredTable:
    """A tensor of a checkpoint whose first dimension is rows, in whatever rectangles it was stored."""

    def __init__(self, path: Path, key: str, index: CheckpointIndex | None = None) -> None:
        """path: the checkpoint's folder. index: its index, where it has been read already.

        Raises CheckpointError where there is no such tensor, or one that has no rows.
        """
        tensor = (index or read_index(path)).tensors.get(key)
        if tensor is None or not tensor.shape:
            got = "none of that name" if tensor is None else "a single number"
            raise CheckpointError(f"{path}: expected a table {key}, got {got}")
        self.path, self.key, self.tensor = path, key, tensor
        self._stored: dict[str, Mapping[str, StoredRows]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """[R, D] of a table."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.tensor.dtype]

    @property
    def bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def files(self) -> set[str]:
        """Files of the checkpoint that hold parts of it."""
        return {piece.file for piece in self.tensor.pieces}

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last), [N, ...] of the stored type.

        Raises CheckpointError for a file that does not hold what the index says.
        """
        assert 0 <= first <= last <= self.shape[0], f"rows of {self.key}, which has {self.shape[0]}"
        rows = torch.empty((last - first, *self.shape[1:]), dtype=self.dtype)
        for piece in self.tensor.pieces:
            start, end = max(first, piece.offset[0]), min(last, piece.offset[0] + piece.shape[0])
            if start < end:
                into = rows[start - first : end - first]
                for dimension, (offset, length) in enumerate(zip(piece.offset[1:], piece.shape[1:], strict=True), 1):
                    into = into.narrow(dimension, offset, length)
                into.copy_(self._stored_rows(piece, start - piece.offset[0], end - piece.offset[0]))
        return rows

    def _stored_rows(self, piece: StoredPiece, first: int, last: int) -> Tensor:
        path = self.path / piece.file
        try:
            if piece.file not in self._stored:
                self._stored[piece.file] = stored_tensors(path)
            stored = self._stored[piece.file].get(piece_name(self.key, piece.offset))
            if stored is None or (stored.dtype, stored.shape) != (self.tensor.dtype, piece.shape):
                got = "none" if stored is None else f"{stored.dtype} {list(stored.shape)}"
                expected = f"{self.tensor.dtype} {list(piece.shape)} of {self.key}, as the index says"
                raise CheckpointError(f"{path}: expected {expected}, got {got}")
            return stored.read(first, last)
        except OSError as error:
            raise CheckpointError(f"{path}: expected rows of {self.key}, got: {error.strerror or error}") from None

    def parts(self, size: int = PART) -> Iterator[tuple[int, Tensor]]:
        """The whole table in order, by row ranges of at most `size` bytes, and one row at least: (first row, rows)."""
        step = rows_of_size(size, self.bytes // max(1, self.shape[0]))
        for first in range(0, self.shape[0], step):
            yield first, self.rows(first, min(first + step, self.shape[0]))


def rows_of_size(size: int, row: int) -> int:
    """How many rows of `row` bytes are at most `size` bytes; one at least."""
    return max(1, size // max(1, row))


@dataclass(frozen=True)
class CheckpointTable:
    """An embedding table of a checkpoint: its weights [R, D], and the optimizer's state by torch's name for it."""

    name: str
    weight: StoredTable
    state: Mapping[str, StoredTable]


def checkpoint_tables(path: Path, index: CheckpointIndex) -> dict[str, CheckpointTable]:
    """Name -> table, of all embedding tables of a checkpoint."""
    found = {}
    for key in index.tensors:
        name = table_name(key)
        if name is not None:
            states = f"{OPTIMIZER}/{key.removeprefix(f'{MODEL}/')}/"
            state = {
                other.removeprefix(states): StoredTable(path, other, index)
                for other in index.tensors
                if other.startswith(states)
            }
            found[name] = CheckpointTable(name, StoredTable(path, key, index), state)
    return found


def table_name(key: str) -> str | None:
    """Name of the table whose weights have that key; None for all other tensors."""
    match key.split("."):
        case [start, *_, "embedding_bags", table, "weight"] if start.startswith(f"{MODEL}/"):
            return table
    return None


def cut_of(tensor: StoredTensor) -> str:
    """How a table was cut, in words: "whole", "4 ranges of rows", "2 blocks of columns", or both."""
    rows = len({piece.offset[0] for piece in tensor.pieces})
    columns = len({piece.offset[1:] for piece in tensor.pieces})
    words = [f"{rows} ranges of rows"] if rows > 1 else []
    words += [f"{columns} blocks of columns"] if columns > 1 else []
    return " x ".join(words) or "whole"
