"""A batch on its way from a worker process: all its arrays in one block of memory.

A tensor that crosses processes costs a file descriptor and a handshake, about half a millisecond; a batch has fifteen.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; a cache line, and enough for every dtype


class Jagged(NamedTuple):
    """The parts of a KeyedJaggedTensor: ids and, key by key, the length of each of `stride` bags."""

    keys: tuple[str, ...]
    stride: int
    values: np.ndarray
    lengths: np.ndarray


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
