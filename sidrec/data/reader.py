"""A rank's rows of an epoch, step by step, in an order that the seed decides. The only state is (epoch, step)."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.data.rows import Columns, RowGroup, Rows, decode
from sidrec.errors import ConfigError
from sidrec.io.parquet_places import RowGroupCache
from sidrec.io.places import Place, StorePath
from sidrec.schema import ContractError

GROUPS_AHEAD = 2  # row groups of a lane after its buffer, fetched while the buffer is used


class StepRows(NamedTuple):
    """One rank's rows of a step: batch_size / world of them, padding included.

    rows_of_all_ranks: rows of the step over all ranks, without padding but with quarantined rows, which other ranks
    would have to report. row_errors: messages about rows decoded since the last step, a few per row group.
    """

    step: int
    rows: Rows
    rows_of_all_ranks: int
    row_errors: tuple[str, ...]


@dataclass(frozen=True)
class LogReader:
    """Streams a rank's lanes.

    Memory: `shuffle_rows` rows and one decoded row group per lane.

    groups: the split's row groups, from `split_index`. refuse: broken rows raise; otherwise they are quarantined.
    stored: reads those of objects; None if all are local.
    """

    groups: tuple[RowGroup, ...]
    columns: Columns
    lanes: "Lanes"
    shuffling: "Shuffling"
    own_lanes: range
    refuse: bool
    stored: RowGroupCache | None = None

    def steps(self, epoch: int, steps: Iterable[int]) -> Iterator[StepRows]:
        """The rows of the given steps, in increasing order. Skipped steps are not decoded, except that a buffer is read
        whole. Raises ContractError as `decode` does."""
        groups = _EpochGroups(self, epoch)
        lanes = [_Lane(self, groups, epoch, lane) for lane in self.own_lanes]
        take = self.lanes.rows_per_step
        try:
            for step in steps:
                rows = Rows.empty(len(lanes) * take, self.columns)
                for place, lane in enumerate(lanes):
                    lane.take(step * take, (step + 1) * take, rows.cut(place * take, (place + 1) * take))
                yield StepRows(step, rows, self.lanes.rows_in_step(step), groups.new_row_errors())
        finally:
            if self.stored is not None:
                self.stored.forget()


class _EpochGroups:
    """An epoch's row groups laid end to end: group i holds the positions starts[i] to starts[i + 1]."""

    def __init__(self, reader: LogReader, epoch: int) -> None:
        self._columns, self._refuse, self._stored = reader.columns, reader.refuse, reader.stored
        self._groups = [reader.groups[index] for index in reader.shuffling.sequence(len(reader.groups), epoch)]
        self.starts = np.concatenate([[0], np.cumsum([group.rows for group in self._groups])])
        self._files: OrderedDict[Place, pq.ParquetFile] = OrderedDict()
        self._files_kept = len(reader.own_lanes) + 1  # each lane reads from one file at a time
        self._row_errors: list[str] = []

    def decode(self, index: int) -> Rows:
        group = self._groups[index]
        if isinstance(group.path, StorePath):
            assert self._stored is not None, "`open_split` gives a reader of objects a cache"
            file = self._stored.file(group.path, group.group)
        else:
            file = self._file(group.path)
        rows, row_errors = decode(file, group, self._columns, refuse=self._refuse)
        self._row_errors += row_errors
        return rows

    def ahead(self, first: int, last: int) -> None:
        """Begins to fetch the groups first, .., last - 1 if they are objects."""
        if self._stored is not None:
            wanted = ((group.path, group.group) for group in self._groups[first:last])
            self._stored.ahead((path, number) for path, number in wanted if isinstance(path, StorePath))

    def new_row_errors(self) -> tuple[str, ...]:
        row_errors, self._row_errors = tuple(self._row_errors), []
        return row_errors

    def _file(self, path: Place) -> pq.ParquetFile:
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
    """One lane of an epoch: its current buffer, and the row group it decoded last."""

    def __init__(self, reader: LogReader, groups: _EpochGroups, epoch: int, lane: int) -> None:
        self._groups, self._shuffling, self._epoch, self._lane = groups, reader.shuffling, epoch, lane
        self._interval, self._columns = reader.lanes.interval(lane), reader.columns
        self._bounds = reader.shuffling.buffers(lane, len(self._interval))
        self._end = int(np.searchsorted(groups.starts, self._interval.stop))  # of its row groups
        self._buffer: tuple[int, Rows, np.ndarray] | None = None
        self._decoded: tuple[int, Rows] | None = None

    def take(self, start: int, stop: int, into: Rows) -> None:
        """Puts the lane's rows [start, stop), shuffled, `into` as many places; padding after the lane's end."""
        stop = min(stop, len(self._interval))
        place = 0
        while start < stop:
            buffer = int(np.searchsorted(self._bounds, start, side="right")) - 1
            rows, order = self._fill(buffer)
            first, last = int(self._bounds[buffer]), min(stop, int(self._bounds[buffer + 1]))
            into.put(place, rows, order[start - first : last - first])
            place += last - start
            start = last
        into.pad(place)

    def _fill(self, buffer: int) -> tuple[Rows, np.ndarray]:
        if self._buffer is None or self._buffer[0] != buffer:
            self._buffer = None  # frees the old rows before new ones are read
            first, last = (self._interval.start + int(bound) for bound in self._bounds[buffer : buffer + 2])
            order = self._shuffling.permutation(self._epoch, self._lane, buffer, last - first)
            self._buffer = buffer, self._positions(first, last), order
        return self._buffer[1:]

    def _positions(self, first: int, last: int) -> Rows:
        """The rows at the epoch's positions [first, last)."""
        starts = self._groups.starts
        index = int(np.searchsorted(starts, first, side="right")) - 1
        known = self._decoded is not None and self._decoded[0] == index
        self._groups.ahead(index + known, min(self._end, int(np.searchsorted(starts, last)) + GROUPS_AHEAD))
        rows, place = Rows.empty(last - first, self._columns), 0
        while first < last:
            start, stop = int(starts[index]), min(last, int(starts[index + 1]))
            rows.cut(place, place + stop - first).copy(self._group(index).cut(first - start, stop - start))
            place += stop - first
            first, index = stop, index + 1
        return rows

    def _group(self, index: int) -> Rows:
        # Buffers end inside row groups: the last one is kept, so that it is decoded once.
        if self._decoded is None or self._decoded[0] != index:
            self._decoded = None
            self._decoded = index, self._groups.decode(index)
        return self._decoded[1]


