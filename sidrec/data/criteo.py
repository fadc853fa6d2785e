"""Batches of Criteo's .npy files for TorchRec's own loops, in place of InMemoryBinaryCriteoIterDataPipe.

    paths = criteo_paths(Path("data/criteo"), days=range(23))
    batches = CriteoBatches("train", *paths, batch_size=4096, rank=rank, world_size=world_size)
    loader = DataLoader(batches, batch_size=None, num_workers=2)

Files are memory-mapped: memory does not grow with their rows.

Shapes: B rows of a batch, X = 13 dense and C = 26 sparse columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchrec.datasets.criteo import DEFAULT_CAT_NAMES
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.data.criteo_files import (
    SPARSE_COLUMNS,
    CriteoDay,
    Look,
    Stage,
    StageFiles,
    StageRows,
    check_ids,
    check_tables,
    criteo_paths,
)
from sidrec.schema import ContractError

__all__ = ["CriteoBatches", "criteo_paths"]


class CriteoBatches(IterableDataset[Batch]):
    """This rank's batches: dense float32 [B, 13], a KeyedJaggedTensor of one id per row and feature, labels int32 [B].

    Arguments up to `hashes` are those of TorchRec's data pipe, and unshuffled batches equal its batches. Differences:
    the training set is shuffled in windows, without being loaded, and differently in every epoch that `seek` sets; the
    order depends on seed, epoch and step alone; a DataLoader may have any number of workers.

    stage: see StageFiles. shuffle_batches: shuffles rows within a batch. shuffle_training_set: shuffles rows over all
    ranks, in stage "train". mmap_mode: accepted for compatibility; files are always mapped. hashes: C numbers; ids are
    taken modulo these. table_rows: C table sizes; ids must be smaller. This is checked in every batch, and when the
    files are opened on the rows that `look` selects. look: rows that are checked when the files are opened, "sample" or
    "full".

    Raises ContractError for files that are missing, truncated, of different lengths or of the wrong type or width, for
    values that are not finite, not a label or beyond their table, and for arguments that contradict each other.
    """

    def __init__(
        self,
        stage: Stage,
        dense_paths: Sequence[str],
        sparse_paths: Sequence[str],
        labels_paths: Sequence[str],
        batch_size: int,
        rank: int,
        world_size: int,
        drop_last: bool | None = False,
        shuffle_batches: bool = False,
        shuffle_training_set: bool = False,
        shuffle_training_set_random_seed: int = 0,
        mmap_mode: bool = True,
        hashes: Sequence[int] | None = None,
        *,
        table_rows: Sequence[int] | None = None,
        look: Look = "sample",
    ) -> None:
        days = _open(dense_paths, sparse_paths, labels_paths)
        self._files = StageFiles.of(days, stage)
        self._bounds = BatchBounds(self._files.rows, batch_size, world_size, bool(drop_last))
        if not 0 <= rank < world_size:
            raise ContractError("rank", f"a rank in [0, {world_size})", rank)
        self._rank, self._seed = rank, shuffle_training_set_random_seed
        self._shuffle, self._shuffle_batches = shuffle_training_set and stage == "train", shuffle_batches
        self._hashes, self._table_rows = _checked_tables(days, hashes, table_rows)
        for day in days:
            day.look(look, self._table_rows)
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # workers outlive an epoch

    def seek(self, epoch: int, step: int = 0) -> None:
        """Sets the epoch and step where the next iteration begins, in all processes.

        Raises ContractError for a step outside [0, len].
        """
        if epoch < 0 or not 0 <= step <= len(self):
            raise ContractError("epoch, step", f"an epoch from 0 on, a step in [0, {len(self)}]", (epoch, step))
        self._position.copy_(torch.tensor([epoch, step]))

    def __len__(self) -> int:
        """Batches of an epoch, equal on every rank."""
        return self._bounds.per_rank

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, first = self._position.tolist()
        rows = StageRows(self._files)
        order = ShuffledRows(self._files.rows, self._seed, epoch) if self._shuffle else None
        for step in range(first + number, len(self), workers):
            row_B = self._rows_of(epoch, step, order)
            dense_BX, sparse_BC, labels_B1 = rows.take(row_B)
            if self._hashes is not None:
                sparse_BC = sparse_BC % self._hashes.astype(sparse_BC.dtype)
            if self._table_rows is not None:
                check_ids(sparse_BC, self._table_rows, partial(_place, rows, row_B))
            yield _batch(dense_BX, sparse_BC, labels_B1)

    def _rows_of(self, epoch: int, step: int, order: "ShuffledRows | None") -> range | np.ndarray:
        positions = self._bounds.positions(self._rank, step)
        if order is None and not self._shuffle_batches:
            return positions
        row_B = order.take(positions) if order else np.arange(positions.start, positions.stop)
        if self._shuffle_batches:
            row_B = np.random.default_rng([self._seed, epoch, 2, self._rank, step]).permutation(row_B)
        return row_B


def _open(dense: Sequence[str], sparse: Sequence[str], labels: Sequence[str]) -> list[CriteoDay]:
    counts = [len(paths) for paths in (dense, sparse, labels)]
    if not 0 < min(counts) == max(counts):
        raise ContractError("dense_paths, sparse_paths, labels_paths", "equally many files, at least one", counts)
    days = [CriteoDay.open(*map(Path, day)) for day in zip(dense, sparse, labels, strict=True)]
    for day in days:
        if day.id_type != days[0].id_type:
            raise ContractError(day.sparse, f"{days[0].id_type}, as {days[0].sparse.name} has", day.id_type)
    return days


def _checked_tables(
    days: list[CriteoDay], hashes: Sequence[int] | None, table_rows: Sequence[int] | None
) -> tuple[np.ndarray | None, Sequence[int] | None]:
    """Hashes as an array, and the table sizes to check stored ids against; None if ids are hashed."""
    if hashes is None:
        if table_rows is not None:
            check_tables(days, table_rows)
        return None, table_rows
    limits = [2**31 - 1] * SPARSE_COLUMNS if table_rows is None else table_rows
    if not len(hashes) == len(limits) == SPARSE_COLUMNS:
        expected = f"{SPARSE_COLUMNS} numbers, one per column"
        raise ContractError("hashes, table_rows", expected, (len(hashes), len(limits)))
    for column, (modulus, limit) in enumerate(zip(hashes, limits, strict=True)):
        if not 1 <= modulus <= limit:
            raise ContractError(f"hashes, column {column} (C{column + 1})", f"from 1 to {limit}", modulus)
    return np.asarray(hashes), None


def _place(rows: StageRows, row_B: range | np.ndarray, row: int) -> str:
    """File and row number of a batch's row."""
    file, row_in_file = rows.place(int(row_B[row]))
    return f"{rows.days[file].sparse}, row {row_in_file}"


