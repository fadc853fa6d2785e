"""This rank's rows of an epoch, step by step. The position is (epoch, step) and nothing else."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.data.order import Lanes, Mixing
from sidrec.data.rows import Columns, Rows, concatenate, decode, padding
from sidrec.data.split_index import RowGroup
from sidrec.schema import ContractError


class StepRows(NamedTuple):
    """One rank's rows of a step: batch_size / world of them, padding included.

    rows_of_all_ranks: rows of the step over all ranks without padding. Quarantined rows are counted: those of other
    ranks cannot be known here. complaints: what is wrong with rows met since the last step, a few per row group.
    """

    step: int
    rows: Rows
    rows_of_all_ranks: int
    complaints: tuple[str, ...]


@dataclass(frozen=True)
class LogReader:
    """Streams a rank's lanes (order.py). Holds `shuffle_rows` rows and one row group per lane in memory, and twice that
    for the one lane that fills its buffer; a row group is decoded whole, so its size is the writer's choice.

    groups: the split's row groups, as `split_index` gives them. refuse: broken rows are errors; else quarantined.
    """

    groups: tuple[RowGroup, ...]
    columns: Columns
    lanes: Lanes
    mixing: Mixing
    own_lanes: range
    refuse: bool

    def steps(self, epoch: int, steps: Iterable[int]) -> Iterator[StepRows]:
        """The rows of the given steps, which increase. A step that is left out costs no decoding, except that a buffer
        is read whole. Raises ContractError as `decode` does."""
        groups = _EpochGroups(self, epoch)
        lanes = [_Lane(self, groups, epoch, lane) for lane in self.own_lanes]
        take = self.lanes.rows_per_step
        for step in steps:
            parts: list[Rows] = []
            for lane in lanes:
                found = lane.take(step * take, (step + 1) * take)
                missing = take - sum(map(len, found))
                parts += [*found, padding(missing, self.columns)] if missing else found
            yield StepRows(step, concatenate(parts), self.lanes.rows_in_step(step), groups.new_complaints())


class _EpochGroups:
    """An epoch's row groups laid end to end: group i holds the positions starts[i] to starts[i + 1]."""

    def __init__(self, reader: LogReader, epoch: int) -> None:
        self._columns, self._refuse = reader.columns, reader.refuse
        self._groups = [reader.groups[index] for index in reader.mixing.sequence(len(reader.groups), epoch)]
        self.starts = np.concatenate([[0], np.cumsum([group.rows for group in self._groups])])
        self._files: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self._files_kept = len(reader.own_lanes) + 1  # every lane reads from one file at a time
        self._complaints: list[str] = []

    def decode(self, index: int) -> Rows:
        group = self._groups[index]
        rows, complaints = decode(self._file(group.path), group, self._columns, refuse=self._refuse)
        self._complaints += complaints
        return rows

    def new_complaints(self) -> tuple[str, ...]:
        complaints, self._complaints = tuple(self._complaints), []
        return complaints

    def _file(self, path: Path) -> pq.ParquetFile:
        if path not in self._files:
            try:
                self._files[path] = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise ContractError(path, "the parquet file that was there at the start", error) from None
        self._files.move_to_end(path)
        while len(self._files) > self._files_kept:
            self._files.popitem(last=False)[1].close()
        return self._files[path]


class _Lane:
    """One lane of an epoch: the buffer it gives rows from, and the row group it decoded last."""

    def __init__(self, reader: LogReader, groups: _EpochGroups, epoch: int, lane: int) -> None:
        self._groups, self._mixing, self._epoch, self._lane = groups, reader.mixing, epoch, lane
        self._interval = reader.lanes.interval(lane)
        self._bounds = reader.mixing.buffers(lane, len(self._interval))
        self._buffer: tuple[int, Rows, np.ndarray] | None = None
        self._decoded: tuple[int, Rows] | None = None

    def take(self, start: int, stop: int) -> list[Rows]:
        """The lane's rows [start, stop) in mixed order; fewer at the lane's end."""
        stop = min(stop, len(self._interval))
        found: list[Rows] = []
        while start < stop:
            buffer = int(np.searchsorted(self._bounds, start, side="right")) - 1
            rows, order = self._fill(buffer)
            first, last = int(self._bounds[buffer]), min(stop, int(self._bounds[buffer + 1]))
            found.append(rows.take(order[start - first : last - first]))
            start = last
        return found

    def _fill(self, buffer: int) -> tuple[Rows, np.ndarray]:
        if self._buffer is None or self._buffer[0] != buffer:
            self._buffer = None  # frees the old rows before new ones are read
            first, last = (self._interval.start + int(bound) for bound in self._bounds[buffer : buffer + 2])
            order = self._mixing.permutation(self._epoch, self._lane, buffer, last - first)
            self._buffer = buffer, self._positions(first, last), order
        return self._buffer[1:]

    def _positions(self, first: int, last: int) -> Rows:
        """The rows at the epoch's positions [first, last)."""
        starts = self._groups.starts
        index = int(np.searchsorted(starts, first, side="right")) - 1
        parts: list[Rows] = []
        while first < last:
            start, stop = int(starts[index]), min(last, int(starts[index + 1]))
            parts.append(self._group(index).cut(first - start, stop - start))
            first, index = stop, index + 1
        return concatenate(parts)

    def _group(self, index: int) -> Rows:
        # Buffers end inside row groups: keeping the last one spares decoding it twice.
        if self._decoded is None or self._decoded[0] != index:
            self._decoded = None
            self._decoded = index, self._groups.decode(index)
        return self._decoded[1]
