"""Histories: the latest positives of each row's user, before the row.

A row knows how many of the user's positives that are kept come before it (`held`), so its history is a range of them.
Positives of an earlier state (`data_prep.log_state`) are kept up to the length of a history. Where one
process writes all rows, they lie in a file that it maps into memory (`HistoryFile`). Where processes on several
machines write them, each row is joined with the two chunks of positives in which its history lies (`ChunkHistories`).

Shapes: N rows, U user ids (0 included), P positives.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from sidrec.io.files import replaced_file

from .engine import Engine


@dataclass(frozen=True)
class Lists:
    """A list of ids for each row n: ids[start_N[n] : start_N[n] + length_N[n]]."""

    ids: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray

    @classmethod
    def of(cls, column: pa.ListArray) -> "Lists":
        """The lists of a column; missing ones are empty."""
        offsets = column.offsets.to_numpy()
        lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), 0, np.diff(offsets))
        return cls(column.values.to_numpy(), offsets[:-1], lengths)

    def take(self, row_M: np.ndarray) -> "Lists":
        return Lists(self.ids, self.start_N[row_M], self.length_N[row_M])

    def array(self) -> pa.ListArray:
        """list<int64>."""
        offsets = np.concatenate([[0], np.cumsum(self.length_N)]).astype(np.int32)
        ids = gather_ranges(self.ids, self.start_N, self.length_N).astype(np.int64)
        return pa.ListArray.from_arrays(offsets, ids)


def gather_ranges(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenates values[start : start + length] for every pair, without a loop."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return values[np.repeat(starts - (ends - lengths), lengths) + np.arange(total)]


class Histories(Protocol):
    """Finds the histories of finished rows (`LogRelations.rows`)."""

    def of(self, rows: pa.RecordBatch) -> Lists:
        """Oldest first."""


class NoHistories:
    """Of a log without times, or with --history 0."""

    def of(self, rows: pa.RecordBatch) -> Lists:
        none_N = np.zeros(len(rows), np.int64)
        return Lists(np.zeros(0, np.int32), none_N, none_N)


@dataclass(frozen=True)
class ChunkHistories:
    """From the columns items_before and items: chunks of `length` positives, of which the second holds the latest."""

    length: int

    def of(self, rows: pa.RecordBatch) -> Lists:
        held_N = rows.column("held").to_numpy()
        before, latest = Lists.of(rows.column("items_before")), Lists.of(rows.column("items"))
        chunk_N = (held_N - 1) // self.length
        in_latest_N = np.where(held_N > 0, held_N - chunk_N * self.length, 0)
        in_before_N = np.where(chunk_N > 0, self.length - in_latest_N, 0)
        # Two ranges for each row, one after the other; then one list of both.
        starts = np.stack([before.start_N + in_latest_N, len(before.ids) + latest.start_N], axis=1).ravel()
        lengths = np.stack([in_before_N, in_latest_N], axis=1).ravel()
        ids = gather_ranges(np.concatenate([before.ids, latest.ids]), starts, lengths)
        length_N = in_before_N + in_latest_N
        return Lists(ids, np.cumsum(length_N) - length_N, length_N)


class HistoryFile:
    """A file of all positives, user by user and in order, int32 [P], and one of where each user's begin, int64 [U + 1].

    Both are mapped: what has not been read lately, the system may drop from memory.
    """

    def __init__(self, folder: Path, length: int) -> None:
        self._length = length
        self._items_P = np.memmap(folder / ITEMS, np.int32, "r") if (folder / ITEMS).stat().st_size else np.zeros(0)
        self._begins_U = np.memmap(folder / BEGINS, np.int64, "r")

    @classmethod
    def write(cls, engine: Engine, query: str, users: int, folder: Path, length: int) -> "HistoryFile":
        """query: `LogRelations.positives`. users: number of user ids. Files that are there are taken as they are."""
        folder.mkdir(exist_ok=True)
        if not (folder / BEGINS).exists():
            counts_U = np.zeros(users + 2, np.int64)
            with replaced_file(folder / ITEMS, one_writer=True) as partial, partial.open("wb") as file:
                for batch in engine.read(query):
                    user_N = batch.column(0).to_numpy()
                    first = int(user_N[0]) if len(user_N) else 0
                    here = np.bincount(user_N - first)
                    counts_U[first + 1 : first + 1 + len(here)] += here
                    file.write(batch.column(1).to_numpy().astype(np.int32).tobytes())
            with replaced_file(folder / BEGINS, one_writer=True) as partial:
                np.cumsum(counts_U).tofile(partial)
        return cls(folder, length)

    def of(self, rows: pa.RecordBatch) -> Lists:
        held_N = rows.column("held").to_numpy()
        length_N = np.minimum(held_N, self._length)
        start_N = self._begins_U[rows.column("user_id").to_numpy()] + held_N - length_N
        ids = gather_ranges(self._items_P, start_N, length_N)
        self._forget()
        return Lists(ids, np.cumsum(length_N) - length_N, length_N)

    def _forget(self) -> None:
        """Unmaps pages, so that this process does not count the whole file as its memory; the system keeps them."""
        for mapped in (self._items_P, self._begins_U):
            memory = getattr(mapped, "_mmap", None)
            if memory is not None:
                memory.madvise(mmap.MADV_DONTNEED)


ITEMS, BEGINS = "items.bin", "begins.bin"
