"""The order in which an epoch's rows are read: pure arithmetic, the same at every world size.

An epoch lays its row groups end to end in a shuffled sequence: positions 0..N-1. They are cut into V lanes, contiguous
intervals of equal length up to one row. A lane mixes its rows in buffers. A step takes the next k = batch_size / V rows
of every lane, lanes in order; rank r of W gets the part of lanes [r V/W, (r+1) V/W). With V = 2, k = 2, N = 7::

    positions   0 1 2 | 3 4 5 6      lane 0 holds three rows, lane 1 four
    step 0      0 1   | 3 4          rank 0 of 2 reads lane 0, rank 1 reads lane 1
    step 1      2 .   | 5 6          "." is padding, so that every step has batch_size rows

Other sequences leave lanes and steps as they are. In file order positions are row numbers: lane 0 holds the oldest.
In time order row groups are dealt to the lanes like cards, oldest first, so that all lanes walk through time together::

    groups      A B C D E            V = 2: lane 0 holds A C E, lane 1 holds B D
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sidrec.config import ConfigError


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
class Mixing:
    """The sequence of row groups in an epoch, and the order of rows inside a lane's buffers: what the seed decides.

    order: "shuffled" draws the sequence anew each epoch and mixes buffers; "time" deals groups to `lanes` and mixes
    buffers; "file" leaves everything as it is. A buffer holds `shuffle_rows` rows. The first buffer of a long lane is
    shorter, by lane, so that lanes do not all wait for their next buffer in the same step.

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
        """The order in which a buffer's rows are given out: a permutation of 0..rows-1, int64."""
        if self.order == "file":
            return np.arange(rows)
        return np.random.default_rng([self.seed, epoch, lane + 1, buffer]).permutation(rows)
