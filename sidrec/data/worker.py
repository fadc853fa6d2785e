"""A loader's worker process: reads the rows of a step, numbers its items, packs the arrays to send.

    LogReader.steps -> StepRows -> BatchArrays -> BatchContent -> pack -> BatchBlock -> (training) PackedBatch -> Batch

A worker sends the ids of items. Their rows in embedding tables are looked up on the training's device, which has them
all: six rows and lengths of an item are nine times as many bytes as its id.

Imports no torchrec, which would cost every worker seconds at its start and hundreds of megabytes.

Shapes: B rows, T history positions, U item bags (bag 0 is empty), M = B (1 + T) ids of targets and histories, F item
features, I item ids, C context columns, V width of a content vector.
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
from sidrec.serve.id_lookup import splitmix64

T = TypeVar("T")


class Content(Protocol):
    """Content vectors, indexed by item id: an array [I, V], or an object that reads such rows from disk."""

    def __getitem__(self, ids_U: np.ndarray, /) -> np.ndarray: ...


class WorkerItems(NamedTuple):
    """What a worker knows of the items.

    ids: I. has_row: feature -> whether each item has a row there, bool [I]; None if all but item 0 have one. content:
    None if the model uses none.
    """

    ids: int
    has_row: Mapping[str, np.ndarray | None]
    content: Content | None = None


SelectHistory = Callable[[Rows], np.ndarray]


class WorkerResult(NamedTuple):
    """A batch, or the error that ends the epoch; and the errors of newly quarantined rows.

    quarantined: rows of the batch that are.
    """

    outcome: "BatchBlock | ContractError"
    row_errors: tuple[str, ...] = ()
    quarantined: int = 0


class StepDataset(IterableDataset[WorkerResult]):
    """The batches of an epoch. Worker k of K builds steps first + k, first + k + K, ...

    DataLoader asks its workers in turn, so the steps arrive in order. items, select: see BatchArrays.
    """

    def __init__(self, reader: LogReader, items: WorkerItems, world: int, select: SelectHistory | None = None) -> None:
        self._reader, self._items, self._world, self._select = reader, items, world, select
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
        arrays = BatchArrays(self._items, columns.context, lists, self._select)
        key = epoch_key(self._reader.shuffling.seed, epoch)
        try:
            for step in self._reader.steps(epoch, steps):
                block = pack(arrays(step.rows, step.rows_of_all_ranks / self._world, key))
                yield WorkerResult(block, step.row_errors, int((~step.rows.good_N & (step.rows.row_N >= 0)).sum()))
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


def start_like_training(environment: Mapping[str, str], number: int) -> None:
    """`exit_with_training` in a worker that reads a store. environment: of the training process, which holds the
    credentials; the fork server may have started before they were set."""
    os.environ.update(environment)
    exit_with_training(number)


def as_is(item: T) -> T:
    """DataLoader's `collate_fn`: returns its argument unchanged. Defined here because workers import this module."""
    return item


# A random number for every row and epoch, for dropout. It depends on seed, epoch and row number alone: the same at any
# number of ranks and workers, and after a resume.


