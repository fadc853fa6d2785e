"""A loader's worker process: reads the rows of a step, builds the arrays of its batch, packs them to send.

    LogReader.steps -> StepRows -> BatchArrays -> {field: array} -> pack -> BatchBlock -> (loader) collate -> Batch

Imports no torchrec, which would cost every worker seconds at its start and hundreds of megabytes.

Shapes: B rows, T history positions, U item bags (bag 0 is empty), M = B (1 + T) ids of targets and histories, F item
features, I item ids, C context columns.
"""

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sidrec.data.reader import LogReader
from sidrec.data.rows import Rows
from sidrec.schema import ContractError

T = TypeVar("T")

PER_BAG = {"token_weights_UW": np.float32, "granules_UG": np.int64, "content_UV": np.float32}
"""Fields of a Batch with one row per item bag, next to the table lookups, and their types."""


class PerItem(Protocol):
    """A property of every item, indexed by item id: an array [I, ...], or an object that reads such rows from disk."""

    def __getitem__(self, ids_U: np.ndarray, /) -> np.ndarray: ...


SelectHistory = Callable[[Rows], np.ndarray]


class WorkerResult(NamedTuple):
    """A batch, or the error that ends the epoch; and the errors of newly quarantined rows."""

    outcome: "BatchBlock | ContractError"
    row_errors: tuple[str, ...] = ()


class StepDataset(IterableDataset[WorkerResult]):
    """The batches of an epoch. Worker k of K builds steps first + k, first + k + K, ...

    DataLoader asks its workers in turn, so the steps arrive in order. features, rows_IF, per_item, select: see
    BatchArrays.
    """

    def __init__(
        self,
        reader: LogReader,
        features: tuple[str, ...],
        rows_IF: np.ndarray,
        per_item: Mapping[str, PerItem],
        world: int,
        select: SelectHistory | None = None,
    ) -> None:
        self._reader, self._features, self._rows_IF, self._world = reader, features, rows_IF, world
        self._per_item, self._select = per_item, select
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # workers outlive an epoch

    def seek(self, epoch: int, step: int) -> None:
        """Sets where the next iteration begins, in all processes."""
        self._position.copy_(torch.tensor([epoch, step]))

    def __iter__(self) -> Iterator[WorkerResult]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, first = self._position.tolist()
        return self._build(epoch, range(first + number, self._reader.lanes.steps, workers))

    def _build(self, epoch: int, steps: range) -> Iterator[WorkerResult]:
        columns = self._reader.columns
        lists = {name: columns.log.lists[name].longest for name in columns.context if name in columns.log.lists}
        arrays = BatchArrays(self._features, self._rows_IF, self._per_item, columns.context, lists, self._select)
        key = epoch_key(self._reader.shuffling.seed, epoch)
        try:
            for step in self._reader.steps(epoch, steps):
                found = arrays(step.rows, step.rows_of_all_ranks / self._world, key)
                yield WorkerResult(pack(found), step.row_errors)
        except ContractError as error:
            yield WorkerResult(error)


def exit_with_training(_: int) -> None:
    """DataLoader's `worker_init_fn`: ends the worker when the training process ends, even by SIGKILL.

    A worker's parent is the fork server, which lives as long as it has workers. Without this, a killed training process
    leaves both running.
    """
    training = multiprocessing.parent_process()
    assert training is not None, "a loader's worker is started by multiprocessing"

    def wait() -> None:
        training.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="exit with training").start()


def as_is(item: T) -> T:
    """DataLoader's `collate_fn`: returns its argument unchanged. Defined here because workers import this module."""
    return item


# A random number for every row and epoch, for dropout. It depends on seed, epoch and row number alone: the same at any
# number of ranks and workers, and after a resume.


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """The output function of the splitmix64 generator, a bijection of 64-bit numbers (Steele et al., OOPSLA 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def epoch_key(seed: int, epoch: int) -> np.uint64:
    """The key of an epoch of a run, for `row_chances`."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


FIRST_KEY = epoch_key(0, 0)


def row_chances(rows_N: np.ndarray, key: np.uint64) -> np.ndarray:
    """Uniform numbers in [0, 1), float32 [N], each a function of its row number and the key."""
    mixed_N = splitmix64(splitmix64(rows_N.astype(np.uint64)) ^ key)
    return (mixed_N >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)  # the 24 bits that float32 holds


# The arrays of a batch: finds the unique items of a step's rows and looks up their properties.


class Jagged(NamedTuple):
    """The parts of a KeyedJaggedTensor: ids, and the lengths of `stride` bags for each key in turn."""

    keys: tuple[str, ...]
    stride: int
    values: np.ndarray
    lengths: np.ndarray