# The order in which an epoch's rows are read: pure arithmetic, the same at every world size.
#
# An epoch lays its row groups end to end in a shuffled sequence: positions 0..N-1. They are cut into V lanes,
# contiguous intervals of equal length up to one row. A lane mixes its rows in buffers. A step takes the next k =
# batch_size / V rows of every lane, lanes in order; rank r of W gets the part of lanes [r V/W, (r+1) V/W). With V = 2,
# k = 2, N = 7::
#
#     positions   0 1 2 | 3 4 5 6      lane 0 holds three rows, lane 1 four
#     step 0      0 1   | 3 4          rank 0 of 2 reads lane 0, rank 1 reads lane 1
#     step 1      2 .   | 5 6          "." is padding, so that every step has batch_size rows
#
# Only the sequence of row groups differs in other orders. In file order positions are row numbers: lane 0 holds the
# oldest. In time order row groups are dealt to the lanes in turn, oldest first, so that all lanes advance through time
# together::
#
#     groups      A B C D E            V = 2: lane 0 holds A C E, lane 1 holds B D


@dataclass(frozen=True)
class Lanes:
    """How `rows` positions are cut into `lanes` intervals and dealt to steps and ranks.

    Raises ConfigError when lanes does not divide batch_size.
    """

    rows: int
    lanes: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size % self.lanes:
            raise ConfigError(
                f"data.batch_size: expected a multiple of data.lanes = {self.lanes}, got {self.batch_size}"
            )

    @property
    def rows_per_step(self) -> int:
        """k, the rows one lane gives to a step."""
        return self.batch_size // self.lanes

    @property
    def steps(self) -> int:
        """Steps of an epoch, equal on every rank: the longest lane's."""
        longest = -(-self.rows // self.lanes)
        return -(-longest // self.rows_per_step)

    def interval(self, lane: int) -> range:
        """The positions that a lane holds."""
        return range(self.rows * lane // self.lanes, self.rows * (lane + 1) // self.lanes)

    def of_rank(self, rank: int, world: int) -> range:
        """The lanes that a rank reads. Raises ConfigError when world does not divide lanes."""
        if self.lanes % world:
            raise ConfigError(f"data.lanes: expected a multiple of the number of ranks = {world}, got {self.lanes}")
        share = self.lanes // world
        return range(rank * share, (rank + 1) * share)

    def rows_in_step(self, step: int) -> int:
        """Rows of the step over all ranks, padding left out."""
        lengths = (len(self.interval(lane)) for lane in range(self.lanes))
        return sum(min(max(length - step * self.rows_per_step, 0), self.rows_per_step) for length in lengths)


Order = Literal["file", "time", "shuffled"]


@dataclass(frozen=True)
class Shuffling:
    """The sequence of row groups in an epoch, and the order of rows inside a lane's buffers, both drawn with the seed.

    order: "shuffled" draws a sequence for each epoch and shuffles buffers; "time" deals groups to `lanes` and shuffles
    buffers; "file" keeps the files' order. A buffer holds `shuffle_rows` rows. The first buffer of a long lane is
    shorter, by a different amount for each lane, so that lanes do not all read their next buffer in the same step.

    Raises ConfigError for a negative seed.
    """

    shuffle_rows: int
    seed: int
    order: Order
    lanes: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed: expected a number of at least 0, got {self.seed}")

    def sequence(self, groups: int, epoch: int) -> np.ndarray:
        """The row groups in the epoch's order: a permutation of 0..groups-1, int64."""
        if self.order == "shuffled":
            return np.random.default_rng([self.seed, epoch, 0, 0]).permutation(groups)
        if self.order == "time":
            return np.concatenate([np.arange(lane, groups, self.lanes) for lane in range(self.lanes)])
        return np.arange(groups)

    def buffers(self, lane: int, rows: int) -> np.ndarray:
        """Where the buffers of a lane of `rows` rows begin, and its end: offsets into the lane, int64 [buffers + 1]."""
        if rows <= self.shuffle_rows:
            return np.array([0, rows])
        first = -(-self.shuffle_rows * (lane + 1) // self.lanes)
        return np.concatenate([[0], np.arange(first, rows, self.shuffle_rows), [rows]])

    def permutation(self, epoch: int, lane: int, buffer: int, rows: int) -> np.ndarray:
        """The order of a buffer's rows: a permutation of 0..rows-1, int64."""
        if self.order == "file":
            return np.arange(rows)
        return np.random.default_rng([self.seed, epoch, lane + 1, buffer]).permutation(rows)
