"""A step's rows -> the arrays of a Batch: finds the unique items and looks up what is known of them.

Shapes: B rows, T history positions, U item bags (bag 0 empty), M = B (1 + T) ids of targets and histories, F item
features, I item ids, C context columns.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sidrec.data.rows import Rows

PER_BAG = {"token_weights_UW": np.float32, "granules_UG": np.int64, "content_UV": np.float32}
"""Fields of a Batch with one row per item bag, beside the lookups; and their types."""


class PerItem(Protocol):
    """Something known of every item, by item id: an array [I, ...], or what reads like one from a file."""

    def __getitem__(self, ids_U: np.ndarray, /) -> np.ndarray: ...


# A batch on its way from a worker process: all its arrays in one block of memory.
#
# A tensor that crosses processes costs a file descriptor and a handshake, about half a millisecond; a batch has
# fifteen.


class Jagged(NamedTuple):
    """The parts of a KeyedJaggedTensor: ids and, key by key, the length of each of `stride` bags."""

    keys: tuple[str, ...]
    stride: int
    values: np.ndarray
    lengths: np.ndarray


class BatchArrays:
    """Builds the arrays of one process's batches.

    features: F names of item features. rows_IF: int64 table row of every item id, 0 for none.
    per_item: field of PER_BAG -> its values for every item id. (All three as ItemTables has them.)
    context: names of the context columns, in the order of `Rows.context_NC`.
    Keeps one int64 per item id, so that finding the unique items needs no sort of all ids.
    """

    def __init__(
        self, features: tuple[str, ...], rows_IF: np.ndarray, per_item: Mapping[str, PerItem], context: tuple[str, ...]
    ) -> None:
        self._features, self._rows_IF, self._per_item, self._context = features, rows_IF, per_item, context
        self._bag_I = np.zeros(len(rows_IF), np.int64)

    def __call__(self, rows: Rows, rows_per_rank: float) -> dict[str, np.ndarray | Jagged]:
        """Batch field -> its array. Items are numbered 1..U-1 by increasing id; item id 0 is bag 0, as padding is."""
        known_U, bag_M = self._number(np.concatenate([rows.item_N, rows.history_NT.ravel()]))
        size = len(rows)
        return {
            "items": self._items(known_U),
            "context": _one_id_per_bag(self._context, rows.context_NC),
            **{field: _with_bag_0(self._per_item[field][known_U]) for field in PER_BAG},
            "target_B": bag_M[:size],
            "history_BT": bag_M[size:].reshape(rows.history_NT.shape),
            "dense_BX": rows.dense_NX,
            "stats_BS": rows.stats_NS,
            "label_B": rows.label_N,
            "weight_B": rows.good_N.astype(np.float32),
            "row_B": rows.row_N,
            "user_B": rows.user_N,
            "item_B": rows.item_N,
            "rows_per_rank": np.array(rows_per_rank, np.float32),
        }

    def _number(self, ids_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ids other than 0, sorted, and every id's bag."""
        position_M = np.arange(len(ids_M))
        self._bag_I[ids_M] = position_M  # one position of each id survives: it stands for the id
        known_U = np.sort(ids_M[self._bag_I[ids_M] == position_M])
        known_U = known_U[np.searchsorted(known_U, 0, side="right") :]
        self._bag_I[0] = 0
        self._bag_I[known_U] = np.arange(1, len(known_U) + 1)
        return known_U, self._bag_I[ids_M]

    def _items(self, known_U: np.ndarray) -> Jagged:
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


ALIGNMENT = 64  # bytes; a cache line, and enough for every dtype


class Place(NamedTuple):
    """Where an array lies in the block; first is a number of bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int


class JaggedPlace(NamedTuple):
    """Where the parts of a Jagged lie in the block."""

    keys: tuple[str, ...]
    stride: int
    values: Place
    lengths: Place


class BatchBlock(NamedTuple):
    """bytes_: uint8. places: name -> where its array or jagged array lies."""

    bytes_: Tensor
    places: Mapping[str, Place | JaggedPlace]

    def tensor(self, place: Place) -> Tensor:
        """A view of the block: pinned if the block is."""
        stop = place.first + torch.Size(place.shape).numel() * place.dtype.itemsize
        return self.bytes_[place.first : stop].view(place.dtype).view(place.shape)


def block_of(arrays: Mapping[str, np.ndarray | Jagged]) -> BatchBlock:
    """Copies the arrays into one block."""
    copies: list[tuple[Place, Tensor]] = []
    end = 0

    def place(array: np.ndarray) -> Place:
        nonlocal end
        tensor = torch.from_numpy(array)
        copies.append((Place(tensor.dtype, tuple(tensor.shape), end), tensor))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return copies[-1][0]

    places: dict[str, Place | JaggedPlace] = {}
    for name, array in arrays.items():
        if isinstance(array, Jagged):
            places[name] = JaggedPlace(array.keys, array.stride, place(array.values), place(array.lengths))
        else:
            places[name] = place(array)
    block = BatchBlock(torch.empty(end, dtype=torch.uint8), places)
    for target, tensor in copies:
        block.tensor(target).copy_(tensor)
    return block