def epoch_key(seed: int, epoch: int) -> np.uint64:
    """The key of an epoch of a run, for `row_chances`."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


FIRST_KEY = epoch_key(0, 0)


def row_chances(rows_N: np.ndarray, key: np.uint64) -> np.ndarray:
    """Uniform numbers in [0, 1), float32 [N], each a function of its row number and the key."""
    mixed_N = splitmix64(splitmix64(rows_N.astype(np.uint64)) ^ key)
    return (mixed_N >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)  # the 24 bits that float32 holds


# The arrays of a batch: finds the unique items of a step's rows and numbers them.


class Jagged(NamedTuple):
    """The parts of a KeyedJaggedTensor: the ids of `stride` bags for each key in turn.

    lengths: int32; None for one id in each bag. per_key: ids of each key.
    """

    keys: tuple[str, ...]
    stride: int
    values: np.ndarray
    lengths: np.ndarray | None
    per_key: tuple[int, ...]


class BatchArrays:
    """Builds the arrays of one process's batches. Keeps one int32 per item id.

    context: names of the context columns, in the order of `Rows.context_NC`. lists: those of lists -> their places.
    select: rows -> item ids of their histories, int32 [N, T]; None for all that was read.
    """

    def __init__(
        self,
        items: WorkerItems,
        context: tuple[str, ...],
        lists: Mapping[str, int] = MappingProxyType({}),
        select: SelectHistory | None = None,
    ) -> None:
        self._items, self._context, self._lists, self._select = items, context, lists, select
        self._bag_I = np.zeros(items.ids, np.int32)

    def __call__(self, rows: Rows, rows_per_rank: float, key: np.uint64 = FIRST_KEY) -> "BatchContent":
        """Items get bags 1..U-1 by increasing id; item id 0 and padding get bag 0. key: of the epoch, for
        `row_chances`."""
        history_NT = rows.history_NT if self._select is None else self._select(rows)
        ids_U, bag_M = self._number(np.concatenate([rows.item_N, history_NT.ravel()]))
        size = len(rows)
        arrays: dict[str, np.ndarray | Jagged] = {
            "ids_U": ids_U,
            "content_UV": self._content(ids_U),
            "context": self._context_lookups(rows.context_NC),
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
        return BatchContent(arrays, self._lookups(ids_U))

    def _number(self, ids_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The id of each bag, ascending from bag 0's, which is 0; and the bag of each id. int32 [U], [M].

        numpy sorts 32-bit numbers with vector instructions, at the cost of one random access for each of them.
        """
        sorted_M = np.sort(ids_M)
        distinct_M = np.empty(len(ids_M), dtype=bool)
        distinct_M[:1] = sorted_M[:1] > 0
        np.not_equal(sorted_M[1:], sorted_M[:-1], out=distinct_M[1:])
        ids_U = np.concatenate([np.zeros(1, ids_M.dtype), sorted_M[distinct_M]])
        self._bag_I[ids_U] = np.arange(len(ids_U), dtype=np.int32)
        bags = torch.from_numpy(self._bag_I).index_select(0, torch.from_numpy(ids_M))  # numpy would widen the ids
        return ids_U, bags.numpy()

    def _lookups(self, ids_U: np.ndarray) -> dict[str, int]:
        """Feature -> ids that the batch looks up there."""
        counted: dict[int, int] = {}  # features share arrays
        for has_row_I in self._items.has_row.values():
            if has_row_I is not None and id(has_row_I) not in counted:
                counted[id(has_row_I)] = int(np.count_nonzero(has_row_I[ids_U]))
        return {
            name: len(ids_U) - 1 if has_row_I is None else counted[id(has_row_I)]
            for name, has_row_I in self._items.has_row.items()
        }

    def _content(self, ids_U: np.ndarray) -> np.ndarray:
        if self._items.content is None:
            return np.zeros((len(ids_U), 0), np.float32)
        content_UV = self._items.content[ids_U]
        content_UV[0] = 0
        return content_UV

    def _context_lookups(self, context_NC: np.ndarray) -> Jagged:
        size = len(context_NC)
        if not self._lists:
            ids = np.ascontiguousarray(context_NC.T).ravel()
            return Jagged(self._context, size, ids, None, (size,) * len(self._context))
        values, lengths, first = [], [], 0
        for name in self._context:
            ids_NL = context_NC[:, first : first + self._lists.get(name, 1)]
            first += ids_NL.shape[1]
            in_bag_NL = ids_NL > 0 if name in self._lists else np.ones_like(ids_NL, dtype=bool)
            values.append(ids_NL[in_bag_NL])
            lengths.append(in_bag_NL.sum(axis=1, dtype=np.int32))
        per_key = tuple(map(len, values))
        return Jagged(self._context, size, np.concatenate(values), np.concatenate(lengths), per_key)


class BatchContent(NamedTuple):
    """arrays: by name. lookups: item feature -> ids that the batch looks up there."""

    arrays: Mapping[str, np.ndarray | Jagged]
    lookups: Mapping[str, int]


# A batch on its way between processes and to the device: all arrays in one block of memory. Each tensor that crosses
# processes costs a file descriptor and a handshake, about half a millisecond, and a batch has fifteen.


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
    lengths: ArrayPlace | None
    per_key: tuple[int, ...]


class BatchBlock(NamedTuple):
    """bytes_: uint8 [bytes]. places: name -> where the array or jagged array lies. lookups: as in BatchContent."""

    bytes_: Tensor
    places: Mapping[str, ArrayPlace | JaggedPlace]
    lookups: Mapping[str, int]

    def tensor(self, place: ArrayPlace) -> Tensor:
        """A view of the block."""
        stop = place.first + torch.Size(place.shape).numel() * place.dtype.itemsize
        return self.bytes_[place.first : stop].view(place.dtype).view(place.shape)

    def to(self, device: torch.device, non_blocking: bool = False) -> "BatchBlock":
        """The block on another device: one copy."""
        return self._replace(bytes_=self.bytes_.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "BatchBlock":
        """DataLoader calls it."""
        return self._replace(bytes_=self.bytes_.pin_memory())


def pack(content: BatchContent) -> BatchBlock:
    """Copies the arrays into one block; in a worker process, into memory that the training process shares."""
    copies: list[tuple[ArrayPlace, Tensor]] = []
    end = 0

    def place(array: np.ndarray) -> ArrayPlace:
        nonlocal end
        tensor = torch.from_numpy(array)
        copies.append((ArrayPlace(tensor.dtype, tuple(tensor.shape), end), tensor))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return copies[-1][0]

    places: dict[str, ArrayPlace | JaggedPlace] = {}
    for name, array in content.arrays.items():
        if isinstance(array, Jagged):
            lengths = None if array.lengths is None else place(array.lengths)
            places[name] = JaggedPlace(array.keys, array.stride, place(array.values), lengths, array.per_key)
        else:
            places[name] = place(array)
    block = BatchBlock(_memory(end), places, content.lookups)
    for target, tensor in copies:
        block.tensor(target).copy_(tensor)
    return block


def _memory(size: int) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(size)  # as torch's own collate: the queue would copy other memory
    return torch.empty(0, dtype=torch.uint8).set_(shared, 0, (size,), (1,))