def _batch(dense_BX: np.ndarray, sparse_BC: np.ndarray, labels_B1: np.ndarray) -> Batch:
    lengths, offsets = _bags(len(dense_BX))
    features = KeyedJaggedTensor(
        keys=DEFAULT_CAT_NAMES,
        values=torch.from_numpy(sparse_BC.T.flatten()),
        lengths=lengths,
        offsets=offsets,
        stride=len(dense_BX),
        length_per_key=[len(dense_BX)] * SPARSE_COLUMNS,
        offset_per_key=list(range(0, len(dense_BX) * SPARSE_COLUMNS + 1, len(dense_BX))),
    )
    return Batch(torch.from_numpy(dense_BX), features, torch.from_numpy(labels_B1.reshape(-1)))


@lru_cache(maxsize=3)  # full batches, and the one or two other sizes at an epoch's end
def _bags(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengths and offsets of one id per row and feature, int32."""
    bags = SPARSE_COLUMNS * rows
    return torch.ones(bags, dtype=torch.int32), torch.arange(bags + 1, dtype=torch.int32)


# Which rows a batch holds: arithmetic that is the same on every rank, without communication.
#
# As in TorchRec, batch b goes to rank b mod world_size. Rows that do not fill one more batch for every rank are spread
# evenly over the ranks' last batches.


CHUNK_ROWS = 1024  # adjacent rows that enter the same window
WINDOW_CHUNKS = 256  # 262,144 rows


@dataclass(frozen=True)
class BatchBounds:
    """How `rows` positions are cut into batches. Raises ContractError if a rank would get no row."""

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
        # Too few for a last batch on every rank: some of the last full batches become larger by one row.
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
    """A permutation of 0..rows-1 per seed and epoch that is never held as a whole and reads the disk in large pieces.

    Chunks of CHUNK_ROWS rows are shuffled; then rows are shuffled within windows of WINDOW_CHUNKS chunks.
    """

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