class BatchArrays:
    """Builds the arrays of one process's batches. Keeps one int64 per item id, to find unique items without a sort.

    features: names of the F item features. rows_IF: int64 table row of every item id, 0 for none.
    per_item: field of PER_BAG -> its values for every item id. (All three as in ItemTables.)
    context: names of the context columns, in the order of `Rows.context_NC`. lists: those of lists -> their places.
    select: rows -> item ids of their histories, int64 [N, T]; None for all that was read.
    """

    def __init__(
        self,
        features: tuple[str, ...],
        rows_IF: np.ndarray,
        per_item: Mapping[str, PerItem],
        context: tuple[str, ...],
        lists: Mapping[str, int] = MappingProxyType({}),
        select: SelectHistory | None = None,
    ) -> None:
        self._lists, self._select = lists, select
        self._features, self._rows_IF, self._per_item, self._context = features, rows_IF, per_item, context
        self._bag_I = np.zeros(len(rows_IF), np.int64)

    def __call__(self, rows: Rows, rows_per_rank: float, key: np.uint64 = FIRST_KEY) -> dict[str, np.ndarray | Jagged]:
        """Batch field -> its array. Items get bags 1..U-1 by increasing id; item id 0 and padding get bag 0.

        key: of the epoch, for `row_chances`.
        """
        history_NT = rows.history_NT if self._select is None else self._select(rows)
        known_U, bag_M = self._assign_bags(np.concatenate([rows.item_N, history_NT.ravel()]))
        size = len(rows)
        return {
            "items": self._item_lookups(known_U),
            "context": self._context_lookups(rows.context_NC),
            **{field: _with_bag_0(self._per_item[field][known_U]) for field in PER_BAG},
            "target_B": bag_M[:size],
            "history_BT": bag_M[size:].reshape(history_NT.shape),
            "dense_BX": rows.dense_NX,
            "stats_BS": rows.stats_NS,
            "label_B": rows.label_N,
            "weight_B": rows.good_N.astype(np.float32),
            "row_B": rows.row_N,
            "user_B": rows.user_N,
            "item_B": rows.item_N,
            "rows_per_rank": np.array(rows_per_rank, np.float32),
            "chance_B": row_chances(rows.row_N, key),
        }

    def _context_lookups(self, context_NC: np.ndarray) -> Jagged:
        if not self._lists:
            return _one_id_per_bag(self._context, context_NC)
        values, lengths, first = [], [], 0
        for name in self._context:
            ids_NL = context_NC[:, first : first + self._lists.get(name, 1)]
            first += ids_NL.shape[1]
            in_bag_NL = ids_NL > 0 if name in self._lists else np.ones_like(ids_NL, dtype=bool)
            values.append(ids_NL[in_bag_NL])
            lengths.append(in_bag_NL.sum(axis=1, dtype=np.int32))
        return Jagged(self._context, len(context_NC), np.concatenate(values), np.concatenate(lengths))

    def _assign_bags(self, ids_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ids other than 0, sorted, and the bag of every id."""
        position_M = np.arange(len(ids_M))
        self._bag_I[ids_M] = position_M  # an id keeps its last position, which marks it once
        known_U = np.sort(ids_M[self._bag_I[ids_M] == position_M])
        known_U = known_U[np.searchsorted(known_U, 0, side="right") :]
        self._bag_I[0] = 0
        self._bag_I[known_U] = np.arange(1, len(known_U) + 1)
        return known_U, self._bag_I[ids_M]

    def _item_lookups(self, known_U: np.ndarray) -> Jagged:
        rows_FU = np.zeros((len(self._features), len(known_U) + 1), np.int64)
        rows_FU[:, 1:] = self._rows_IF[known_U].T
        looked_up_FU = rows_FU > 0
        return Jagged(self._features, rows_FU.shape[1], rows_FU[looked_up_FU], looked_up_FU.ravel().astype(np.int32))


def _with_bag_0(known: np.ndarray) -> np.ndarray:
    values = np.zeros((len(known) + 1, *known.shape[1:]), known.dtype)
    values[1:] = known
    return values


def _one_id_per_bag(keys: tuple[str, ...], ids_BC: np.ndarray) -> Jagged:
    return Jagged(keys, len(ids_BC), np.ascontiguousarray(ids_BC.T).ravel(), np.ones(ids_BC.size, np.int32))


# A batch on its way between processes: all arrays in one block of memory. Each tensor that crosses processes costs a
# file descriptor and a handshake, about half a millisecond, and a batch has fifteen.


ALIGNMENT = 64  # bytes: a cache line, and enough for every dtype


class ArrayPlace(NamedTuple):
    """Where an array lies in the block; `first` is an offset in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int


class JaggedPlace(NamedTuple):
    """Where the parts of a Jagged lie in the block."""

    keys: tuple[str, ...]
    stride: int
    values: ArrayPlace
    lengths: ArrayPlace


class BatchBlock(NamedTuple):
    """bytes_: uint8 [bytes]. places: Batch field -> where its array or jagged array lies."""

    bytes_: Tensor
    places: Mapping[str, ArrayPlace | JaggedPlace]

    def tensor(self, place: ArrayPlace) -> Tensor:
        """A view of the block; pinned if the block is."""
        stop = place.first + torch.Size(place.shape).numel() * place.dtype.itemsize
        return self.bytes_[place.first : stop].view(place.dtype).view(place.shape)


def pack(arrays: Mapping[str, np.ndarray | Jagged]) -> BatchBlock:
    """Copies the arrays into one block."""
    copies: list[tuple[ArrayPlace, Tensor]] = []
    end = 0

    def place(array: np.ndarray) -> ArrayPlace:
        nonlocal end
        tensor = torch.from_numpy(array)
        copies.append((ArrayPlace(tensor.dtype, tuple(tensor.shape), end), tensor))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return copies[-1][0]

    places: dict[str, ArrayPlace | JaggedPlace] = {}
    for name, array in arrays.items():
        if isinstance(array, Jagged):
            places[name] = JaggedPlace(array.keys, array.stride, place(array.values), place(array.lengths))
        else:
            places[name] = place(array)
    block = BatchBlock(torch.empty(end, dtype=torch.uint8), places)
    for target, tensor in copies:
        block.tensor(target).copy_(tensor)
    return block
