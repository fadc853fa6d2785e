"""Which rows a batch of Criteo holds: arithmetic that is the same on every rank, with nothing to send around.

Batches are dealt to ranks in turn, as TorchRec deals them: batch b goes to rank b mod world_size. What does not fill
one more batch for every rank is spread evenly over the ranks' last batches.
"""

from dataclasses import dataclass

import numpy as np

from sidrec.schema import ContractError

CHUNK_ROWS = 1024  # neighbours that stay together on their way into a window
WINDOW_CHUNKS = 256  # chunks from all over the data whose rows are mixed: 262,144 rows


@dataclass(frozen=True)
class BatchBounds:
    """How `rows` positions are cut into batches. Raises ContractError when they cannot give every rank a row."""

    rows: int
    batch_size: int
    world_size: int
    drop_last: bool

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("world_size", self.world_size)):
            if value < 1:
                raise ContractError(name, "at least 1", value)
        needed = self.world_size * (self.batch_size if self.drop_last else 1)
        if self.rows < needed:
            raise ContractError("rows", f"at least {needed} for {self.world_size} ranks", self.rows)

    @property
    def full(self) -> int:
        """Full batches of all ranks together."""
        full = self.rows // self.batch_size // self.world_size * self.world_size
        left = self.rows - full * self.batch_size
        # Too few for a last batch of every rank: they join the last full ones, which become larger by one.
        return full - self.world_size if not self.drop_last and 0 < left < self.world_size else full

    @property
    def last(self) -> np.ndarray:
        """Sizes of the last batch of every rank, int64 [world_size]; all 0 if there is none."""
        left = 0 if self.drop_last else self.rows - self.full * self.batch_size
        return left // self.world_size + (np.arange(self.world_size) < left % self.world_size)

    @property
    def per_rank(self) -> int:
        """Batches of an epoch, equal on every rank."""
        return self.full // self.world_size + int(self.last[0] > 0)

    def positions(self, rank: int, step: int) -> range:
        """The positions of a rank's batch number `step`."""
        batch = step * self.world_size + rank
        if batch < self.full:
            return range(batch * self.batch_size, (batch + 1) * self.batch_size)
        start = self.full * self.batch_size + int(self.last[:rank].sum())
        return range(start, start + int(self.last[rank]))


class ShuffledRows:
    """A permutation of 0..rows-1 per seed and epoch that never exists as a whole, in which neighbours lie near each
    other on disk: chunks of rows are shuffled, and rows within windows of chunks."""

    def __init__(self, rows: int, seed: int, epoch: int) -> None:
        self._rows, self._key = rows, (seed, epoch)
        self._chunks = np.random.default_rng([*self._key, 0]).permutation(-(-rows // CHUNK_ROWS))
        chunk_rows = np.minimum(rows - self._chunks * CHUNK_ROWS, CHUNK_ROWS)
        window_rows = np.add.reduceat(chunk_rows, np.arange(0, len(chunk_rows), WINDOW_CHUNKS))
        self._starts = np.concatenate([[0], np.cumsum(window_rows)])
        self._open: tuple[int, np.ndarray] | None = None

    def take(self, positions: range) -> np.ndarray:
        """The rows at these positions, int64."""
        parts, start = [], positions.start
        while start < positions.stop:
            window = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, stop = int(self._starts[window]), min(positions.stop, int(self._starts[window + 1]))
            parts.append(self._window(window)[start - first : stop - first])
            start = stop
        return np.concatenate(parts)

    def _window(self, window: int) -> np.ndarray:
        if self._open is None or self._open[0] != window:
            chunks = self._chunks[window * WINDOW_CHUNKS : (window + 1) * WINDOW_CHUNKS]
            rows = (chunks[:, None] * CHUNK_ROWS + np.arange(CHUNK_ROWS)).reshape(-1)
            rows = rows[rows < self._rows]
            self._open = window, np.random.default_rng([*self._key, 1, window]).permutation(rows)
        return self._open[1]
