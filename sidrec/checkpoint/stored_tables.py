"""Reads a checkpoint without its model: tables by ranges of rows, recipe, position.

Shapes: R rows of a table, D its width, N rows of a range.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sidrec.checkpoint.checkpoint_store import BEST, check_file, checkpoint_path, checkpoints
from sidrec.checkpoint.tensor_shard import (
    DTYPES,
    INDEX,
    MODEL,
    OPTIMIZER,
    UPDATES,
    CheckpointIndex,
    FileTensor,
    StoredShard,
    StoredTensor,
    read_header,
    read_index,
    shard_name,
)
from sidrec.checkpoint.train_state import Position, read_best, read_position
from sidrec.config import Recipe, load_saved
from sidrec.errors import CheckpointError
from sidrec.text import near_folder, quoted

PART = 1 << 22
"""Bytes of a table in memory at a time while it is read as a whole."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's folder and its index."""

    path: Path
    index: CheckpointIndex

    @cached_property
    def tables(self) -> Mapping[str, "CheckpointTable"]:
        """Its embedding tables by name."""
        return checkpoint_tables(self.path, self.index)

    @cached_property
    def recipe(self) -> Recipe:
        """Recipe of the run: config.yaml in the checkpoint, else in its run directory. Raises ConfigError."""
        own, of_run = self.path / "config.yaml", self.path.parent.parent / "config.yaml"
        return load_saved(of_run if of_run.is_file() and not own.is_file() else own)

    @cached_property
    def position(self) -> Position:
        """The training position, with the catalog's fingerprint. Raises CheckpointError."""
        return read_position(self.path)

    def check_files(self, names: Iterable[str], progress: Callable[[int], object] = lambda size: None) -> None:
        """Checks sizes and checksums of files. progress: called with the size of each file read.

        Raises CheckpointError for the first file that does not match the index.
        """
        for name in sorted(names):
            check_file(self.path / name, self.index.files[name])
            progress(self.index.files[name].size)


def open_checkpoint(path: Path) -> StoredCheckpoint:
    """Opens a checkpoint folder. Of a run directory, opens the best checkpoint if the run has one, else the newest.

    Raises CheckpointError if there is none.
    """
    if (path / INDEX).is_file():
        return StoredCheckpoint(path, read_index(path))
    folder = path / "checkpoints"
    there = checkpoints(folder)
    if (folder / BEST).is_file():
        there = [checkpoint_path(folder, read_best(folder / BEST).step)]
    if not there:
        near = near_folder(path, "config.yaml")
        expected = "expected a run directory with checkpoints, or one of these"
        raise CheckpointError(f"{quoted(path)}: {expected}, got neither{near}")
    return StoredCheckpoint(there[0], read_index(there[0]))


def checkpoint_tables(path: Path, index: CheckpointIndex) -> "dict[str, CheckpointTable]":
    """All embedding tables of a checkpoint, by name."""
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
            counts = f"{UPDATES}/{key.removeprefix(f'{MODEL}/')}"
            updates = StoredTable(path, counts, index) if counts in index.tensors else None
            found[name] = CheckpointTable(name, StoredTable(path, key, index), state, updates)
    return found


def table_name(key: str) -> str | None:
    """The table whose weights have this key; None for other tensors."""
    match key.split("."):
        case [start, *_, "embedding_bags", table, "weight"] if start.startswith(f"{MODEL}/"):
            return table
    return None


@dataclass(frozen=True)
class CheckpointTable:
    """An embedding table of a checkpoint: its weights [R, D], optimizer states by name, and, of the HID table, the
    updates that each row received, [R, 1]."""

    name: str
    weight: "StoredTable"
    state: Mapping[str, "StoredTable"]
    updates: "StoredTable | None" = None


class StoredTable:
    """A tensor of a checkpoint, read by ranges of its first dimension, the rows, under any sharding."""

    def __init__(self, path: Path, key: str, index: CheckpointIndex | None = None) -> None:
        """path: the checkpoint's folder. index: its index, if already read.

        Raises CheckpointError if there is no such tensor or it is a scalar.
        """
        tensor = (index or read_index(path)).tensors.get(key)
        if tensor is None or not tensor.shape:
            got = "none of that name" if tensor is None else "a single number"
            raise CheckpointError(f"{path}: expected a table {key}, got {got}")
        self.path, self.key, self.tensor = path, key, tensor
        self._stored: dict[str, Mapping[str, FileTensor]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """[R, D] of a table."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.tensor.dtype]

    @property
    def bytes(self) -> int:
        """Size of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def files(self) -> set[str]:
        """Names of the files that hold its shards."""
        return {shard.file for shard in self.tensor.shards}

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last), [N, ...] in the stored type. Raises CheckpointError if a file differs from the index."""
        assert 0 <= first <= last <= self.shape[0], f"rows of {self.key}, which has {self.shape[0]}"
        rows = torch.empty((last - first, *self.shape[1:]), dtype=self.dtype)
        for shard in self.tensor.shards:
            start, end = max(first, shard.offset[0]), min(last, shard.offset[0] + shard.shape[0])
            if start < end:
                into = rows[start - first : end - first]
                for dimension, (offset, length) in enumerate(zip(shard.offset[1:], shard.shape[1:], strict=True), 1):
                    into = into.narrow(dimension, offset, length)
                into.copy_(self._stored_rows(shard, start - shard.offset[0], end - shard.offset[0]))
        return rows

    def _stored_rows(self, shard: StoredShard, first: int, last: int) -> Tensor:
        path = self.path / shard.file
        try:
            if shard.file not in self._stored:
                self._stored[shard.file] = read_header(path)
            stored = self._stored[shard.file].get(shard_name(self.key, shard.offset))
            if stored is None or (stored.dtype, stored.shape) != (self.tensor.dtype, shard.shape):
                got = "none" if stored is None else f"{stored.dtype} {list(stored.shape)}"
                expected = f"{self.tensor.dtype} {list(shard.shape)} of {self.key}, as the index says"
                raise CheckpointError(f"{path}: expected {expected}, got {got}")
            return stored.read(first, last)
        except OSError as error:
            raise CheckpointError(f"{path}: expected rows of {self.key}, got: {error.strerror or error}") from None

    def parts(self, size: int = PART) -> Iterator[tuple[int, Tensor]]:
        """Yields (first row, rows) in order, at most `size` bytes at a time but at least one row."""
        step = rows_within(size, self.bytes // max(1, self.shape[0]))
        for first in range(0, self.shape[0], step):
            yield first, self.rows(first, min(first + step, self.shape[0]))


def rows_within(size: int, row: int) -> int:
    """How many rows of `row` bytes fit into `size` bytes; at least 1."""
    return max(1, size // max(1, row))


def sharding_text(tensor: StoredTensor) -> str:
    """How a table is sharded, as text: "whole", "4 ranges of rows", "2 blocks of columns", or both."""
    rows = len({shard.offset[0] for shard in tensor.shards})
    columns = len({shard.offset[1:] for shard in tensor.shards})
    words = [f"{rows} ranges of rows"] if rows > 1 else []
    words += [f"{columns} blocks of columns"] if columns > 1 else []
    return " x ".join(words) or "whole"
